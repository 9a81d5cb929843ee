// Bytes times weights of +1 and -1 with AVX-512: four bits of 32 outputs at once look up a table of the 16 signed sums of
// four inputs, in 16 bits.

#pragma once

#include <immintrin.h>

#include "../bytes.h"

namespace superbit::avx512 {

struct Bytes {
    template <class Arch>
    AVX512 static void byte_product(const ByteProduct& product, i64 begin, i64 end, Scratch& scratch) {
        const i64 words = product.words, blocks = product.blocks, outputs = product.outputs;
        const i64 table = words * 8 * 16;  // entries of a row
        int16_t* tables = scratch.take<int16_t>(ROWS * table);
        alignas(64) int32_t sums[ROWS * PAIRS * 32];
        for (i64 row = begin; row < end; row += ROWS) {
            int rows = int(std::min<i64>(ROWS, end - row));
            for (int r = 0; r < rows; ++r) fill_table(product.bytes + (row + r) * words * 32, words, tables + r * table);
            for (i64 block = 0; block < blocks;) {
                const int pairs = rows == ROWS && blocks - block >= 2 * PAIRS ? PAIRS : 1;
                if (pairs == PAIRS)
                    sum_entries<ROWS, PAIRS>(product, tables, block, sums);
                else
                    for (int r = 0; r < rows; ++r) sum_entries<1, 1>(product, tables + r * table, block, sums + r * 32);
                i64 output = block * LANES, count = std::min<i64>(pairs * 32, outputs - output);
                for (int r = 0; r < rows; ++r)
                    product.affine.apply<PAIRS * 32>(sums + r * pairs * 32, output, count,
                                                     product.out + (row + r) * outputs + output);
                block += 2 * pairs;
            }
        }
    }

    // sums[row][output] = sum of bytes * weights, for two blocks.
    template <int rows>
    AVX512 static void multiply_int8(const uint8_t* bytes, i64 inputs, const int8_t* panel, int32_t* sums) {
        __m512i sum[rows][2];
        for (int row = 0; row < rows; ++row) sum[row][0] = sum[row][1] = _mm512_setzero_si512();
        for (i64 k = 0; k < inputs; k += 4) {
            __m512i left = _mm512_loadu_si512(panel + k * 32), right = _mm512_loadu_si512(panel + k * 32 + 64);
#pragma GCC unroll 8
            for (int row = 0; row < rows; ++row) {
                int32_t four;
                std::memcpy(&four, bytes + row * inputs + k, 4);
                __m512i x = _mm512_set1_epi32(four);
                sum[row][0] = _mm512_dpbusd_epi32(sum[row][0], x, left);
                sum[row][1] = _mm512_dpbusd_epi32(sum[row][1], x, right);
            }
        }
        for (int row = 0; row < rows; ++row) {
            _mm512_storeu_si512(sums + row * 32, sum[row][0]);
            _mm512_storeu_si512(sums + row * 32 + 16, sum[row][1]);
        }
    }

  private:
    static constexpr int ROWS = 4, PAIRS = 4;         // rows, and pairs of blocks, at a time
    static constexpr i64 WORDS_BEFORE_OVERFLOW = 4;  // 32 sums of four bytes, at most 32 * 1020, fit into 16 bits

    // table[four inputs][n] = sum over the four inputs b: +byte if bit b of n is set, else -byte.
    AVX512 static void fill_table(const uint8_t* from, i64 words, int16_t* table) {
        alignas(64) int8_t signs[16][4];
        for (int n = 0; n < 16; ++n)
            for (int b = 0; b < 4; ++b) signs[n][b] = (n >> b & 1) ? 1 : -1;
        const __m512i sign = _mm512_load_si512(signs);
        for (i64 k = 0; k < words * 32; k += 4) {
            int32_t four;
            std::memcpy(&four, from + k, 4);
            __m512i sum = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi32(four), sign);
            _mm256_storeu_si256((__m256i*)(table + k * 4), _mm512_cvtepi32_epi16(sum));
        }
    }

    template <int rows, int pairs>
    AVX512 static void sum_entries(const ByteProduct& product, const int16_t* tables, i64 block, int32_t* sums) {
        const i64 words = product.words, blocks = product.blocks;
        const u32* weights = product.weights;
        alignas(64) int16_t even[32], odd[32];  // select the lower and the upper halves of the words of two blocks
        for (int lane = 0; lane < 32; ++lane) even[lane] = int16_t(2 * lane), odd[lane] = int16_t(2 * lane + 1);
        const __m512i lower = _mm512_load_si512(even), upper = _mm512_load_si512(odd);
        for (i64 from = 0; from < words || from == 0; from += WORDS_BEFORE_OVERFLOW) {
            __m512i sum[rows][pairs];
            for (int r = 0; r < rows; ++r)
                for (int w = 0; w < pairs; ++w) sum[r][w] = _mm512_setzero_si512();
            for (i64 k = from; k < std::min(words, from + WORDS_BEFORE_OVERFLOW); ++k)
                for (int half = 0; half < 2; ++half) {
                    __m512i index[pairs];
#pragma GCC unroll 4
                    for (int w = 0; w < pairs; ++w) {
                        // If the number of blocks is odd, the last block is its own partner.
                        const i64 left = block + 2 * w, right = std::min(left + 1, blocks - 1);
                        index[w] = _mm512_permutex2var_epi16(_mm512_loadu_si512(weights + (left * words + k) * LANES),
                                                             half ? upper : lower,
                                                             _mm512_loadu_si512(weights + (right * words + k) * LANES));
                    }
#pragma GCC unroll 4
                    for (int four = 0; four < 4; ++four) {
#pragma GCC unroll 4
                        for (int r = 0; r < rows; ++r) {
                            const int16_t* entry = tables + ((r * words + k) * 8 + half * 4 + four) * 16;
                            // Twice the same 16 entries, so that the fifth bit of an index does not matter.
                            __m512i table = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i*)entry));
#pragma GCC unroll 4
                            for (int w = 0; w < pairs; ++w)
                                sum[r][w] = _mm512_add_epi16(sum[r][w], _mm512_permutexvar_epi16(index[w], table));
                        }
#pragma GCC unroll 4
                        for (int w = 0; w < pairs; ++w) index[w] = _mm512_srli_epi16(index[w], 4);
                    }
                }
            for (int r = 0; r < rows; ++r)
                for (int w = 0; w < pairs; ++w) {
                    int32_t* to = sums + (r * pairs + w) * 32;
                    __m512i left = _mm512_cvtepi16_epi32(_mm512_castsi512_si256(sum[r][w]));
                    __m512i right = _mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64(sum[r][w], 1));
                    if (from > 0) {
                        left = _mm512_add_epi32(left, _mm512_loadu_si512(to));
                        right = _mm512_add_epi32(right, _mm512_loadu_si512(to + 16));
                    }
                    _mm512_storeu_si512(to, left);
                    _mm512_storeu_si512(to + 16, right);
                }
        }
    }
};

}  // namespace superbit::avx512
