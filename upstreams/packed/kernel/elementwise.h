// Layer normalisation, depthwise convolution and GELU.

#pragma once

#include <algorithm>
#include <cmath>

#include "floats.h"
#include "functions.h"
#include "platform.h"

namespace superbit {

struct LayerNorm {
    const f32* x;
    i64 dim;
    const f32 *weight, *bias;
    float epsilon;
    f32* out;

    template <class Arch>
    INLINE void run(i64 begin, i64 end) const {
        for (i64 row = begin; row < end; ++row) {
            const f32* from = x + row * dim;
            f32* to = out + row * dim;
            float mean = sum<Arch, false>(from, 0.0f) / float(dim);
            float factor = 1.0f / std::sqrt(sum<Arch, true>(from, mean) / float(dim) + epsilon);
            for (i64 c = 0; c < dim; ++c) to[c] = (from[c] - mean) * factor * weight[c] + bias[c];
        }
    }

  private:
    // The sum of x - mean, or of its square, in two vectors of partial sums.
    template <class Arch, bool square>
    INLINE float sum(const f32* from, float mean) const {
        using Vector = VectorOf<Arch>;
        constexpr int length = LENGTH<Arch>;
        Vector left = {}, right = {};
        i64 c = 0;
        for (; c + 2 * length <= dim; c += 2 * length) {
            Vector x = *(const Vector*)(from + c) - mean, y = *(const Vector*)(from + c + length) - mean;
            left += square ? x * x : x;
            right += square ? y * y : y;
        }
        left += right;
        float total = 0.0f;
        for (; c < dim; ++c) total += square ? (from[c] - mean) * (from[c] - mean) : from[c] - mean;
        for (int lane = 0; lane < length; ++lane) total += left[lane];
        return total;
    }
};

// out[frame][channel] = bias[channel] + sum over taps of x[frame * stride + tap][channel] weights[tap][channel].
struct Depthwise {
    const f32* x;
    i64 channels, taps, stride;
    const f32 *weights, *bias;
    f32* out;

    template <class Arch>
    INLINE void run(i64 begin, i64 end) const {
        for (i64 frame = begin; frame < end; ++frame) {
            f32* to = out + frame * channels;
            for (i64 c = 0; c < channels; c += LANES) {
                float sum[LANES];
                i64 count = std::min(LANES, channels - c);
                for (i64 lane = 0; lane < count; ++lane) sum[lane] = bias[c + lane];
                for (i64 tap = 0; tap < taps; ++tap) {
                    const f32* from = x + (frame * stride + tap) * channels + c;
                    const f32* weight = weights + tap * channels + c;
                    if (count == LANES)
                        for (int lane = 0; lane < LANES; ++lane) sum[lane] += from[lane] * weight[lane];
                    else
                        for (i64 lane = 0; lane < count; ++lane) sum[lane] += from[lane] * weight[lane];
                }
                for (i64 lane = 0; lane < count; ++lane) to[c + lane] = sum[lane];
            }
        }
    }
};

struct Gelu {
    f32* x;

    template <class Arch>
    INLINE void run(i64 begin, i64 end) const {
        f32* values = x;
        for (i64 i = begin; i < end; ++i) values[i] = 0.5f * values[i] * (1.0f + error_function(values[i] * 0.70710678f));
    }
};

}  // namespace superbit
