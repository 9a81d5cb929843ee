// Long grouped convolutions over frames as products of spectra: segments of frames are transformed, multiplied with the
// transformed weights frequency by frequency, and transformed back. The transforms are products with small matrices.

#pragma once

#include <algorithm>

#include "floats.h"
#include "platform.h"
#include "scratch.h"

namespace superbit {

// Items are groups of channels, whose segments and spectra stay in the cache.
struct SpectralConvolution {
    const f32* x;  // (frames + taps - 1, dim)
    i64 frames, taps, dim, groups;
    i64 length;           // frames of a segment, of which each gives length - taps + 1
    const f32* forward;   // (2 frequencies, length): real and imaginary part of each frequency
    const f32* weights;   // (group, frequency, real and imaginary part), each in blocks of outputs
    const f32* backward;  // (length - taps + 1, 2 frequencies)
    const f32* bias;      // (dim,)
    f32* out;             // (frames, dim)

    static constexpr i64 SEGMENTS = 8;  // at a time: the weights of a group are read once for all of them

    template <class Arch>
    INLINE void run(i64 begin, i64 end, Scratch& scratch) const {
        const i64 width = dim / groups, blocks = blocks_of(width), step = length - taps + 1, rows = length + 2;
        const i64 all = (frames + step - 1) / step, most = std::min(SEGMENTS, all);
        const Buffers own{scratch.take<float>(blocks * LANES),
                          scratch.take<float>(blocks * length * LANES),
                          scratch.take<float>(rows * most * width),
                          {scratch.take<float>(2 * most * width), scratch.take<float>(2 * most * width)},
                          scratch.take<float>(most * blocks * rows * LANES)};
        std::fill(own.zeros, own.zeros + blocks * LANES, 0.0f);
        std::fill(own.segment, own.segment + blocks * length * LANES, 0.0f);
        std::fill(own.product, own.product + most * blocks * rows * LANES, 0.0f);
        for (i64 group = begin; group < end; ++group)
            for (i64 first = 0; first < all; first += most)
                run_segments<Arch>(group, first, std::min(most, all - first), own, scratch);
    }

  private:
    struct Buffers {
        float *zeros, *segment, *spectrum, *parts[2], *product;
    };

    // spectrum: (frequency, 2, segments, width). product: (segments, blocks, frequency, 2, 16).
    template <class Arch>
    INLINE void run_segments(i64 group, i64 first, i64 segments, const Buffers& own, Scratch& scratch) const {
        const i64 width = dim / groups, blocks = blocks_of(width), step = length - taps + 1, rows = length + 2;
        const i64 frequencies = rows / 2, part = blocks * width * LANES, channel = group * width;
        for (i64 s = 0; s < segments; ++s) {
            const i64 start = (first + s) * step, present = std::min(length, frames + taps - 1 - start);
            for (i64 block = 0; block < blocks; ++block)
                for (i64 n = 0; n < length; ++n) {
                    float* to = own.segment + (block * length + n) * LANES;
                    const f32* from = x + (start + n) * dim + channel + block * LANES;
                    const i64 count = std::min(LANES, width - block * LANES);
                    for (i64 c = 0; c < count; ++c) to[c] = n < present ? from[c] : 0.0f;
                }
            FloatProduct transform{forward, length, length, own.segment, length, width, blocks, own.zeros,
                                   own.spectrum + s * width, segments * width};
            transform.run<Arch>(0, rows, scratch);
        }
        for (i64 f = 0; f < frequencies; ++f) {
            for (int n = 0; n < 2; ++n) {
                FloatProduct product{own.spectrum + f * 2 * segments * width, width, width,
                                     weights + ((group * frequencies + f) * 2 + n) * part, width, width, blocks, own.zeros,
                                     own.parts[n], width};
                product.run<Arch>(0, 2 * segments, scratch);
            }
            for (i64 s = 0; s < segments; ++s)
                for (i64 j = 0; j < width; ++j) {
                    const i64 re = s * width + j, im = (segments + s) * width + j;
                    float* to = own.product + ((s * blocks + j / LANES) * frequencies + f) * 2 * LANES + j % LANES;
                    to[0] = own.parts[0][re] - own.parts[1][im];
                    to[LANES] = own.parts[1][re] + own.parts[0][im];
                }
        }
        for (i64 s = 0; s < segments; ++s) {
            const i64 start = (first + s) * step, count = std::min(step, frames - start);
            f32* to = out + start * dim + channel;
            FloatProduct transform{backward, rows, rows, own.product + s * blocks * rows * LANES, rows, width, blocks, own.zeros,
                                   to, dim};
            transform.run<Arch>(0, count, scratch);
            for (i64 n = 0; n < count; ++n)
                for (i64 c = 0; c < width; ++c) to[n * dim + c] += bias[channel + c];
        }
    }
};

}  // namespace superbit
