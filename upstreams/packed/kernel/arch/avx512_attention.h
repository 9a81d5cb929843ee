// Binary attention with AVX-512: keys are selected in registers, without probabilities.

#pragma once

#include <immintrin.h>

#include "../binary_attention.h"

namespace superbit::avx512 {

struct Attention {
    static constexpr bool SELECTS_BY_COUNT = true;

    // Set bit j of `selected` if key j has a probability above the threshold: what `scores`, `softmax_numerators` and
    // `pack` compute one after the other. Without relative positions the highest score belongs to the key with the fewest
    // differing bits, and exp(score - highest score) takes few values: table[n] for n additional differing bits.
    AVX512 static void select_keys(const BinaryAttention& attention, const u32* q, const uint32_t* k, i64 padded, i64 low,
                                   i64 high, uint32_t* count, const float* table, uint32_t* selected) {
        const i64 dim = attention.window.dim, words = words_of(dim), from = low / 32 * 32, until = (high + 31) / 32 * 32;
        auto visible = [&](i64 j) AVX512 -> __mmask16 {  // of the 16 keys from j on
            uint32_t mask = 0xffff;
            if (j < low) mask &= low - j < 16 ? 0xffffu << (low - j) : 0;
            if (j + 16 > high) mask &= j < high ? (1u << (high - j)) - 1 : 0;
            return __mmask16(mask);
        };
        __m512i fewest = _mm512_set1_epi32(int32_t(dim));
        for (i64 j = from; j < until; j += 16) {
            __m512i sum = _mm512_setzero_si512();
            for (i64 w = 0; w < words; ++w) {
                __m512i differing = _mm512_xor_si512(_mm512_set1_epi32(int(q[w])), _mm512_loadu_si512(k + w * padded + j));
                sum = _mm512_add_epi32(sum, _mm512_popcnt_epi32(differing));
            }
            fewest = _mm512_mask_min_epi32(fewest, visible(j), fewest, sum);
            _mm512_storeu_si512(count + j, sum);
        }
        const int32_t least = _mm512_reduce_min_epi32(fewest);
        const __m512 tables[4] = {_mm512_loadu_ps(table), _mm512_loadu_ps(table + 16), _mm512_loadu_ps(table + 32),
                                  _mm512_loadu_ps(table + 48)};
        __m512 sum = _mm512_setzero_ps();
        for (i64 j = from; j < until; j += 16) {
            __m512i more = _mm512_sub_epi32(_mm512_loadu_si512(count + j), _mm512_set1_epi32(least));
            __m512 e = _mm512_mask_blend_ps(_mm512_test_epi32_mask(more, _mm512_set1_epi32(32)),
                                            _mm512_permutex2var_ps(tables[0], more, tables[1]),
                                            _mm512_permutex2var_ps(tables[2], more, tables[3]));
            const __mmask16 beyond = _mm512_mask_cmpgt_epi32_mask(visible(j), more, _mm512_set1_epi32(63));
            if (beyond) e = _mm512_mask_i32gather_ps(e, beyond, more, table, 4);
            sum = _mm512_mask_add_ps(sum, visible(j), sum, e);
        }
        const float bound = attention.threshold * _mm512_reduce_add_ps(sum);
        int32_t limit = 0;  // a key is selected if it has fewer additional differing bits than this
        for (int part = 0; part < 4; ++part)
            limit += __builtin_popcount(_mm512_cmp_ps_mask(tables[part], _mm512_set1_ps(bound), _CMP_GT_OQ));
        while (limit >= 64 && limit <= dim && table[limit] > bound) ++limit;
        for (i64 j = from; j < until; j += 32) {
            const __m512i most = _mm512_set1_epi32(least + limit);
            uint32_t right = _mm512_mask_cmplt_epi32_mask(visible(j), _mm512_loadu_si512(count + j), most);
            uint32_t left = _mm512_mask_cmplt_epi32_mask(visible(j + 16), _mm512_loadu_si512(count + j + 16), most);
            selected[j / 32] = right | left << 16;
        }
    }

    // to = value_scale * (sum of the selected values), from the words `from` to `until - 1` of `selected`.
    AVX512 static void sum_values(const BinaryAttention& attention, const uint32_t* selected, const uint32_t* v, i64 channels,
                                  i64 from, i64 until, f32* to) {
        const i64 dim = attention.window.dim;
        int32_t count = 0;
        for (i64 w = from; w < until; ++w) count += __builtin_popcount(selected[w]);
        for (i64 c = 0; c < dim; c += 16) {
            __m512i sum = _mm512_setzero_si512();
            for (i64 w = from; w < until; ++w) {
                __m512i both = _mm512_and_si512(_mm512_set1_epi32(int(selected[w])), _mm512_loadu_si512(v + w * channels + c));
                sum = _mm512_add_epi32(sum, _mm512_popcnt_epi32(both));
            }
            sum = _mm512_sub_epi32(_mm512_slli_epi32(sum, 1), _mm512_set1_epi32(count));
            i64 left = dim - c;
            _mm512_mask_storeu_ps(to + c, left >= 16 ? 0xffff : __mmask16((1u << left) - 1),
                                  _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(attention.value_scale)));
        }
    }
};

}  // namespace superbit::avx512
