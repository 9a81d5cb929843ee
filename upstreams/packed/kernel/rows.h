// What happens to a row of floats between two products: sum, activation, normalisation, and the form that the next layer's
// input has. A row passes through the first-level cache once.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "floats.h"
#include "functions.h"
#include "platform.h"

namespace superbit {

enum class Activation { none, relu, gelu, swish };

// The form of a layer's input. Levels are the whole numbers of which the quantized input is alpha times.
struct Form {
    enum Kind { floats, bits, bytes } kind = floats;
    i64 columns = 0;
    const f32* shift = nullptr;  // is added before a comparison; null if the lowest level is 0, or with several levels
    float threshold = 0.0f;      // bits: 1 if the value is not below it, or above it if `strict`
    bool strict = false;
    float alpha = 1.0f, low = 0.0f, high = 0.0f;  // bytes: the level - low; with a shift, the levels are -1 and +1

    // Zeros fill the words of a row.
    i64 row_bytes() const {
        return kind == floats ? columns * i64(sizeof(float)) : words_of(columns) * (kind == bits ? 4 : 32);
    }
};

// The level of x: round(x / alpha), halves to even, clipped.
INLINE float level_of(float x, float alpha, float low, float high) {
    x = x / alpha;
    x = x > low ? x : low;
    x = x < high ? x : high;
    return round_to_even(x);
}

template <class Arch>
INLINE void write_form(const Form& form, const float* __restrict row, char* to) {
    const i64 columns = form.columns;
    if (form.kind == Form::floats) {
        std::memcpy(to, row, size_t(columns) * sizeof(float));
        return;
    }
    reject_nan<Arch>((const f32*)row, columns);
    if (form.kind == Form::bits)
        return Arch::pack((const f32*)row, columns, form.shift, form.threshold, form.strict, (u32*)to);
    uint8_t* __restrict bytes = (uint8_t*)to;
    if (form.shift != nullptr) {
        const f32* __restrict shift = form.shift;
        for (i64 k = 0; k < columns; ++k) bytes[k] = row[k] + shift[k] >= 0.0f ? 2 : 0;
    } else {
        const float alpha = form.alpha, low = form.low, high = form.high;
        for (i64 k = 0; k < columns; ++k) bytes[k] = uint8_t(int32_t(level_of(row[k], alpha, low, high) - low));
    }
    std::memset(bytes + columns, 0, size_t(words_of(columns) * 32 - columns));
}

// The sum of x - mean, or of its square, in two vectors of partial sums.
template <class Arch, bool square>
INLINE float sum_of(const float* from, i64 columns, float mean) {
    using Vector = VectorOf<Arch>;
    constexpr int length = LENGTH<Arch>;
    Vector left = {}, right = {};
    i64 c = 0;
    for (; c + 2 * length <= columns; c += 2 * length) {
        Vector x = *(const Vector*)(from + c) - mean, y = *(const Vector*)(from + c + length) - mean;
        left += square ? x * x : x;
        right += square ? y * y : y;
    }
    left += right;
    float total = 0.0f;
    for (; c < columns; ++c) total += square ? (from[c] - mean) * (from[c] - mean) : from[c] - mean;
    for (int lane = 0; lane < length; ++lane) total += left[lane];
    return total;
}

// In this order: activation(x) + factor * add, written to `sum`; layer normalisation, written to `normed`; scale and shift
// of each channel; the forms that layers take. A null pointer leaves a step out. Outputs may be inputs of the same row.
struct Rows {
    i64 columns;
    const f32* x;
    Activation activation = Activation::none;
    const f32* add = nullptr;
    float factor = 1.0f;
    f32* sum = nullptr;
    const f32 *weight = nullptr, *bias = nullptr;
    float epsilon = 1e-5f;
    f32* normed = nullptr;
    const f32 *scale = nullptr, *shift = nullptr;
    int count = 0;
    Form forms[3] = {};
    char* targets[3] = {};

