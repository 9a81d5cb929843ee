// Long grouped convolutions over frames as products of spectra: segments of frames are transformed, multiplied with the
// transformed weights frequency by frequency, and transformed back. The transforms are products with small matrices.

#pragma once

#include "floats.h"
#include "platform.h"
#include "scratch.h"

namespace superbit {

// Items are pairs of a group and a frequency. Spectra have rows: real parts of all segments, then imaginary parts.
struct SpectralProduct {
    const f32* x;  // (frequency, 2, segments, dim)
    i64 segments, dim, groups, frequencies;
    const f32* weights;  // (group, frequency, real and imaginary part), each in blocks of outputs
    f32* out;            // (segments, blocks of dim, frequency, 2, 16)

    template <class Arch>
    INLINE void run(i64 begin, i64 end, Scratch& scratch) const {
        const i64 width = dim / groups, blocks = blocks_of(width), part = blocks * width * LANES, rows = 2 * segments;
        float* products[2] = {scratch.take<float>(rows * width), scratch.take<float>(rows * width)};
        float* zeros = scratch.take<float>(blocks * LANES);
        for (i64 n = 0; n < blocks * LANES; ++n) zeros[n] = 0.0f;
        for (i64 item = begin; item < end; ++item) {
            const i64 group = item / frequencies, frequency = item % frequencies;
            for (int n = 0; n < 2; ++n) {
                FloatProduct product{x + frequency * rows * dim + group * width, dim, width, weights + (item * 2 + n) * part, width, width,
                                     blocks, zeros, products[n], width};
                product.run<Arch>(0, rows, scratch);
            }
            for (i64 s = 0; s < segments; ++s)
                for (i64 j = 0; j < width; ++j) {
                    const i64 c = group * width + j, re = s * width + j, im = (segments + s) * width + j;
                    f32* to = out + ((s * blocks_of(dim) + c / LANES) * frequencies + frequency) * 2 * LANES + c % LANES;
                    to[0] = products[0][re] - products[1][im];
                    to[LANES] = products[1][re] + products[0][im];
                }
        }
    }
};

}  // namespace superbit
