// The keys that each query of an attention sees, the scores of relative positions, and the softmax.

#pragma once

#include <algorithm>
#include <limits>

#include "floats.h"
#include "functions.h"
#include "platform.h"

namespace superbit {

// Scores that depend on the offset from query to key, -reach to reach: products of a query with a key for each offset.
struct RelativeScores {
    const f32* query;  // (batch, queries, heads, dim)
    const f32* keys;   // [head][block of 16 offsets][dim][offset]
    i64 reach;
};

struct Window {
    i64 queries, keys, heads, dim;
    const int64_t* lengths;         // keys of each utterance that are not padding
    i64 first;                      // the key at the position of the first query
    i64 radius;                     // visible frames to either side, at most `keys`; negative: all
    const RelativeScores* relative;  // added to the scores, or null

    static constexpr i64 ROWS = 24;  // queries at a time

    // The visible keys are low to high - 1. A padded frame may have none.
    INLINE void visible_keys(i64 batch, i64 frame, i64& low, i64& high) const {
        low = 0;
        high = std::min<i64>(lengths[batch], keys);
        if (radius < 0) return;
        low = std::max<i64>(low, first + frame - radius);
        high = std::min(high, first + frame + radius + 1);
    }

    // The keys that some of the queries `frame` to `frame + rows - 1` see: from to until - 1, multiples of `step`.
    INLINE void tile_keys(i64 batch, i64 frame, i64 rows, i64 step, i64& from, i64& until) const {
        from = (keys + step - 1) / step * step, until = 0;
        for (i64 r = 0; r < rows; ++r) {
            i64 low, high;
            visible_keys(batch, frame + r, low, high);
            if (low >= high) continue;
            from = std::min(from, low / step * step);
            until = std::max(until, (high + step - 1) / step * step);
        }
        from = std::min(from, until);
    }

    // The relative scores of a tile of queries.
    struct Tile {
        const float* scores = nullptr;
        i64 width = 0, start = 0;

        // scores[key] for the keys that the query sees.
        INLINE const float* of(i64 row) const { return scores ? scores + row * width - start - row : nullptr; }
    };

    INLINE i64 tile_width() const { return relative ? blocks_of(2 * relative->reach + 1) * LANES : 0; }

    // Compute the relative scores of the queries `frame` to `frame + rows - 1` with the keys `from` to `until - 1`, which may
    // lie past the last key. to: ROWS * tile_width() floats.
    template <class Arch>
    INLINE Tile relative_tile(i64 item, i64 frame, i64 rows, i64 from, i64 until, float* to, Scratch& scratch) const {
        if (relative == nullptr || from >= until) return {};
        const i64 reach = relative->reach, batch = item / heads, head = item % heads, stride = heads * dim;
        // Key j lies at offset j - first - frame + reach of the query at `frame`.
        const i64 lowest = std::max<i64>(0, from - first - (frame + rows - 1) + reach) / LANES;
        const i64 highest = std::min(2 * reach, std::min(until, keys) - 1 - first - frame + reach) / LANES;
        const i64 blocks = highest - lowest + 1, panel = blocks_of(2 * reach + 1) * dim * LANES;
        Scratch::Scope scope(scratch);
        float* zeros = scratch.take<float>(blocks * LANES);
        std::fill(zeros, zeros + blocks * LANES, 0.0f);
        FloatProduct product{relative->query + (batch * queries + frame) * stride + head * dim, stride, dim,
                             relative->keys + head * panel + lowest * dim * LANES, dim, blocks * LANES, blocks, zeros, to,
                             blocks * LANES};
        product.run<Arch>(0, rows, scratch);
        return {to, blocks * LANES, lowest * LANES + first + frame - reach};
    }

    // Replace the scores of keys `low` to `high - 1` by exp(score - highest score), and those of the other keys from
    // `from` to `until - 1` by 0. score[0] is the score of key `from`; bias[key] is added, if it is not null. Return the sum.
    // Throw NotANumber on a score of NaN.
    template <class Arch>
    INLINE static float softmax_numerators(const float* bias, i64 low, i64 high, i64 from, i64 until, float* score) {
        if (bias)
            for (i64 j = low; j < high; ++j) score[j - from] += bias[j];
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
