// The NEON levels of 64-bit ARM: byte popcounts (CNT), and dot products of bytes where the processor has them (SDOT, UDOT).

#include "../operations.h"
#include "../parallel.h"

#if SUPERBIT_ARM

#include <arm_neon.h>

namespace superbit {
namespace neon {
namespace {

struct Binary : generic::Binary {
    static void pack(const f32* values, i64 columns, const f32* shift, float threshold, bool strict, u32* bits) {
        const float32x4_t bound = vdupq_n_f32(threshold);
        const uint16x8_t powers = {1, 2, 4, 8, 16, 32, 64, 128};
        const i64 full = columns / 32 * 32;
        for (i64 k = 0; k < full; k += 32) {
            uint32_t word = 0;
            for (int j = 0; j < 32; j += 8) {
                uint32x4_t above[2];
                for (int half = 0; half < 2; ++half) {
                    float32x4_t value = load(values + k + j + 4 * half);
                    if (shift) value = vaddq_f32(value, load(shift + k + j + 4 * half));
                    above[half] = strict ? vcgtq_f32(value, bound) : vcgeq_f32(value, bound);
                }
                const uint16x8_t both = vcombine_u16(vmovn_u32(above[0]), vmovn_u32(above[1]));
                word |= uint32_t(vaddvq_u16(vandq_u16(both, powers))) << j;
            }
            bits[k / 32] = word;
        }
        if (full < columns)
            generic::Binary::pack(values + full, columns - full, shift ? shift + full : nullptr, threshold, strict, bits + full / 32);
    }

    // A byte counts up to 8 differing bits a word. Bytes are added up into 32 bits before they can overflow.
    template <int rows, int blocks>
    static void count_differing(const u32* bits, i64 words, const u32* weights, int32_t* counts) {
        for (int block = 0; block < blocks; ++block) {
            const u32* column = weights + block * words * LANES;
            uint32x4_t total[rows][4];
            for (int row = 0; row < rows; ++row)
                for (int part = 0; part < 4; ++part) total[row][part] = vdupq_n_u32(0);
            for (i64 from = 0; from < words; from += 31) {
                uint8x16_t sum[rows][4];
                for (int row = 0; row < rows; ++row)
                    for (int part = 0; part < 4; ++part) sum[row][part] = vdupq_n_u8(0);
                for (i64 k = from; k < std::min(words, from + 31); ++k)
#pragma GCC unroll 4
                    for (int part = 0; part < 4; ++part) {
                        const uint8x16_t weight = vld1q_u8((const uint8_t*)(column + k * LANES + part * 4));
#pragma GCC unroll 4
                        for (int row = 0; row < rows; ++row) {
                            const uint8x16_t word = vreinterpretq_u8_u32(vdupq_n_u32(bits[row * words + k]));
                            sum[row][part] = vaddq_u8(sum[row][part], vcntq_u8(veorq_u8(word, weight)));
                        }
                    }
                for (int row = 0; row < rows; ++row)
                    for (int part = 0; part < 4; ++part)
                        total[row][part] = vpadalq_u16(total[row][part], vpaddlq_u8(sum[row][part]));
            }
            for (int row = 0; row < rows; ++row)
                for (int part = 0; part < 4; ++part)
                    vst1q_s32(counts + (row * blocks + block) * LANES + part * 4, vreinterpretq_s32_u32(total[row][part]));
        }
    }

    // Neighbouring bits are added, which the compiler vectorizes.
    INLINE static uint32_t ones(uint32_t x) {
        x -= (x >> 1) & 0x55555555u;
        x = (x & 0x33333333u) + ((x >> 2) & 0x33333333u);
        return (((x + (x >> 4)) & 0x0f0f0f0fu) * 0x01010101u) >> 24;
    }

  private:
    static float32x4_t load(const f32* from) { return vreinterpretq_f32_u8(vld1q_u8((const uint8_t*)from)); }
};

struct Floats {
    static constexpr int FLOAT_ROWS = 6, FLOAT_BLOCKS = 1;
    using Vector = float __attribute__((vector_size(16), aligned(1), may_alias));
};

struct Neon : Binary, generic::Bytes, generic::Signs, Floats, generic::Attention {};

// SDOT takes signed bytes: 128 is subtracted from the inputs, and 128 times the sum of the weights is added to the sums.
struct DotBytes : generic::Bytes {
    template <int rows>
    DOTPROD static void multiply_bytes(const uint8_t* bytes, i64 inputs, const int8_t* panel, int32_t* sums) {
        const int8x16_t one = vdupq_n_s8(1);
        const uint8x16_t flip = vdupq_n_u8(128);
        for (int part = 0; part < 8; ++part) {
            int32x4_t sum[rows], weights = vdupq_n_s32(0);
            for (int row = 0; row < rows; ++row) sum[row] = vdupq_n_s32(0);
            for (i64 k = 0; k < inputs; k += 4) {
                const int8x16_t weight = vld1q_s8(panel + k * 32 + part * 16);
                weights = vdotq_s32(weights, weight, one);
#pragma GCC unroll 8
                for (int row = 0; row < rows; ++row) {
                    uint32_t four;
                    std::memcpy(&four, bytes + row * inputs + k, 4);
                    const uint8x16_t x = veorq_u8(vreinterpretq_u8_u32(vdupq_n_u32(four)), flip);
                    sum[row] = vdotq_s32(sum[row], weight, vreinterpretq_s8_u8(x));
                }
            }
            for (int row = 0; row < rows; ++row) vst1q_s32(sums + row * 32 + part * 4, vmlaq_n_s32(sum[row], weights, 128));
        }
    }

    template <int rows>
    DOTPROD static void multiply_int8(const uint8_t* bytes, i64 inputs, const int8_t* panel, int32_t* sums) {
        multiply_bytes<rows>(bytes, inputs, panel, sums);
    }
};

struct NeonDot : Binary, DotBytes, generic::Signs, Floats, generic::Attention {};

}  // namespace
}  // namespace neon

template <class Operation>
void run_neon(const Operation& operation, i64 begin, i64 end, Scratch& scratch) {
    operation.template run<neon::Neon>(begin, end, scratch);
}

template <class Operation>
DOTPROD void run_neon_dot(const Operation& operation, i64 begin, i64 end, Scratch& scratch) {
    operation.template run<neon::NeonDot>(begin, end, scratch);
}

#define COMPILE(Operation)                                                    \
    template void run_neon<Operation>(const Operation&, i64, i64, Scratch&); \
    template void run_neon_dot<Operation>(const Operation&, i64, i64, Scratch&);
SUPERBIT_FOR_EVERY_OPERATION(COMPILE)

}  // namespace superbit

#endif
