// Products of floats with weights of +1 and -1.

#pragma once

#include <algorithm>

#include "floats.h"
#include "platform.h"

namespace superbit {

// out = scale * (x times weights of +1 and -1) + bias.
struct SignProduct {
    const f32* x;
    i64 inputs;
    const u32* weights;
    i64 outputs, blocks;
    const f32 *scale, *bias;
    f32* out;

    template <class Arch>
    INLINE void run(i64 begin, i64 end, Scratch& scratch) const {
        Arch::template sign_product<Arch>(*this, begin, end, scratch);
    }

    // Write the outputs of a group of blocks, of which `sums` are the products.
    INLINE void finish(i64 row, i64 block, i64 group, const float* sums) const {
        i64 output = block * LANES, count = std::min(group * LANES, outputs - output);
        for (i64 j = 0; j < count; ++j) out[row * outputs + output + j] = scale[output + j] * sums[j] + bias[output + j];
    }
};

namespace generic {

// The weights of a block are expanded to floats once for all rows, then multiplied.
struct Signs {
    template <class Arch>
    INLINE static void sign_product(const SignProduct& signs, i64 begin, i64 end, Scratch& scratch) {
        const i64 inputs = signs.inputs, words = words_of(inputs);
        float *panel = scratch.take<float>(inputs * LANES), *result = scratch.take<float>((end - begin) * LANES);
        const float zeros[LANES] = {};
        FloatProduct product{signs.x + begin * inputs, inputs, inputs, panel, inputs, LANES, 1, zeros, result, LANES};
        for (i64 block = 0; block < signs.blocks; ++block) {
            for (i64 k = 0; k < inputs; ++k)
                for (int lane = 0; lane < LANES; ++lane) {
                    uint32_t word = signs.weights[(block * words + k / 32) * LANES + lane];
                    panel[k * LANES + lane] = (word >> (k % 32) & 1u) ? 1.0f : -1.0f;
                }
            product.run<Arch>(0, end - begin, scratch);
            for (i64 row = begin; row < end; ++row) signs.finish(row, block, 1, result + (row - begin) * LANES);
        }
    }
};

}  // namespace generic
}  // namespace superbit
