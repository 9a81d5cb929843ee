// Self-attention in floating point.

#pragma once

#include <algorithm>
#include <vector>

#include "floats.h"
#include "functions.h"
#include "platform.h"
#include "window.h"

namespace superbit {

// An item is one head of one utterance. If `highest` is not 0, the probabilities become clip(round(p / alpha), 0, highest);
// queries, keys and values are then whole numbers too.
struct FloatAttention {
    const f32 *query, *key, *value;  // (batch, queries or keys, heads, dim)
    Window window;
    float score_scale, alpha, highest, value_scale;
    f32* out;  // (batch, queries, heads, dim)

    static constexpr i64 ROWS = 24;  // queries at a time

    template <class Arch>
    INLINE void run(i64 begin, i64 end) const {
        const i64 queries = window.queries, keys = window.keys, heads = window.heads, dim = window.dim;
        const i64 padded = blocks_of(keys) * LANES, channels = blocks_of(dim) * LANES;
        std::vector<float> k(padded * dim), v(channels * padded), score(ROWS * padded), zeros(std::max(padded, channels));
        for (i64 item = begin; item < end; ++item) {
            i64 batch = item / heads, head = item % heads;
            const i64 stride = heads * dim;
            const f32* q = query + batch * queries * stride + head * dim;
            f32* to = out + batch * queries * stride + head * dim;
            for (i64 frame = 0; frame < keys; ++frame)
                for (i64 c = 0; c < dim; ++c) {
                    i64 from = ((batch * keys + frame) * heads + head) * dim + c;
                    k[(frame / LANES * dim + c) * LANES + frame % LANES] = key[from];
                    v[(c / LANES * padded + frame) * LANES + c % LANES] = value[from];
                }
            for (i64 frame = 0; frame < queries; frame += ROWS) {
                i64 rows = std::min(ROWS, queries - frame), from = padded, until = 0;
                for (i64 r = 0; r < rows; ++r) {
                    i64 low, high;
                    window.visible_keys(batch, frame + r, low, high);
                    if (low >= high) continue;
                    from = std::min(from, low / LANES * LANES);
                    until = std::max(until, (high + LANES - 1) / LANES * LANES);
                }
                i64 width = std::max<i64>(0, until - from);
                FloatProduct scores{q + frame * stride, stride, dim, k.data() + from * dim, dim, width, width / LANES,
                                    zeros.data(), score.data(), width};
                scores.run<Arch>(0, rows);
                for (i64 r = 0; r < rows; ++r) probabilities<Arch>(item, frame + r, from, until, score.data() + r * width);
                FloatProduct context{score.data(), width, width, v.data() + from * LANES, padded, dim, channels / LANES,
                                     zeros.data(), to + frame * stride, stride};
                context.run<Arch>(0, rows);
            }
            for (i64 frame = 0; frame < queries; ++frame)
                for (i64 c = 0; c < dim; ++c) to[frame * stride + c] *= value_scale;
        }
    }

  private:
    // Replace the scores of one query by its probabilities.
    template <class Arch>
    INLINE void probabilities(i64 item, i64 frame, i64 from, i64 until, float* score) const {
        const i64 width = until - from;
        const float scale = score_scale, step = alpha, most = highest;
        i64 low, high;
        window.visible_keys(item / window.heads, frame, low, high);
        if (low >= high) return std::fill(score, score + std::max<i64>(0, width), 0.0f);
        for (i64 j = 0; j < width; ++j) score[j] *= scale;
        float total = window.softmax_numerators<Arch>(item, frame, low, high, from, until, score);
        for (i64 j = 0; j < width; ++j) score[j] /= total;
        if (most == 0.0f) return;
        for (i64 j = 0; j < width; ++j) {
            float x = score[j] / step;
            x = x < most ? x : most;
            score[j] = round_to_even(x);
        }
    }
};

}  // namespace superbit
