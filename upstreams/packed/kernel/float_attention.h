// Self-attention in floating point.

#pragma once

#include <algorithm>

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

    template <class Arch>
    INLINE void run(i64 begin, i64 end, Scratch& scratch) const {
        constexpr i64 ROWS = Window::ROWS;
        const i64 queries = window.queries, keys = window.keys, heads = window.heads, dim = window.dim;
        const i64 padded = blocks_of(keys) * LANES, channels = blocks_of(dim) * LANES;
        float *k = scratch.take<float>(padded * dim), *v = scratch.take<float>(channels * padded);
        float *score = scratch.take<float>(ROWS * padded), *zeros = scratch.take<float>(std::max(padded, channels));
        float* tile = scratch.take<float>(ROWS * window.tile_width());
        std::fill(k, k + padded * dim, 0.0f), std::fill(v, v + channels * padded, 0.0f);
        std::fill(zeros, zeros + std::max(padded, channels), 0.0f);
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
                i64 rows = std::min(ROWS, queries - frame), from, until;
                window.tile_keys(batch, frame, rows, LANES, from, until);
                const Window::Tile relative = window.relative_tile<Arch>(item, frame, rows, from, until, tile, scratch);
                const i64 width = until - from;
                FloatProduct scores{q + frame * stride, stride, dim, k + from * dim, dim, width, width / LANES,
                                    zeros, score, width};
                scores.run<Arch>(0, rows, scratch);
                for (i64 r = 0; r < rows; ++r)
                    probabilities<Arch>(batch, frame + r, relative.of(r), from, until, score + r * width);
                FloatProduct context{score, width, width, v + from * LANES, padded, dim, channels / LANES,
                                     zeros, to + frame * stride, stride};
                context.run<Arch>(0, rows, scratch);
            }
            for (i64 frame = 0; frame < queries; ++frame)
                for (i64 c = 0; c < dim; ++c) to[frame * stride + c] *= value_scale;
        }
    }

  private:
    // Replace the scores of one query by its probabilities.
    template <class Arch>
    INLINE void probabilities(i64 batch, i64 frame, const float* bias, i64 from, i64 until, float* score) const {
        const i64 width = until - from;
        const float scale = score_scale, step = alpha, most = highest;
        i64 low, high;
        window.visible_keys(batch, frame, low, high);
        if (low >= high) return std::fill(score, score + std::max<i64>(0, width), 0.0f);
        for (i64 j = 0; j < width; ++j) score[j] *= scale;
        float total = Window::softmax_numerators<Arch>(bias, low, high, from, until, score);
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
