// Call every function of the kernel at every level. Buffers begin at odd addresses and end with their last element, so that
// the sanitizers see every access outside. Products are compared with plain loops, attention with the scalar level.
// Attention runs as the production code calls it: with and without relative scores, on floats, on whole numbers and on bits.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "interface.h"

using i64 = int64_t;

static std::mt19937 generator(0);

// Elements at an odd address, with no memory after the last one.
template <class T>
struct Odd {
    char* memory;
    i64 count;

    explicit Odd(i64 n) : memory((char*)std::malloc(n * sizeof(T) + 1)), count(n) { std::memset(memory, 0, n * sizeof(T) + 1); }
    Odd(const Odd&) = delete;
    ~Odd() { std::free(memory); }
    T* data() { return (T*)(memory + 1); }
    T get(i64 i) const {
        T value;
        std::memcpy(&value, memory + 1 + i * sizeof(T), sizeof(T));
        return value;
    }
    void set(i64 i, T value) { std::memcpy(memory + 1 + i * sizeof(T), &value, sizeof(T)); }
    void randomize() {
        for (i64 i = 0; i < count; ++i) set(i, T(int(generator() % 2001) - 1000) / T(500));
    }
};

// Random bits; those after the last column are zero.
static void random_bits(Odd<uint32_t>& bits, i64 rows, i64 columns) {
    i64 words = (columns + 31) / 32;
    for (i64 row = 0; row < rows; ++row)
        for (i64 k = 0; k < columns; ++k)
            bits.set(row * words + k / 32, bits.get(row * words + k / 32) | (generator() & 1u) << (k % 32));
}

static bool bit(const Odd<uint32_t>& bits, i64 word, i64 k) { return bits.get(word + k / 32) >> (k % 32) & 1; }

static int failures = 0;

static void expect(bool holds, const char* what, int level, i64 rows, i64 inputs, i64 outputs) {
    if (holds) return;
    std::printf("%s at level %d: rows %ld inputs %ld outputs %ld\n", what, level, long(rows), long(inputs), long(outputs));
    ++failures;
}

static bool near(const Odd<float>& a, const std::vector<double>& b) {
    for (size_t i = 0; i < b.size(); ++i)
        if (!(std::fabs(a.get(i64(i)) - b[i]) <= 1e-3 * (1 + std::fabs(b[i])))) return false;
    return true;
}

