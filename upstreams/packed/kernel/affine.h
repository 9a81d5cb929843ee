// Integer sums to floating-point outputs.

#pragma once

#include "platform.h"

namespace superbit {

// scale[output] * (offset[output] + factor * sum) + bias[output]; the arrays are padded to whole blocks.
struct Affine {
    const i32* offset;
    const f32* scale;
    const f32* bias;
    int32_t factor;

    // Outputs `output` to `output + outputs - 1`. `tile` is a compile-time constant, so that full tiles are unrolled.
    template <int tile>
    INLINE void apply(const int32_t* sums, i64 output, i64 outputs, f32* to) const {
        if (outputs >= tile)
            apply_range(sums, output, tile, to);
        else
            apply_range(sums, output, outputs, to);
    }

    INLINE void apply_range(const int32_t* __restrict sums, i64 output, i64 outputs, f32* __restrict to) const {
        const i32* __restrict offsets = offset + output;
        const f32 *__restrict scales = scale + output, *__restrict biases = bias + output;
        const int32_t times = factor;
        for (i64 j = 0; j < outputs; ++j) to[j] = scales[j] * float(offsets[j] + times * sums[j]) + biases[j];
    }
};

}  // namespace superbit
