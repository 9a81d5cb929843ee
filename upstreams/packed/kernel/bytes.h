// Floats to bytes, and products of bytes with weights of +1 and -1.

#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "affine.h"
#include "floats.h"
#include "functions.h"
#include "platform.h"

namespace superbit {

// bytes = clip(round(values / alpha), low, high) - low, halves to even. Zeros fill a row up to a multiple of 32.
struct QuantizeBytes {
    const f32* values;
    i64 columns;
    float alpha, low, high;
    uint8_t* bytes;

    template <class Arch>
    INLINE void run(i64 begin, i64 end) const {
        const i64 count = columns, padded = words_of(columns) * 32;
        const float step = alpha, lowest = low, highest = high;  // locals, because `bytes` may alias the members
        reject_nan<Arch>(values + begin * count, (end - begin) * count);
        for (i64 row = begin; row < end; ++row) {
            const f32* from = values + row * count;
            uint8_t* to = bytes + row * padded;
            for (i64 k = 0; k < count; ++k) {
                float x = from[k] / step;
                x = x > lowest ? x : lowest;
                x = x < highest ? x : highest;
                x = round_to_even(x);
                to[k] = uint8_t(int32_t(x - lowest));
            }
            for (i64 k = count; k < padded; ++k) to[k] = 0;
        }
    }
};

struct ByteProduct {
    const uint8_t* bytes;
    i64 words;  // of a row's weights; a row has 32 bytes a word
    const u32* weights;
    i64 outputs, blocks;
    Affine affine;
    f32* out;

    template <class Arch>
    INLINE void run(i64 begin, i64 end) const {
        Arch::template byte_product<Arch>(*this, begin, end);
    }
};

namespace generic {

// The weights of two blocks are expanded to bytes once for all rows, then multiplied.
struct Bytes {
    template <class Arch>
    INLINE static void byte_product(const ByteProduct& product, i64 begin, i64 end) {
        constexpr int rows = 8;
        alignas(64) int32_t sums[rows * 32];
        const i64 inputs = product.words * 32, outputs = product.outputs;
        std::vector<int8_t> panel(inputs * 32);
        for (i64 pair = 0; pair < (product.blocks + 1) / 2; ++pair) {
            for (int block = 0; block < 2; ++block) expand(product, pair * 2 + block, panel.data() + block * 64);
            i64 output = pair * 32, count = std::min<i64>(32, outputs - output);
            i64 row = begin;
            for (; row + rows <= end; row += rows) {
                Arch::template multiply_bytes<rows>(product.bytes + row * inputs, inputs, panel.data(), sums);
                for (int r = 0; r < rows; ++r)
                    product.affine.apply<32>(sums + r * 32, output, count, product.out + (row + r) * outputs + output);
            }
            for (; row < end; ++row) {
                Arch::template multiply_bytes<1>(product.bytes + row * inputs, inputs, panel.data(), sums);
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