    template <class Arch>
    INLINE void run(i64 begin, i64 end, Scratch& scratch) const {
        const i64 dim = columns;
        float* __restrict row = scratch.take<float>(dim);
        for (i64 at = begin; at < end; ++at) {
            const f32* from = x + at * dim;
            switch (activation) {
                case Activation::none:
                    for (i64 c = 0; c < dim; ++c) row[c] = from[c];
                    break;
                case Activation::relu:
                    for (i64 c = 0; c < dim; ++c) row[c] = from[c] < 0.0f ? 0.0f : from[c];
                    break;
                case Activation::gelu:
                    for (i64 c = 0; c < dim; ++c) row[c] = 0.5f * from[c] * (1.0f + error_function(from[c] * 0.70710678f));
                    break;
                case Activation::swish:
                    for (i64 c = 0; c < dim; ++c) row[c] = from[c] * sigmoid(from[c]);
                    break;
            }
            if (add != nullptr) {
                const f32* more = add + at * dim;
                const float times = factor;
                for (i64 c = 0; c < dim; ++c) row[c] += times * more[c];
            }
            if (sum != nullptr) std::memcpy((char*)(sum + at * dim), row, size_t(dim) * sizeof(float));
            if (weight != nullptr) {
                const float mean = sum_of<Arch, false>(row, dim, 0.0f) / float(dim);
                const float inverse = 1.0f / std::sqrt(sum_of<Arch, true>(row, dim, mean) / float(dim) + epsilon);
                const f32 *__restrict w = weight, *__restrict b = bias;
                for (i64 c = 0; c < dim; ++c) row[c] = (row[c] - mean) * inverse * w[c] + b[c];
            }
            if (normed != nullptr) std::memcpy((char*)(normed + at * dim), row, size_t(dim) * sizeof(float));
            if (scale != nullptr) {
                const f32 *__restrict s = scale, *__restrict b = shift;
                for (i64 c = 0; c < dim; ++c) row[c] = row[c] * s[c] + b[c];
            }
            for (int n = 0; n < count; ++n) write_form<Arch>(forms[n], row, targets[n] + at * forms[n].row_bytes());
        }
    }
};

// The levels of x as floats, times `unit`. A row of silence stays zero where the levels are -1 and +1 (`shift`).
struct Levels {
    const f32* x;
    i64 columns;
    const f32* shift;
    bool is_sign;  // -1 and +1
    float alpha, low, high, unit;
    f32* out;

    template <class Arch>
    INLINE void run(i64 begin, i64 end, Scratch&) const {
        reject_nan<Arch>(x + begin * columns, (end - begin) * columns);
        const float step = alpha, lowest = low, highest = high, times = unit;
        for (i64 row = begin; row < end; ++row) {
            const f32* from = x + row * columns;
            f32* to = out + row * columns;
            if (!is_sign) {
                for (i64 c = 0; c < columns; ++c) to[c] = level_of(from[c], step, lowest, highest) * times;
                continue;
            }
            bool is_silent = shift != nullptr;
            for (i64 c = 0; is_silent && c < columns; ++c) is_silent = from[c] == 0.0f;
            for (i64 c = 0; c < columns; ++c) {
                const float value = shift ? from[c] + shift[c] : from[c];
                to[c] = is_silent ? 0.0f : value >= 0.0f ? times : -times;
            }
        }
    }
};

// Gated linear unit: (rows, 2 channels) -> (rows, channels).
struct Gate {
    const f32* x;
    i64 channels;
    bool relu;  // follows
    f32* out;

    template <class Arch>
    INLINE void run(i64 begin, i64 end, Scratch&) const {
        for (i64 row = begin; row < end; ++row) {
            const f32 *__restrict value = x + row * 2 * channels, *__restrict gate = value + channels;
            f32* __restrict to = out + row * channels;
            const float least = relu ? 0.0f : -INFINITY;
            for (i64 c = 0; c < channels; ++c) {
                float y = value[c] * sigmoid(gate[c]);
                to[c] = y < least ? least : y;
            }
        }
    }
};

// Queries with relative positions: position_query = (query + position_bias) * factor, then query += content_bias.
struct RelativeQuery {
    f32* query;
    i64 dim;
    const f32 *content_bias, *position_bias;
    float factor;  // 1 / sqrt(head dim)
    f32* position_query;

    template <class Arch>
    INLINE void run(i64 begin, i64 end, Scratch&) const {
        for (i64 row = begin; row < end; ++row) {
            f32 *q = query + row * dim, *to = position_query + row * dim;
            for (i64 c = 0; c < dim; ++c) to[c] = (q[c] + position_bias[c]) * factor;
            for (i64 c = 0; c < dim; ++c) q[c] += content_bias[c];
        }
    }
};

// Rotate pairs of channels of each head by the angles of the row's frame.
struct Rotate {
    f32* x;
    i64 heads, dim;              // of a head
    const f32 *cosine, *sine;  // (rows, dim / 2)

    template <class Arch>
    INLINE void run(i64 begin, i64 end, Scratch&) const {
        const i64 half = dim / 2;
        for (i64 row = begin; row < end; ++row)
            for (i64 head = 0; head < heads; ++head) {
                f32 *left = x + (row * heads + head) * dim, *right = left + half;
                const f32 *c = cosine + row * half, *s = sine + row * half;
                for (i64 k = 0; k < half; ++k) {
                    const float first = left[k], second = right[k];
                    left[k] = first * c[k] - second * s[k];
                    right[k] = second * c[k] + first * s[k];
                }
            }
    }
};

}  // namespace superbit
