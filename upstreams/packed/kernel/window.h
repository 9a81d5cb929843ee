// The keys that each query of an attention sees, and the softmax over them.

#pragma once

#include <algorithm>
#include <limits>

#include "floats.h"
#include "functions.h"
#include "platform.h"

namespace superbit {

struct Window {
    i64 queries, keys, heads, dim;
    const int64_t* lengths;  // keys of each utterance that are not padding
    i64 first;               // the key at the position of the first query
    i64 radius;              // visible frames to either side, at most `keys`; negative: all
    const f32* relative;     // (batch, heads, queries, 2 reach + 1), added to the scores by offset, or null
    i64 reach;

    // The visible keys are low to high - 1. A padded frame may have none.
    INLINE void visible_keys(i64 batch, i64 frame, i64& low, i64& high) const {
        low = 0;
        high = std::min<i64>(lengths[batch], keys);
        if (radius < 0) return;
        low = std::max<i64>(low, first + frame - radius);
        high = std::min(high, first + frame + radius + 1);
    }

    // Replace the scores of keys `low` to `high - 1` by exp(score - highest score), and those of the other keys from
    // `from` to `until - 1` by 0. score[0] is the score of key `from`. Return the sum. Throw NotANumber on a score of NaN.
    template <class Arch>
    INLINE float softmax_numerators(i64 item, i64 frame, i64 low, i64 high, i64 from, i64 until, float* score) const {
        if (relative) {
            const f32* bias = relative + (item * queries + frame) * (2 * reach + 1);
            for (i64 j = low; j < high; ++j) score[j - from] += bias[j - first - frame + reach];
        }
        const float hidden = -std::numeric_limits<float>::infinity();
        std::fill(score, score + (low - from), hidden);
        std::fill(score + (high - from), score + (until - from), hidden);
        using Vector = VectorOf<Arch>;
        constexpr int length = LENGTH<Arch>;
        Vector highest_lanes = *(const Vector*)score;
        for (i64 j = length; j < until - from; j += length) {
            Vector next = *(const Vector*)(score + j);
            highest_lanes = next > highest_lanes ? next : highest_lanes;
        }
        float highest = highest_lanes[0], lane_sum[LANES] = {}, sum = 0.0f;
        int32_t is_nan[LANES] = {};
        for (int lane = 1; lane < length; ++lane) highest = std::max(highest, highest_lanes[lane]);
        for (i64 j = 0; j < until - from; j += LANES)
            for (int lane = 0; lane < LANES; ++lane) {
                float below = score[j + lane] - highest;
                is_nan[lane] |= below != below;
                score[j + lane] = exponential(below);
                lane_sum[lane] += score[j + lane];
            }
        // `exponential` leaves exp(-87) of a hidden key, too little to change the sum.
        std::fill(score, score + (low - from), 0.0f);
        std::fill(score + (high - from), score + (until - from), 0.0f);
        int32_t any_nan = 0;
        for (int lane = 0; lane < LANES; ++lane) sum += lane_sum[lane], any_nan |= is_nan[lane];
        if (any_nan) throw NotANumber();
        return sum;
    }
};

}  // namespace superbit
