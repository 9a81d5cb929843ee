// Call every function of the kernel at every level. Buffers begin at odd addresses and end with their last element, so that
// the sanitizers see every access outside. Products are compared with plain loops, attention with the scalar level.

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
    x.randomize(), shift.randomize(), scale.randomize(), bias.randomize();
    random_bits(rowwise, outputs, inputs);
    for (i64 j = 0; j < outputs; ++j) {
        for (i64 w = 0; w < words; ++w) weights.set((j / 16 * words + w) * 16 + j % 16, rowwise.get(j * words + w));
        offset.set(j, int32_t(inputs));
        limit.set(j, int32_t(inputs / 2));
    }
    superbit_binarize(level, threads, x.data(), rows, inputs, shift.data(), 0.0f, 0, bits.data());
    superbit_binary_to_floats(level, threads, bits.data(), rows, words, weights.data(), outputs, offset.data(), scale.data(),
                              bias.data(), out.data());
    superbit_binary_to_bits(level, threads, bits.data(), rows, words, weights.data(), outputs, limit.data(), halves.data());
    std::vector<double> binary(rows * outputs), signs(rows * outputs), eight(rows * outputs);
    bool same = true;
    superbit_quantize_bytes(level, threads, x.data(), rows, inputs, 0.01f, -128.0f, 127.0f, bytes.data());
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
    superbit_byte_product(level, threads, bytes.data(), rows, words, weights.data(), outputs, offset.data(), scale.data(),
                          bias.data(), out.data());
    expect(near(out, eight), "byte_product", level, rows, inputs, outputs);
    superbit_sign_product(level, threads, x.data(), rows, inputs, weights.data(), outputs, scale.data(), bias.data(), out.data());
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
    superbit_float_product(level, threads, x.data(), rows, inputs, inputs, 0, rows * inputs, dense.data(), outputs, bias.data(),
                           out.data(), outputs);
    expect(near(out, expected), "float_product", level, rows, inputs, outputs);
    superbit_layer_norm(level, threads, x.data(), rows, inputs, shift.data(), shift.data(), 1e-5f, normed.data());
    superbit_gelu(level, threads, normed.data(), rows * inputs);
    superbit_depthwise(level, threads, x.data(), rows, inputs, 1, 1, shift.data(), shift.data(), normed.data());
    for (i64 i = 0; i < rows * inputs; ++i) {
        float w = shift.get(i % inputs);
        expect(std::fabs(normed.get(i) - (x.get(i) * w + w)) < 1e-4, "depthwise", level, rows, inputs, outputs);
    }
}

static void attention(int level, int threads, i64 keys, i64 heads, i64 dim, i64 radius, i64 first) {
    const i64 batch = 2, queries = keys - first, words = (dim + 31) / 32, reach = keys;
    Odd<uint32_t> q(batch * queries * heads * words), k(batch * keys * heads * words), v(batch * keys * heads * words);
    random_bits(q, batch * queries * heads, dim), random_bits(k, batch * keys * heads, dim), random_bits(v, batch * keys * heads, dim);
    Odd<float> relative(batch * heads * queries * (2 * reach + 1)), out(batch * queries * heads * dim), scalar(batch * queries * heads * dim);
    Odd<float> fq(batch * queries * heads * dim), fk(batch * keys * heads * dim), fv(batch * keys * heads * dim);
    relative.randomize(), fq.randomize(), fk.randomize(), fv.randomize();
    i64 lengths[2] = {keys, (keys + 1) / 2};
    for (Odd<float>* to : {&scalar, &out}) {
        int at = to == &out ? level : 0;
        superbit_binary_attention(at, threads, q.data(), k.data(), v.data(), batch, queries, keys, heads, dim, lengths, first,
                                  radius, relative.data(), reach, 0.2f, 0.4321f / float(keys), 1.0f, to->data());
    }
    std::vector<double> expected(out.count);
    for (i64 i = 0; i < out.count; ++i) expected[i] = scalar.get(i);
    expect(near(out, expected), "binary_attention", level, keys, heads, dim);
    for (Odd<float>* to : {&scalar, &out}) {
        int at = to == &out ? level : 0;
        superbit_float_attention(at, threads, fq.data(), fk.data(), fv.data(), batch, queries, keys, heads, dim, lengths, first,
                                 radius, relative.data(), reach, 0.2f, 1.0f, 0.0f, 1.0f, to->data());
    }
    for (i64 i = 0; i < out.count; ++i) expected[i] = scalar.get(i);
    expect(near(out, expected), "float_attention", level, keys, heads, dim);
}

int main() {
    for (int level = 0; level <= superbit_best_level(); ++level)
        for (int threads : {1, 3}) {
            for (i64 rows : {1, 7, 13})
                for (i64 inputs : {1, 31, 33, 144, 196})
                    for (i64 outputs : {1, 15, 17, 65, 168}) products(level, threads, rows, inputs, outputs);
            for (i64 keys : {1, 33, 70})
                for (i64 dim : {1, 36, 64})
                    for (i64 radius : {-1, 1, 20})
                        for (i64 first : {i64(0), keys - 1}) attention(level, threads, keys, 2, dim, radius, first);
        }
    std::printf("%d failures up to level %d\n", failures, superbit_best_level());
    return failures != 0;
}
