// Floats times weights of +1 and -1 with AVX-512: four bits of 16 outputs at once look up a table of the 16 signed sums of
// four inputs.

#pragma once

#include <immintrin.h>

#include "../signs.h"

namespace superbit::avx512 {

struct Signs {
    template <class Arch>
    INLINE static void sign_product(const SignProduct& product, i64 begin, i64 end, Scratch& scratch) {
        const i64 inputs = product.inputs, words = words_of(inputs), blocks = product.blocks;
        float* tables = scratch.take<float>(ROWS * words * 8 * LANES);
        alignas(64) float sums[ROWS * BLOCKS * LANES];
        for (i64 row = begin; row < end; row += ROWS) {
            int rows = int(std::min<i64>(ROWS, end - row));
            for (int r = 0; r < rows; ++r)
                fill_table(product.x + (row + r) * inputs, inputs, tables + r * words * 8 * LANES);
            for (i64 block = 0; block < blocks;) {
                int group = rows == ROWS && blocks - block >= BLOCKS ? BLOCKS : 1;
                const u32* weight = product.weights + block * words * LANES;
                if (group == BLOCKS)
                    sum_entries<ROWS, BLOCKS>(tables, words, weight, sums);
                else
                    for (int r = 0; r < rows; ++r)
                        sum_entries<1, 1>(tables + r * words * 8 * LANES, words, weight, sums + r * LANES);
                for (int r = 0; r < rows; ++r) product.finish(row + r, block, group, sums + r * group * LANES);
                block += group;
            }
        }
    }

  private:
    static constexpr int ROWS = 4, BLOCKS = 4;  // at a time

    // table[four inputs][n] = sum over the four inputs b: +x if bit b of n is set, else -x.
    INLINE static void fill_table(const f32* from, i64 inputs, float* table) {
        for (i64 k = 0; k < words_of(inputs) * 32; k += 4) {
            float four[4];
            for (int b = 0; b < 4; ++b) four[b] = k + b < inputs ? from[k + b] : 0.0f;
            for (int n = 0; n < 16; ++n) {
                float sum = 0.0f;
                for (int b = 0; b < 4; ++b) sum += (n >> b & 1) ? four[b] : -four[b];
                table[k * 4 + n] = sum;
            }
        }
    }

    template <int rows, int blocks>
    AVX512 static void sum_entries(const float* tables, i64 words, const u32* weights, float* sums) {
        __m512 sum[rows][blocks];
        for (int r = 0; r < rows; ++r)
            for (int b = 0; b < blocks; ++b) sum[r][b] = _mm512_setzero_ps();
        for (i64 k = 0; k < words; ++k) {
            __m512i weight[blocks];
            for (int b = 0; b < blocks; ++b) weight[b] = _mm512_loadu_si512(weights + (b * words + k) * LANES);
            for (int four = 0; four < 8; ++four) {
#pragma GCC unroll 4
                for (int r = 0; r < rows; ++r) {
                    __m512 table = _mm512_loadu_ps(tables + ((r * words + k) * 8 + four) * LANES);
#pragma GCC unroll 4
                    for (int b = 0; b < blocks; ++b)  // the lowest four bits of a lane are the index
                        sum[r][b] = _mm512_add_ps(sum[r][b], _mm512_permutexvar_ps(weight[b], table));
                }
#pragma GCC unroll 4
                for (int b = 0; b < blocks; ++b) weight[b] = _mm512_srli_epi32(weight[b], 4);
            }
        }
        for (int r = 0; r < rows; ++r)
            for (int b = 0; b < blocks; ++b) _mm512_storeu_ps(sums + (r * blocks + b) * LANES, sum[r][b]);
    }
};

}  // namespace superbit::avx512
