// Floats to bits, and products of bits with bits: differing bits are counted by XOR and popcount.

#pragma once

#include <algorithm>
#include <cstring>

#include "affine.h"
#include "platform.h"
#include "scratch.h"

namespace superbit {

namespace generic {

struct Binary {
    static constexpr int BINARY_ROWS = 4;  // rows of a tile of the product

    // Set bit k if values[k] + shift[k] >= threshold, or > threshold if `strict`. `shift` may be null. Fills
    // words_of(columns) words.
    SCALAR static void pack(const f32* values, i64 columns, const f32* shift, float threshold, bool strict, u32* bits) {
        for (i64 k = 0; k < columns; k += 32) {
            uint32_t word = 0;
            for (i64 j = 0; j < std::min<i64>(32, columns - k); ++j) {
                float value = shift ? values[k + j] + shift[k + j] : values[k + j];
                word |= uint32_t(strict ? value > threshold : value >= threshold) << j;
            }
            bits[k / 32] = word;
        }
    }

    // counts[row][output] = number of bits in which the words of a row and of an output differ.
    template <int rows, int blocks>
    SCALAR static void count_differing(const u32* bits, i64 words, const u32* weights, int32_t* counts) {
        for (int block = 0; block < blocks; ++block)
            for (int lane = 0; lane < LANES; ++lane) {
                int32_t sum[rows] = {};
                for (i64 k = 0; k < words; ++k) {
                    uint32_t weight = weights[(block * words + k) * LANES + lane];
#pragma GCC unroll 4
                    for (int row = 0; row < rows; ++row) sum[row] += __builtin_popcount(bits[row * words + k] ^ weight);
                }
                for (int row = 0; row < rows; ++row) counts[(row * blocks + block) * LANES + lane] = sum[row];
            }
    }

    // One bit for each lane of a block: counts[lane] < limits[lane].
    INLINE static uint16_t below(const int32_t* counts, const i32* limits) {
        uint16_t half = 0;
        for (int lane = 0; lane < LANES; ++lane) half |= uint16_t(counts[lane] < limits[lane]) << lane;
        return half;
    }

    // Number of set bits.
    INLINE static uint32_t ones(uint32_t x) { return uint32_t(__builtin_popcount(x)); }

    // See `PopcountPeak`; only AVX-512 measures it.
    INLINE static uint32_t popcount_peak(i64 rounds) { return uint32_t(rounds); }
};

}  // namespace generic

struct BinaryProduct {
    const u32* bits;
    i64 words;
    const u32* weights;
    i64 outputs, blocks;

    // Call finish(row, block, blocks, counts) for every row and group of blocks. The weights of a group stay in the
    // first-level cache while all rows pass.
    template <class Arch, class Finish>
    INLINE void for_each_tile(i64 begin, i64 end, const Finish& finish) const {
        for (i64 block = 0; block < blocks;) {
            if (blocks - block >= 4) {
                tiles<Arch, 4>(block, begin, end, finish);
                block += 4;
            } else {
                tiles<Arch, 1>(block, begin, end, finish);
                block += 1;
            }
        }
    }

  private:
    template <class Arch, int group, class Finish>
    INLINE void tiles(i64 block, i64 begin, i64 end, const Finish& finish) const {
        constexpr int rows = Arch::BINARY_ROWS;
        alignas(64) int32_t counts[rows * group * LANES];
        const u32* weight = weights + block * words * LANES;
        i64 row = begin;
        for (; row + rows <= end; row += rows) {
            Arch::template count_differing<rows, group>(bits + row * words, words, weight, counts);
            for (int r = 0; r < rows; ++r) finish(row + r, block, group, counts + r * group * LANES);
        }
        for (; row < end; ++row) {
            Arch::template count_differing<1, group>(bits + row * words, words, weight, counts);
            finish(row, block, group, counts);
        }
    }
};

struct BinaryToFloats {
    BinaryProduct product;
    Affine affine;
    f32* out;

    template <class Arch>
    INLINE void run(i64 begin, i64 end, Scratch&) const {
        product.for_each_tile<Arch>(begin, end, [&](i64 row, i64 block, int group, const int32_t* counts) ALWAYS {
            i64 output = block * LANES, outputs = std::min<i64>(group * LANES, product.outputs - output);
            f32* to = out + row * product.outputs + output;
            affine.apply<4 * LANES>(counts, output, outputs, to);
        });
    }
};

// bit = count < limit[output]: a linear layer, ReLU (or none) and the next layer's binarization in one comparison.
struct BinaryToBits {
    BinaryProduct product;
    const i32* limit;
    u32* out;

    template <class Arch>
    INLINE void run(i64 begin, i64 end, Scratch&) const {
        i64 out_words = (product.blocks + 1) / 2;
        if (product.blocks % 2)
            for (i64 row = begin; row < end; ++row) out[row * out_words + out_words - 1] = 0;
        product.for_each_tile<Arch>(begin, end, [&](i64 row, i64 block, int group, const int32_t* counts) ALWAYS {
            char* to = (char*)(out + row * out_words) + block * 2;
            for (int b = 0; b < group; ++b) {
                uint16_t half = Arch::below(counts + b * LANES, limit + (block + b) * LANES);
                std::memcpy(to + b * 2, &half, 2);
            }
        });
    }
};

// XOR, popcount and add on registers alone: the processor's limit, to compare the product with.
struct PopcountPeak {
    u32* sink;

    template <class Arch>
    INLINE void run(i64 begin, i64 end, Scratch&) const {
        *sink = Arch::popcount_peak(end - begin);
    }
};

}  // namespace superbit
