// Bits with AVX-512: comparison masks and VPOPCNTD.

#pragma once

#include <immintrin.h>

#include "../binary.h"

namespace superbit::avx512 {

struct Binary : generic::Binary {
    static constexpr int BINARY_ROWS = 6;

    AVX512 static void pack(const f32* values, i64 columns, const f32* shift, float threshold, bool strict, u32* bits) {
        __m512 bound = _mm512_set1_ps(threshold);
        auto half = [&](i64 k) AVX512 -> uint32_t {
            if (k >= columns) return 0;
            __mmask16 valid = columns - k >= 16 ? 0xffff : __mmask16((1u << (columns - k)) - 1);
            __m512 value = _mm512_maskz_loadu_ps(valid, values + k);
            if (shift) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(valid, shift + k));
            return strict ? _mm512_mask_cmp_ps_mask(valid, value, bound, _CMP_GT_OQ)
                          : _mm512_mask_cmp_ps_mask(valid, value, bound, _CMP_GE_OQ);
        };
        for (i64 k = 0; k < columns; k += 32) bits[k / 32] = half(k) | half(k + 16) << 16;
    }

    template <int rows, int blocks>
    AVX512 static void count_differing(const u32* bits, i64 words, const u32* weights, int32_t* counts) {
        __m512i sum[rows][blocks];
        for (int row = 0; row < rows; ++row)
            for (int block = 0; block < blocks; ++block) sum[row][block] = _mm512_setzero_si512();
        for (i64 k = 0; k < words; ++k) {
            __m512i weight[blocks];
            for (int block = 0; block < blocks; ++block)
                weight[block] = _mm512_loadu_si512(weights + (block * words + k) * LANES);
#pragma GCC unroll 8
            for (int row = 0; row < rows; ++row) {
                __m512i word = _mm512_set1_epi32(int(bits[row * words + k]));
#pragma GCC unroll 4
                for (int block = 0; block < blocks; ++block) {
                    __m512i count = _mm512_popcnt_epi32(_mm512_xor_si512(word, weight[block]));
                    sum[row][block] = _mm512_add_epi32(sum[row][block], count);
                }
            }
        }
        for (int row = 0; row < rows; ++row)
            for (int block = 0; block < blocks; ++block)
                _mm512_storeu_si512(counts + (row * blocks + block) * LANES, sum[row][block]);
    }

    AVX512 static uint16_t below(const int32_t* counts, const i32* limits) {
        return _mm512_cmplt_epi32_mask(_mm512_loadu_si512(counts), _mm512_loadu_si512(limits));
    }

    AVX512 static uint32_t popcount_peak(i64 rounds) {
        __m512i sum[12], word = _mm512_set1_epi32(0x5a5a5a5a);
        for (int i = 0; i < 12; ++i) sum[i] = _mm512_set1_epi32(i);
        for (i64 t = 0; t < rounds; ++t)
#pragma GCC unroll 12
            for (int i = 0; i < 12; ++i)
                sum[i] = _mm512_add_epi32(sum[i], _mm512_popcnt_epi32(_mm512_xor_si512(sum[i], word)));
        for (int i = 1; i < 12; ++i) sum[0] = _mm512_add_epi32(sum[0], sum[i]);
        return uint32_t(_mm512_reduce_add_epi32(sum[0]));
    }
};

}  // namespace superbit::avx512