static void products(int level, int threads, i64 rows, i64 inputs, i64 outputs) {
    const i64 words = (inputs + 31) / 32, blocks = (outputs + 15) / 16, padded = blocks * 16;
    Odd<float> x(rows * inputs), shift(inputs), scale(padded), bias(padded), out(rows * outputs);
    Odd<uint32_t> bits(rows * words), rowwise(outputs * words), weights(blocks * words * 16), halves(rows * ((blocks + 1) / 2));
    Odd<int32_t> offset(padded), limit(padded);
    Odd<uint8_t> bytes(rows * words * 32);
    int status = 0;
    x.randomize(), shift.randomize(), scale.randomize(), bias.randomize();
    random_bits(rowwise, outputs, inputs);
    for (i64 j = 0; j < outputs; ++j) {
        for (i64 w = 0; w < words; ++w) weights.set((j / 16 * words + w) * 16 + j % 16, rowwise.get(j * words + w));
        offset.set(j, int32_t(inputs));
        limit.set(j, int32_t(inputs / 2));
    }
    status |= superbit_binarize(level, threads, x.data(), rows, inputs, shift.data(), 0.0f, 0, bits.data());
    status |= superbit_binary_to_floats(level, threads, bits.data(), rows, words, weights.data(), outputs, offset.data(),
                                        scale.data(), bias.data(), out.data());
    status |= superbit_binary_to_bits(level, threads, bits.data(), rows, words, weights.data(), outputs, limit.data(),
                                      halves.data());
    std::vector<double> binary(rows * outputs), signs(rows * outputs), eight(rows * outputs);
    bool same = true;
    status |= superbit_quantize_bytes(level, threads, x.data(), rows, inputs, 0.01f, -128.0f, 127.0f, bytes.data());
    for (i64 i = 0; i < rows; ++i)
        for (i64 j = 0; j < outputs; ++j) {
            int differing = 0;
            double sum = 0, whole = 0;
            for (i64 k = 0; k < inputs; ++k) {
                bool plus = bit(rowwise, j * words, k), high = x.get(i * inputs + k) + shift.get(k) >= 0;
                same &= high == bit(bits, i * words, k);
                differing += plus != high;
                sum += plus ? x.get(i * inputs + k) : -x.get(i * inputs + k);
                double step = std::nearbyint(x.get(i * inputs + k) / 0.01f);
                step = step < -128 ? -128 : step > 127 ? 127 : step;
                whole += plus ? step + 128 : -(step + 128);
            }
            binary[i * outputs + j] = scale.get(j) * double(inputs - 2 * differing) + bias.get(j);
            signs[i * outputs + j] = scale.get(j) * sum + bias.get(j);
            eight[i * outputs + j] = scale.get(j) * (whole + double(inputs)) + bias.get(j);
            same &= bit(halves, i * ((blocks + 1) / 2), j) == (differing < inputs / 2);
        }
    expect(same, "bits", level, rows, inputs, outputs);
    expect(near(out, binary), "binary_to_floats", level, rows, inputs, outputs);
    status |= superbit_byte_product(level, threads, bytes.data(), rows, words, weights.data(), outputs, offset.data(),
                                    scale.data(), bias.data(), out.data());
    expect(near(out, eight), "byte_product", level, rows, inputs, outputs);
    status |= superbit_sign_product(level, threads, x.data(), rows, inputs, weights.data(), outputs, scale.data(), bias.data(),
                                    out.data());
    expect(near(out, signs), "sign_product", level, rows, inputs, outputs);

    Odd<float> dense(blocks * inputs * 16), normed(rows * inputs);
    dense.randomize();
    std::vector<double> expected(rows * outputs);
    for (i64 i = 0; i < rows; ++i)
        for (i64 j = 0; j < outputs; ++j) {
            double sum = bias.get(j);
            for (i64 k = 0; k < inputs; ++k)
                sum += double(x.get(i * inputs + k)) * dense.get((j / 16 * inputs + k) * 16 + j % 16);
            expected[i * outputs + j] = sum;
        }
    status |= superbit_float_product(level, threads, x.data(), rows, inputs, inputs, 0, rows * inputs, dense.data(), outputs,
                                     bias.data(), out.data(), outputs);
    expect(near(out, expected), "float_product", level, rows, inputs, outputs);
    status |= superbit_layer_norm(level, threads, x.data(), rows, inputs, shift.data(), shift.data(), 1e-5f, normed.data());
    status |= superbit_gelu(level, threads, normed.data(), rows * inputs);
    status |= superbit_depthwise(level, threads, x.data(), rows, inputs, 1, 1, shift.data(), shift.data(), normed.data());
    expect(status == 0, "status", level, rows, inputs, outputs);
    for (i64 i = 0; i < rows * inputs; ++i) {
        float w = shift.get(i % inputs);
        expect(std::fabs(normed.get(i) - (x.get(i) * w + w)) < 1e-4, "depthwise", level, rows, inputs, outputs);
    }
}

// A convolution over `taps` frames with a stride, depthwise and as a product of overlapping windows whose ends are zero.
static void convolutions(int level, int threads, i64 frames, i64 channels, i64 taps, i64 stride) {
    const i64 outputs = 17, inputs = taps * channels, windows = frames - taps + 1, strided = (frames - taps) / stride + 1;
    Odd<float> x(frames * channels), weights(inputs), bias(channels), out(strided * channels);
    Odd<float> dense(2 * inputs * 16), zeros(32), product(windows * outputs);
    x.randomize(), weights.randomize(), bias.randomize(), dense.randomize();
    for (i64 c = 0; c < channels; ++c) x.set(c, 0.0f), x.set((frames - 1) * channels + c, 0.0f);
    int status = superbit_depthwise(level, threads, x.data(), strided, channels, taps, stride, weights.data(), bias.data(),
                                    out.data());
    status |= superbit_float_product(level, threads, x.data(), windows, channels, inputs, channels, (frames - 1) * channels,
                                     dense.data(), outputs, zeros.data(), product.data(), outputs);
    expect(status == 0, "status of convolutions", level, frames, channels, taps);
    std::vector<double> expected(strided * channels), products(windows * outputs);
    for (i64 i = 0; i < strided * channels; ++i) {
        expected[i] = bias.get(i % channels);
        for (i64 tap = 0; tap < taps; ++tap)
            expected[i] += double(x.get((i / channels * stride + tap) * channels + i % channels)) *
                           weights.get(tap * channels + i % channels);
    }
    for (i64 i = 0; i < windows * outputs; ++i)
        for (i64 k = 0; k < inputs; ++k) {
            i64 j = i % outputs;
            products[i] += double(x.get(i / outputs * channels + k)) * dense.get((j / 16 * inputs + k) * 16 + j % 16);
        }
    expect(near(out, expected), "depthwise with a stride", level, frames, channels, taps);
    expect(near(product, products), "float_product of windows", level, frames, channels, taps);
}

