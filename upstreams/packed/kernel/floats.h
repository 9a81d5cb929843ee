// Products of floats with floats.

#pragma once

#include <algorithm>
#include <limits>

#include "platform.h"
#include "scratch.h"

namespace superbit {

namespace generic {

struct Floats {
    static constexpr int FLOAT_ROWS = 3, FLOAT_BLOCKS = 1;  // of a tile of the product
    using Vector = float __attribute__((vector_size(16), aligned(1), may_alias));
};

}  // namespace generic

// The vector type of an architecture, one register wide, and its number of floats.
template <class Arch>
using VectorOf = typename Arch::Vector;
template <class Arch>
constexpr int LENGTH = sizeof(VectorOf<Arch>) / sizeof(float);

// Throw NotANumber if one of the values is NaN.
template <class Arch>
INLINE void reject_nan(const f32* values, i64 count) {
    using Vector = VectorOf<Arch>;
    constexpr int length = LENGTH<Arch>;
    auto found = Vector{} != Vector{};  // for each lane
    i64 k = 0;
    for (; k + length <= count; k += length) {
        Vector x = *(const Vector*)(values + k);
        found |= x != x;
    }
    bool is_nan = false;
    for (int lane = 0; lane < length; ++lane) is_nan |= found[lane] != 0;
    for (; k < count; ++k) is_nan |= values[k] != values[k];
    if (is_nan) throw NotANumber();
}

// out = x w + bias. w: [block][input][output], `panel` inputs a block, of which the first `inputs` are used; bias is
// padded to whole blocks. Rows of x begin `stride` floats apart and may overlap, as the windows of a convolution do.
struct FloatProduct {
    const f32* x;
    i64 stride, inputs;
    const f32* weights;
    i64 panel, outputs, blocks;
    const f32* bias;
    f32* out;
    i64 out_stride;
    i64 first = 0, last = std::numeric_limits<i64>::max();  // x is zero outside the floats first to last - 1

    static constexpr i64 CHUNK = 384;  // inputs: the weights of three blocks stay in the cache
    static constexpr i64 ROWS = 512;   // rows: their sums stay in the cache

    template <class Arch>
    INLINE void run(i64 begin, i64 end, Scratch& scratch) const {
        for (i64 row = begin; row < end; row += ROWS) run_rows<Arch>(row, std::min(end, row + ROWS), scratch);
    }

  private:
    template <class Arch>
    INLINE void run_rows(i64 begin, i64 end, Scratch& scratch) const {
        constexpr int most = Arch::FLOAT_BLOCKS;
        Scratch::Scope scope(scratch);
        float* sums = scratch.take<float>((end - begin) * most * LANES);
        for (i64 block = 0; block < blocks;) {
            const i64 group = blocks - block >= most ? most : 1, count = std::min(group * LANES, outputs - block * LANES);
            const bool is_whole = count == group * LANES;
            for (i64 k = 0; k < inputs || k == 0; k += CHUNK) {
                const i64 chunk = std::min(CHUNK, inputs - k);
                // The last chunk's sums are the outputs themselves.
                const bool is_output = is_whole && k + chunk >= inputs;
                f32* to = is_output ? out + begin * out_stride + block * LANES : (f32*)sums;
                const i64 step = is_output ? out_stride : group * LANES;
                if (group == most)
                    run_chunk<Arch, most>(block, k, chunk, begin, end, sums, to, step);
                else
                    run_chunk<Arch, 1>(block, k, chunk, begin, end, sums, to, step);
            }
            for (i64 row = begin; !is_whole && row < end; ++row) {
                const float* sum = sums + (row - begin) * group * LANES;
                for (i64 j = 0; j < count; ++j) out[row * out_stride + block * LANES + j] = sum[j];
            }
            block += group;
        }
    }

    // Add the products of inputs k to k + count - 1 to the sums of a group of blocks; write them to rows of `step` floats.
    template <class Arch, int group>
    INLINE void run_chunk(i64 block, i64 k, i64 count, i64 begin, i64 end, const float* sums, f32* to, i64 step) const {
        constexpr int rows = Arch::FLOAT_ROWS;
        i64 row = begin;
        for (; row + rows <= end; row += rows)
            run_tile<Arch, rows, group>(block, k, count, row, sums + (row - begin) * group * LANES, to + (row - begin) * step,
                                        step);
        for (; row < end; ++row)
            run_tile<Arch, 1, group>(block, k, count, row, sums + (row - begin) * group * LANES, to + (row - begin) * step,
                                     step);
    }

    template <class Arch, int rows, int group>
    INLINE void run_tile(i64 block, i64 k, i64 count, i64 row, const float* sums, f32* to, i64 step) const {
        using Vector = VectorOf<Arch>;
        constexpr int length = LENGTH<Arch>, parts = LANES / length;
        Vector sum[rows][group * parts];
        const f32* start = bias + block * LANES;
        for (int r = 0; r < rows; ++r)
            for (int b = 0; b < group * parts; ++b)
                sum[r][b] = *(const Vector*)(k == 0 ? start + b * length : sums + r * group * LANES + b * length);
        const f32* w = weights + (block * panel + k) * LANES;
        const f32* from = x + row * stride + k;
        // Inputs that are zero in all of the rows are skipped: they leave the sums as they are.
        const i64 begin = std::max<i64>(0, first - (row + rows - 1) * stride - k);
        const i64 end = std::min(count, last - row * stride - k);
        for (i64 i = begin; i < end; ++i) {
            Vector weight[group * parts];
#pragma GCC unroll 4
            for (int b = 0; b < group * parts; ++b)
                weight[b] = *(const Vector*)(w + (b / parts * panel + i) * LANES + b % parts * length);
#pragma GCC unroll 8
            for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
                for (int b = 0; b < group * parts; ++b) sum[r][b] += from[r * stride + i] * weight[b];
        }
        for (int r = 0; r < rows; ++r)
            for (int b = 0; b < group * parts; ++b) *(Vector*)(to + r * step + b * length) = sum[r][b];
    }
};

}  // namespace superbit
