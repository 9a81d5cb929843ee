// Products of bytes with weights of +1 and -1, and with weights of 8 bits.

#pragma once

#include <algorithm>
#include <cstring>

#include "affine.h"
#include "floats.h"
#include "platform.h"
#include "scratch.h"

namespace superbit {

struct ByteProduct {
    const uint8_t* bytes;
    i64 words;  // of a row's weights; a row has 32 bytes a word
    const u32* weights;
    i64 outputs, blocks;
    Affine affine;
    f32* out;

    template <class Arch>
    INLINE void run(i64 begin, i64 end, Scratch& scratch) const {
        Arch::template byte_product<Arch>(*this, begin, end, scratch);
    }
};

// Weights of 8 bits in panels of two blocks: [pair of blocks][four inputs][block][output][input].
struct Int8Product {
    const uint8_t* bytes;
    i64 inputs;  // bytes of a row, a multiple of 32
    const int8_t* panels;
    i64 outputs;
    Affine affine;
    f32* out;
    i64 out_stride;

    static constexpr int ROWS = 8;

    template <class Arch>
    INLINE void run(i64 begin, i64 end, Scratch&) const {
        alignas(64) int32_t sums[ROWS * 32];
        for (i64 output = 0; output < outputs; output += 32) {
            const i64 count = std::min<i64>(32, outputs - output);
            const int8_t* panel = panels + output * inputs;
            i64 row = begin;
            for (; row + ROWS <= end; row += ROWS) {
                Arch::template multiply_int8<ROWS>(bytes + row * inputs, inputs, panel, sums);
                for (int r = 0; r < ROWS; ++r)
                    affine.apply<32>(sums + r * 32, output, count, out + (row + r) * out_stride + output);
            }
            for (; row < end; ++row) {
                Arch::template multiply_int8<1>(bytes + row * inputs, inputs, panel, sums);
                affine.apply<32>(sums, output, count, out + row * out_stride + output);
            }
        }
    }
};

namespace generic {

// The weights of two blocks are expanded to bytes once for all rows, then multiplied.
struct Bytes {
    template <class Arch>
    INLINE static void byte_product(const ByteProduct& product, i64 begin, i64 end, Scratch& scratch) {
        constexpr int rows = 8;
        alignas(64) int32_t sums[rows * 32];
        const i64 inputs = product.words * 32, outputs = product.outputs;
        int8_t* panel = scratch.take<int8_t>(inputs * 32);
        for (i64 pair = 0; pair < (product.blocks + 1) / 2; ++pair) {
            for (int block = 0; block < 2; ++block) expand(product, pair * 2 + block, panel + block * 64);
            i64 output = pair * 32, count = std::min<i64>(32, outputs - output);
            i64 row = begin;
            for (; row + rows <= end; row += rows) {
                Arch::template multiply_bytes<rows>(product.bytes + row * inputs, inputs, panel, sums);
                for (int r = 0; r < rows; ++r)
                    product.affine.apply<32>(sums + r * 32, output, count, product.out + (row + r) * outputs + output);
            }
            for (; row < end; ++row) {
                Arch::template multiply_bytes<1>(product.bytes + row * inputs, inputs, panel, sums);
                product.affine.apply<32>(sums, output, count, product.out + row * outputs + output);
            }
        }
    }

    // sums[row][output] = sum of bytes * weights, for two blocks. panel: [four inputs][block][output][input].
    template <int rows>
    SCALAR static void multiply_bytes(const uint8_t* bytes, i64 inputs, const int8_t* panel, int32_t* sums) {
        std::fill(sums, sums + rows * 32, 0);
        for (i64 k = 0; k < inputs; k += 4)
            for (int row = 0; row < rows; ++row)
                for (int output = 0; output < 32; ++output)
                    for (int b = 0; b < 4; ++b)
                        sums[row * 32 + output] += bytes[row * inputs + k + b] * panel[k * 32 + output * 4 + b];
    }

    // The same for weights of any 8 bits, which some levels multiply in another way.
    template <int rows>
    SCALAR static void multiply_int8(const uint8_t* bytes, i64 inputs, const int8_t* panel, int32_t* sums) {
        multiply_bytes<rows>(bytes, inputs, panel, sums);
    }

  private:
    INLINE static void expand(const ByteProduct& product, i64 block, int8_t* panel) {
        for (i64 k = 0; k < product.words; ++k)
            for (int shift = 0; shift < 32; shift += 4) {
                uint32_t four[LANES];
                for (int lane = 0; lane < LANES; ++lane) {
                    const u32* weight = product.weights + (block * product.words + k) * LANES + lane;
                    uint32_t bits = block < product.blocks ? *weight >> shift : 0u;
                    // A set bit becomes the byte 1; a clear bit becomes the byte 255, which is -1.
                    uint32_t clear = ~((bits & 1u) | (bits & 2u) << 7 | (bits & 4u) << 14 | (bits & 8u) << 21);
                    four[lane] = (clear & 0x01010101u) * 254u + 0x01010101u;
                }
                std::memcpy(panel + (k * 8 + shift / 4) * 128, four, sizeof four);
            }
    }
};

}  // namespace generic
}  // namespace superbit