static void attention(int level, int threads, i64 keys, i64 heads, i64 dim, i64 radius, i64 first, bool is_relative) {
    const i64 batch = 2, queries = keys - first, words = (dim + 31) / 32, reach = is_relative ? keys : 0;
    Odd<uint32_t> q(batch * queries * heads * words), k(batch * keys * heads * words), v(batch * keys * heads * words);
    random_bits(q, batch * queries * heads, dim), random_bits(k, batch * keys * heads, dim), random_bits(v, batch * keys * heads, dim);
    Odd<float> scores(batch * heads * queries * (2 * reach + 1)), out(batch * queries * heads * dim), scalar(out.count);
    Odd<float> fq(batch * queries * heads * dim), fk(batch * keys * heads * dim), fv(batch * keys * heads * dim);
    scores.randomize(), fq.randomize(), fk.randomize(), fv.randomize();
    const float* relative = is_relative ? scores.data() : nullptr;
    i64 lengths[2] = {keys, (keys + 1) / 2};
    int status = 0;
    auto compare = [&](const char* what, auto run) {
        run(0, scalar.data()), run(level, out.data());
        std::vector<double> expected(out.count);
        for (i64 i = 0; i < out.count; ++i) expected[i] = scalar.get(i);
        expect(near(out, expected), what, level, keys, heads, dim);
    };
    compare("binary_attention", [&](int at, float* to) {
        status |= superbit_binary_attention(at, threads, q.data(), k.data(), v.data(), batch, queries, keys, heads, dim,
                                            lengths, first, radius, relative, reach, 0.2f, 0.4321f / float(keys), 1.0f, to);
    });
    compare("float_attention", [&](int at, float* to) {
        status |= superbit_float_attention(at, threads, fq.data(), fk.data(), fv.data(), batch, queries, keys, heads, dim,
                                           lengths, first, radius, relative, reach, 0.2f, 1.0f, 0.0f, 1.0f, to);
    });
    for (Odd<float>* x : {&fq, &fk, &fv})  // whole numbers
        for (i64 i = 0; i < x->count; ++i) x->set(i, std::nearbyint(x->get(i) * 50));
    // So coarse a step that rounding moves no probability over a threshold.
    compare("float_attention on whole numbers", [&](int at, float* to) {
        status |= superbit_float_attention(at, threads, fq.data(), fk.data(), fv.data(), batch, queries, keys, heads, dim,
                                           lengths, first, radius, relative, reach, 1e-3f, 0.7123f, 1.0f, 1.0f, to);
    });
    expect(status == 0, "status of attention", level, keys, heads, dim);
}

// NaN among the values is refused, wherever it is.
static void not_a_number(int level, int threads) {
    const i64 rows = 40, columns = 37;
    Odd<float> x(rows * columns), out(rows * columns);
    Odd<uint32_t> bits(rows * 2);
    Odd<uint8_t> bytes(rows * 64);
    i64 lengths[1] = {rows};
    for (i64 at : {i64(0), columns * 20 + 36, rows * columns - 1}) {
        x.randomize();
        x.set(at, NAN);
        int binary = superbit_binarize(level, threads, x.data(), rows, columns, nullptr, 0.0f, 0, bits.data());
        int byte = superbit_quantize_bytes(level, threads, x.data(), rows, columns, 0.01f, -128.0f, 127.0f, bytes.data());
        int attention = superbit_float_attention(level, threads, x.data(), out.data(), out.data(), 1, rows, rows, 1, columns,
                                                 lengths, 0, -1, nullptr, 0, 1.0f, 1.0f, 0.0f, 1.0f, out.data());
        expect(binary == 2 && byte == 2 && attention == 2, "NaN", level, rows, columns, at);
    }
}

int main() {
    for (int level = 0; level <= superbit_best_level(); ++level)
        for (int threads : {1, 3}) {
            for (i64 rows : {1, 7, 13})
                for (i64 inputs : {1, 31, 33, 144, 196})
                    for (i64 outputs : {1, 15, 17, 65, 168}) products(level, threads, rows, inputs, outputs);
            for (i64 taps : {1, 3, 8})
                for (i64 stride : {1, 2}) convolutions(level, threads, 41, 19, taps, stride);
            for (i64 keys : {1, 33, threads == 1 ? 40 : 70})
                for (i64 dim : {1, 36, 64, 130})
                    for (i64 radius : {-1, 1, 20})
                        for (i64 first : {i64(0), keys - 1})
                            for (bool is_relative : {true, false})
                                attention(level, threads, keys, 2, dim, radius, first, is_relative);
            not_a_number(level, threads);
        }
    std::printf("%d failures up to level %d\n", failures, superbit_best_level());
    return failures != 0;
}
