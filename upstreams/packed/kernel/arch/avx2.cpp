// The AVX2 level: intrinsics where the compiler does not vectorize the generic twin well.

#include "../operations.h"
#include "../parallel.h"

#if SUPERBIT_X86

#include <immintrin.h>

namespace superbit {
namespace avx2 {
namespace {

struct Binary : generic::Binary {
    AVX2 static void pack(const f32* values, i64 columns, const f32* shift, float threshold, bool strict, u32* bits) {
        __m256 bound = _mm256_set1_ps(threshold);
        i64 full = columns / 32 * 32;
        for (i64 k = 0; k < full; k += 32) {
            uint32_t word = 0;
            for (int j = 0; j < 32; j += 8) {
                __m256 value = _mm256_loadu_ps((const float*)(values + k + j));
                if (shift) value = _mm256_add_ps(value, _mm256_loadu_ps((const float*)(shift + k + j)));
                __m256 above = strict ? _mm256_cmp_ps(value, bound, _CMP_GT_OQ) : _mm256_cmp_ps(value, bound, _CMP_GE_OQ);
                word |= uint32_t(_mm256_movemask_ps(above)) << j;
            }
            bits[k / 32] = word;
        }
        if (full < columns)
            generic::Binary::pack(values + full, columns - full, shift ? shift + full : nullptr, threshold, strict,
                                  bits + full / 32);
    }

    // A byte counts up to 8 differing bits a word. Bytes are added up into 32 bits before they can overflow.
    template <int rows, int blocks>
    AVX2 static void count_differing(const u32* bits, i64 words, const u32* weights, int32_t* counts) {
        const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2,
                                               2, 3, 2, 3, 3, 4);
        const __m256i low = _mm256_set1_epi8(15), one8 = _mm256_set1_epi8(1), one16 = _mm256_set1_epi16(1);
        for (int block = 0; block < blocks; ++block)
            for (int half = 0; half < 2; ++half) {
                const u32* column = weights + block * words * LANES + half * 8;
                __m256i total[rows];
                for (int row = 0; row < rows; ++row) total[row] = _mm256_setzero_si256();
                for (i64 from = 0; from < words; from += 31) {
                    __m256i sum[rows];
                    for (int row = 0; row < rows; ++row) sum[row] = _mm256_setzero_si256();
                    for (i64 k = from; k < std::min(words, from + 31); ++k) {
                        __m256i weight = _mm256_loadu_si256((const __m256i*)(column + k * LANES));
#pragma GCC unroll 4
                        for (int row = 0; row < rows; ++row) {
                            __m256i x = _mm256_xor_si256(_mm256_set1_epi32(int(bits[row * words + k])), weight);
                            __m256i right = _mm256_shuffle_epi8(table, _mm256_and_si256(x, low));
                            __m256i left = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi32(x, 4), low));
                            sum[row] = _mm256_add_epi8(sum[row], _mm256_add_epi8(left, right));
                        }
                    }
                    for (int row = 0; row < rows; ++row)
                        total[row] = _mm256_add_epi32(total[row],
                                                      _mm256_madd_epi16(_mm256_maddubs_epi16(sum[row], one8), one16));
                }
                for (int row = 0; row < rows; ++row)
                    _mm256_storeu_si256((__m256i*)(counts + (row * blocks + block) * LANES + half * 8), total[row]);
            }
    }

    // AVX2 has no vector popcount: neighbouring bits are added instead, which the compiler vectorizes.
    INLINE static uint32_t ones(uint32_t x) {
        x -= (x >> 1) & 0x55555555u;
        x = (x & 0x33333333u) + ((x >> 2) & 0x33333333u);
        return (((x + (x >> 4)) & 0x0f0f0f0fu) * 0x01010101u) >> 24;
    }
};

struct Bytes : generic::Bytes {
    // The weights are +1 and -1, so the sum of a pair fits into 16 bits.
    template <int rows>
    AVX2 static void multiply_bytes(const uint8_t* bytes, i64 inputs, const int8_t* panel, int32_t* sums) {
        const __m256i one = _mm256_set1_epi16(1);
        for (int part = 0; part < 4; ++part) {
            __m256i sum[rows];
            for (int row = 0; row < rows; ++row) sum[row] = _mm256_setzero_si256();
            for (i64 k = 0; k < inputs; k += 4) {
                __m256i weight = _mm256_loadu_si256((const __m256i*)(panel + k * 32 + part * 32));
#pragma GCC unroll 12
                for (int row = 0; row < rows; ++row) {
                    int32_t four;
                    std::memcpy(&four, bytes + row * inputs + k, 4);
                    __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi32(four), weight);
                    sum[row] = _mm256_add_epi32(sum[row], _mm256_madd_epi16(pairs, one));
                }
            }
            for (int row = 0; row < rows; ++row) _mm256_storeu_si256((__m256i*)(sums + row * 32 + part * 8), sum[row]);
        }
    }

    // The even and the odd bytes are multiplied in 16 bits: the sum of a pair of bytes would not fit.
    template <int rows>
    AVX2 static void multiply_int8(const uint8_t* bytes, i64 inputs, const int8_t* panel, int32_t* sums) {
        const __m256i low = _mm256_set1_epi16(255);
        for (int part = 0; part < 4; ++part) {
            __m256i sum[rows];
            for (int row = 0; row < rows; ++row) sum[row] = _mm256_setzero_si256();
            for (i64 k = 0; k < inputs; k += 4) {
                __m256i weight = _mm256_loadu_si256((const __m256i*)(panel + k * 32 + part * 32));
                __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(weight, 8), 8), odd = _mm256_srai_epi16(weight, 8);
#pragma GCC unroll 8
                for (int row = 0; row < rows; ++row) {
                    int32_t four;
                    std::memcpy(&four, bytes + row * inputs + k, 4);
                    __m256i x = _mm256_set1_epi32(four);
                    sum[row] = _mm256_add_epi32(sum[row], _mm256_madd_epi16(_mm256_and_si256(x, low), even));
                    sum[row] = _mm256_add_epi32(sum[row], _mm256_madd_epi16(_mm256_srli_epi16(x, 8), odd));
                }
            }
            for (int row = 0; row < rows; ++row) _mm256_storeu_si256((__m256i*)(sums + row * 32 + part * 8), sum[row]);
        }
    }
};

struct Floats {
    static constexpr int FLOAT_ROWS = 6, FLOAT_BLOCKS = 1;
    using Vector = float __attribute__((vector_size(32), aligned(1), may_alias));
};

struct Avx2 : Binary, Bytes, generic::Signs, Floats, generic::Attention {};

}  // namespace
}  // namespace avx2

template <class Operation>
AVX2 void run_avx2(const Operation& operation, i64 begin, i64 end, Scratch& scratch) {
    operation.template run<avx2::Avx2>(begin, end, scratch);
}

#define COMPILE(Operation) template void run_avx2<Operation>(const Operation&, i64, i64, Scratch&);
SUPERBIT_FOR_EVERY_OPERATION(COMPILE)

}  // namespace superbit

#endif
