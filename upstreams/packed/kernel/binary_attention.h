// Self-attention with both products on bits.

#pragma once

#include <algorithm>

#include "platform.h"
#include "window.h"

namespace superbit {

// An item is one head of one utterance.
struct BinaryAttention {
    const u32 *query, *key, *value;  // (batch, queries or keys, heads, words of a head)
    Window window;
    float score_scale;  // of integer scores: alpha of query and key, divided by sqrt(dim)
    float threshold;    // a probability above it counts as 1: half its alpha
    float value_scale;  // alpha of probability and value
    f32* out;           // (batch, queries, heads, dim)

    template <class Arch>
    INLINE void run(i64 begin, i64 end, Scratch& scratch) const {
        const i64 queries = window.queries, keys = window.keys, heads = window.heads, dim = window.dim;
        const i64 words = words_of(dim), channels = words * 32, key_words = words_of(keys), padded = key_words * 32;
        uint32_t *k = scratch.take<uint32_t>(words * padded), *v = scratch.take<uint32_t>(key_words * channels);
        uint32_t *selected = scratch.take<uint32_t>(key_words), *sum = scratch.take<uint32_t>(channels);
        uint32_t* count = scratch.take<uint32_t>(padded);
        float *score = scratch.take<float>(padded), *tile = scratch.take<float>(Window::ROWS * window.tile_width());
        // exp(score - highest score) by the number of additional differing bits
        const i64 entries = std::max<i64>(64, dim + 1);
        float* table = scratch.take<float>(entries);
        std::fill(table, table + entries, 0.0f);
        for (i64 n = 0; n <= dim; ++n) table[n] = exponential(-2.0f * score_scale * float(n));
        for (i64 item = begin; item < end; ++item) {
            i64 batch = item / heads, head = item % heads;
            auto row = [&](const u32* x, i64 frames, i64 frame) ALWAYS -> const u32* {
                return x + ((batch * frames + frame) * heads + head) * words;
            };
            for (i64 w = 0; w < words; ++w) {  // word by word, so that the lanes of a vector are keys
                for (i64 frame = 0; frame < keys; ++frame) k[w * padded + frame] = row(key, keys, frame)[w];
                std::fill(k + w * padded + keys, k + (w + 1) * padded, 0u);
            }
            transpose(row(value, keys, 0), heads * words, words, v);
            for (i64 start = 0; start < queries; start += Window::ROWS) {
                const i64 rows = std::min(Window::ROWS, queries - start);
                i64 first_key, last_key;
                window.tile_keys(batch, start, rows, 32, first_key, last_key);
                const Window::Tile relative =
                    window.relative_tile<Arch>(item, start, rows, first_key, last_key, tile, scratch);
                for (i64 frame = start; frame < start + rows; ++frame) {
                    i64 low, high;
                    window.visible_keys(batch, frame, low, high);
                    f32* to = out + ((batch * queries + frame) * heads + head) * dim;
                    if (low >= high) {
                        for (i64 c = 0; c < dim; ++c) to[c] = 0.0f;
                        continue;
                    }
                    i64 from = low / 32 * 32, until = std::min(padded, (high + 31) / 32 * 32);
                    const u32* q = row(query, queries, frame);
                    if constexpr (Arch::SELECTS_BY_COUNT)
                        if (!window.relative) {
                            Arch::select_keys(*this, q, k, padded, low, high, count, table, selected);
                            Arch::sum_values(*this, selected, v, channels, from / 32, until / 32, to);
                            continue;
                        }
                    scores<Arch>(q, k, padded, words, from, until, count, score);
                    float total = Window::softmax_numerators<Arch>(relative.of(frame - start), low, high, from, until,
                                                                   score + from);
                    Arch::pack(score + from, until - from, nullptr, threshold * total, true, &selected[from / 32]);
                    if constexpr (Arch::SELECTS_BY_COUNT)
                        Arch::sum_values(*this, selected, v, channels, from / 32, until / 32, to);
                    else
                        sum_values<Arch>(selected, v, channels, from / 32, until / 32, sum, to);
                }
            }
        }
    }

  private:
    // Bit `frame` of v[frame / 32][channel] = bit `channel` of the value at that frame.
    INLINE void transpose(const u32* values, i64 stride, i64 words, uint32_t* v) const {
        std::fill(v, v + words_of(window.keys) * words * 32, 0u);
        for (i64 frame = 0; frame < window.keys; ++frame)
            for (i64 w = 0; w < words; ++w) {
                uint32_t word = values[frame * stride + w];
                uint32_t* to = v + (frame / 32 * words + w) * 32;
                for (int c = 0; c < 32; ++c) to[c] |= (word >> c & 1u) << (frame % 32);
            }
    }

    template <class Arch>
    INLINE void scores(const u32* q, const uint32_t* k, i64 padded, i64 words, i64 from, i64 until,
                       uint32_t* __restrict count, float* __restrict score) const {
        std::fill(count + from, count + until, 0u);
        for (i64 w = 0; w < words; ++w) {
            const uint32_t word = q[w];
            const uint32_t* __restrict keys = k + w * padded;
            for (i64 j = from; j < until; ++j) count[j] += Arch::ones(word ^ keys[j]);
        }
        const float scale = score_scale;
        const int32_t most = int32_t(window.dim);
        for (i64 j = from; j < until; ++j) score[j] = scale * float(most - 2 * int32_t(count[j]));
    }

    template <class Arch>
    INLINE void sum_values(const uint32_t* selected, const uint32_t* v, i64 channels, i64 from, i64 until,
                           uint32_t* __restrict sum, f32* to) const {
        std::fill(sum, sum + channels, 0u);
        uint32_t count = 0;
        for (i64 w = from; w < until; ++w) {
            if (selected[w] == 0) continue;
            count += uint32_t(__builtin_popcount(selected[w]));
            const uint32_t word = selected[w];
            const uint32_t* __restrict values = v + w * channels;
            for (i64 c = 0; c < channels; ++c) sum[c] += Arch::ones(word & values[c]);
        }
        for (i64 c = 0; c < window.dim; ++c) to[c] = value_scale * float(2 * int32_t(sum[c]) - int32_t(count));
    }
};

namespace generic {

struct Attention {
    static constexpr bool SELECTS_BY_COUNT = false;  // true: provides `select_keys` and `sum_values`
};

}  // namespace generic
}  // namespace superbit
