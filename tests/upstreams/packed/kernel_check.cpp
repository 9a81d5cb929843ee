// Every operation of the kernel at every level of this processor, against plain loops in double precision. Inputs begin at odd
// addresses and end with their last element, so that the sanitizers see every access outside.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernel/levels.h"
#include "kernel/operations.h"
#include "kernel/parallel.h"

using namespace superbit;

static std::mt19937 generator(0);
static int failures = 0;

// Elements at an odd address, with no memory after the last one.
template <class T>
struct Odd {
    char* memory;
    i64 count;

    explicit Odd(i64 n) : memory((char*)std::malloc(size_t(n) * sizeof(T) + 1)), count(n) { std::memset(memory, 0, size_t(n) * sizeof(T) + 1); }
    Odd(const Odd&) = delete;
    ~Odd() { std::free(memory); }
    T* data() { return (T*)(memory + 1); }
    T operator[](i64 i) const {
        T value;
        std::memcpy(&value, memory + 1 + i * i64(sizeof(T)), sizeof(T));
        return value;
    }
    void set(i64 i, T value) { std::memcpy(memory + 1 + i * i64(sizeof(T)), &value, sizeof(T)); }
    Odd& randomize() {
        for (i64 i = 0; i < count; ++i) set(i, T(int(generator() % 2001) - 1000) / T(500));
        return *this;
    }
};

// Random bits; those after the last column are zero.
static void random_bits(Odd<uint32_t>& bits, i64 rows, i64 columns) {
    for (i64 row = 0; row < rows; ++row)
        for (i64 k = 0; k < columns; ++k) {
            const i64 at = row * words_of(columns) + k / 32;
            bits.set(at, bits[at] | (generator() & 1u) << (k % 32));
        }
}

template <class Bits>
static int sign(const Bits& bits, i64 word, i64 k) {
    return bits[word + k / 32] >> (k % 32) & 1 ? 1 : -1;
}

struct Case {
    const Context& context;
    std::string where;

    void expect(bool holds, const char* what) const {
        if (holds) return;
        std::printf("%s: %s\n", what, where.c_str());
        ++failures;
    }

    template <class Found>
    void close(const char* what, const Found& found, const std::vector<double>& expected, double allowed = 1e-3) const {
        for (size_t i = 0; i < expected.size(); ++i)
            if (!(std::fabs(found[i64(i)] - expected[i]) <= allowed * (1 + std::fabs(expected[i])))) return expect(false, what);
    }

    // The rows computed at once equal each row computed alone, to the last bit: streaming relies on it.
    template <class Operation>
    void run(const char* what, const Operation& operation, i64 rows, Odd<float>& out) const {
        context.run(operation, rows, 4);
        const i64 row = rows - 1, width = out.count / rows;
        std::vector<float> last(size_t(width), 0.0f);
        for (i64 j = 0; j < width; ++j) last[size_t(j)] = out[row * width + j], out.set(row * width + j, -1.0f);
        run_at(context.level, operation, row, row + 1, context.scratch);
        for (i64 j = 0; j < width; ++j) expect(out[row * width + j] == last[size_t(j)], what);
    }
};

static void products(const Context& context, i64 rows, i64 inputs, i64 outputs) {
    const Case at{context, std::to_string(rows) + " rows, " + std::to_string(inputs) + " inputs, " + std::to_string(outputs) + " outputs"};
    const i64 words = words_of(inputs), blocks = blocks_of(outputs), columns = words * 32;
    Odd<float> x(rows * inputs), shift(inputs), scale(blocks * LANES + 16), bias(blocks * LANES + 16), out(rows * outputs);
    Odd<uint32_t> signs(outputs * words), weights(blocks * words * LANES), bits(rows * words), halves(rows * words_of(blocks * LANES));
    Odd<int32_t> offset(blocks * LANES + 16), limit(blocks * LANES);
    Odd<uint8_t> bytes(rows * columns), general(rows * columns);
    Odd<int8_t> panels((outputs + 31) / 32 * 32 * columns);
    x.randomize(), shift.randomize(), scale.randomize(), bias.randomize();
    random_bits(signs, outputs, inputs), random_bits(bits, rows, inputs);
    for (i64 j = 0; j < outputs; ++j) {
        for (i64 w = 0; w < words; ++w) weights.set((j / LANES * words + w) * LANES + j % LANES, signs[j * words + w]);
        limit.set(j, int32_t(generator() % uint32_t(inputs + 2)));
        offset.set(j, int32_t(generator() % 100));
    }
    for (i64 i = 0; i < rows; ++i)
        for (i64 k = 0; k < inputs; ++k) bytes.set(i * columns + k, uint8_t(generator()));
    std::vector<int> whole(size_t(outputs * inputs));
    for (i64 j = 0; j < outputs; ++j)
        for (i64 k = 0; k < inputs; ++k) {
            const int8_t weight = int8_t(generator());
            whole[size_t(j * inputs + k)] = weight;
            panels.set(j / 32 * 32 * columns + k / 4 * 128 + j % 32 * 4 + k % 4, weight);
        }
    std::vector<double> binary, eight, int8, floats;
    std::vector<int> expected_bits;
    for (i64 i = 0; i < rows; ++i)
        for (i64 j = 0; j < outputs; ++j) {
            int differing = 0, sum = 0, product = 0;
            double exact = 0;
            for (i64 k = 0; k < inputs; ++k) {
                const int weight = sign(signs, j * words, k);
                differing += weight != sign(bits, i * words, k);
                sum += weight * bytes[i * columns + k];
                product += whole[size_t(j * inputs + k)] * bytes[i * columns + k];
                exact += double(weight) * x[i * inputs + k];
            }
            binary.push_back(double(scale[j]) * (offset[j] - 2 * differing) + bias[j]);
            eight.push_back(double(scale[j]) * (offset[j] + sum) + bias[j]);
            int8.push_back(double(scale[j]) * (offset[j] + product) + bias[j]);
            floats.push_back(scale[j] * exact + bias[j]);
            expected_bits.push_back(differing < limit[j]);
        }
    const BinaryProduct product{bits.data(), words, weights.data(), outputs, blocks};
    const Affine affine{offset.data(), scale.data(), bias.data(), 1}, counts{offset.data(), scale.data(), bias.data(), -2};
    at.run("BinaryToFloats", BinaryToFloats{product, counts, out.data()}, rows, out), at.close("BinaryToFloats", out, binary, 1e-6);
    context.run(BinaryToBits{product, limit.data(), halves.data()}, rows, 4);
    for (i64 i = 0; i < rows; ++i)
        for (i64 j = 0; j < blocks * LANES; ++j) {
            const int expected = j < outputs && expected_bits[size_t(i * outputs + j)] ? 1 : -1;
            at.expect(sign(halves, i * words_of(blocks * LANES), j) == expected, "BinaryToBits");
        }
    at.run("ByteProduct", ByteProduct{bytes.data(), words, weights.data(), outputs, blocks, affine, out.data()}, rows, out);
    at.close("ByteProduct", out, eight, 1e-6);
    at.run("Int8Product", Int8Product{bytes.data(), columns, panels.data(), outputs, affine, out.data(), outputs}, rows, out);
    at.close("Int8Product", out, int8, 1e-6);
    at.run("SignProduct", SignProduct{x.data(), inputs, weights.data(), outputs, blocks, scale.data(), bias.data(), out.data()}, rows, out);
    at.close("SignProduct", out, floats);
}

// Products of floats with rows that overlap, the first and last of which may be zero.
static void windows(const Context& context, i64 rows, i64 channels, i64 taps, i64 outputs, i64 zeros) {
    const Case at{context, std::to_string(rows) + " rows of " + std::to_string(taps) + " x " + std::to_string(channels)};
    const i64 frames = rows + taps - 1, inputs = channels * taps;
    Odd<float> x(frames * channels), weights(blocks_of(outputs) * inputs * LANES), bias(blocks_of(outputs) * LANES), out(rows * outputs);
    x.randomize(), weights.randomize(), bias.randomize();
    zeros = std::min(zeros, frames / 2);
    for (i64 n = 0; n < zeros * channels; ++n) x.set(n, 0.0f), x.set(frames * channels - 1 - n, 0.0f);
    std::vector<double> expected;
    for (i64 i = 0; i < rows; ++i)
        for (i64 j = 0; j < outputs; ++j) {
            double sum = bias[j];
            for (i64 k = 0; k < inputs; ++k) sum += double(x[i * channels + k]) * weights[(j / LANES * inputs + k) * LANES + j % LANES];
            expected.push_back(sum);
        }
    FloatProduct product{x.data(), channels, inputs, weights.data(), inputs, outputs, blocks_of(outputs), bias.data(), out.data(), outputs,
                         zeros * channels, (frames - zeros) * channels};
    at.run("FloatProduct", product, rows, out), at.close("FloatProduct", out, expected);
}

static void depthwise(const Context& context, i64 frames, i64 channels, i64 taps, i64 stride, i64 before) {
    const Case at{context, std::to_string(frames) + " frames, " + std::to_string(channels) + " channels, " + std::to_string(taps) + " taps"};
    const i64 outputs = (frames + stride - 1) / stride;
    Odd<float> x(frames * channels), weights(taps * channels), bias(channels), out(outputs * channels);
    x.randomize(), weights.randomize(), bias.randomize();
    std::vector<double> expected;
    for (i64 n = 0; n < outputs; ++n)
        for (i64 c = 0; c < channels; ++c) {
            double sum = bias[c];
            for (i64 tap = 0; tap < taps; ++tap) {
                const i64 frame = n * stride - before + tap;
                if (frame >= 0 && frame < frames) sum += double(x[frame * channels + c]) * weights[tap * channels + c];
            }
            expected.push_back(sum);
        }
    at.run("Depthwise", Depthwise{x.data(), frames, channels, taps, stride, before, weights.data(), bias.data(), out.data()}, outputs, out);
    at.close("Depthwise", out, expected, 1e-5);
}

static void stem(const Context& context, i64 frames, i64 bins, i64 width, i64 step) {
    const Case at{context, std::to_string(frames) + " frames, " + std::to_string(bins) + " bins, " + std::to_string(width) + " channels"};
    const i64 halved = (bins + 1) / 2, quarter = (halved + 1) / 2, limit = (frames + 1) / 2, outputs = (limit + step - 1) / step;
    const i64 count = step * (outputs - 1) + 3;
    Odd<float> x(frames * bins), first(9 * width), second(9 * width), bias(width), y(count * halved * width), out(outputs * quarter * width);
    x.randomize(), first.randomize(), second.randomize(), bias.randomize();
    context.run(StemFirst{x.data(), 0, frames, bins, width, -1, limit, first.data(), bias.data(), y.data()}, count, 4);
    at.run("StemDepthwise", StemDepthwise{y.data(), halved, width, step, second.data(), bias.data(), out.data()}, outputs, out);
    auto input = [&](i64 n, i64 b) { return n < 0 || n >= frames || b < 0 || b >= bins ? 0.0 : double(x[n * bins + b]); };
    auto middle = [&](i64 n, i64 b, i64 c) {
        if (n < 0 || n >= limit || b < 0 || b >= halved) return 0.0;
        double sum = bias[c];
        for (int k = 0; k < 9; ++k) sum += input(2 * n - 1 + k / 3, 2 * b - 1 + k % 3) * first[k * width + c];
        return sum < 0 ? 0.0 : sum;
    };
    std::vector<double> expected;
    for (i64 n = 0; n < outputs; ++n)
        for (i64 b = 0; b < quarter; ++b)
            for (i64 c = 0; c < width; ++c) {
                double sum = bias[c];
                for (int k = 0; k < 9; ++k) sum += middle(step * n - 1 + k / 3, 2 * b - 1 + k % 3, c) * second[k * width + c];
                expected.push_back(sum);
            }
    at.close("StemDepthwise", out, expected, 1e-4);
}

static void rows(const Context& context, i64 count, i64 columns) {
    const Case at{context, std::to_string(count) + " rows of " + std::to_string(columns)};
    Odd<float> x(count * columns), add(count * columns), weight(columns), bias(columns), sum(count * columns), normed(count * columns);
    Odd<float> wide(2 * count * columns), plain(count * columns);
    x.randomize(), add.randomize(), weight.randomize(), bias.randomize(), wide.randomize();
    Odd<uint32_t> bits(count * words_of(columns));
    Odd<uint8_t> bytes(count * words_of(columns) * 32);
    auto swish = [](double v) { return v / (1 + std::exp(-v)); };
    for (Activation activation : {Activation::none, Activation::relu, Activation::gelu, Activation::swish}) {
        Rows all{columns, x.data()};
        all.activation = activation, all.add = add.data(), all.factor = 0.5f, all.sum = sum.data();
        all.weight = weight.data(), all.bias = bias.data(), all.normed = normed.data();
        all.scale = bias.data(), all.shift = weight.data(), all.count = 3;
        for (Form& form : all.forms) form.columns = columns;
        all.forms[0].kind = Form::bits, all.forms[0].shift = bias.data(), all.targets[0] = (char*)bits.data();
        all.forms[1].kind = Form::bytes, all.forms[1].alpha = 0.01f, all.forms[1].low = -128, all.forms[1].high = 127;
        all.targets[1] = (char*)bytes.data(), all.targets[2] = (char*)plain.data();
        context.run(all, count, 4);
        std::vector<double> sums, norms;
        for (i64 i = 0; i < count; ++i) {
            double mean = 0, variance = 0;
            for (i64 k = 0; k < columns; ++k) {
                const double v = x[i * columns + k];
                const double y = activation == Activation::none ? v
                                 : activation == Activation::relu ? (v < 0 ? 0 : v)
                                 : activation == Activation::gelu ? v / 2 * (1 + std::erf(v / std::sqrt(2.0)))
                                                                  : swish(v);
                sums.push_back(y + 0.5 * add[i * columns + k]);
                mean += sums.back() / double(columns);
            }
            for (i64 k = 0; k < columns; ++k) variance += std::pow(sums[size_t(i * columns + k)] - mean, 2) / double(columns);
            for (i64 k = 0; k < columns; ++k)
                norms.push_back((sums[size_t(i * columns + k)] - mean) / std::sqrt(variance + 1e-5) * weight[k] + bias[k]);
        }
        at.close("sum of Rows", sum, sums, 1e-5), at.close("norm of Rows", normed, norms);
        bool is_same = true;
        for (i64 i = 0; i < count; ++i)
            for (i64 k = 0; k < words_of(columns) * 32; ++k) {
                const float value = k < columns ? plain[i * columns + k] : 0.0f;
                const bool bit = k < columns && value + bias[k] >= 0;
                const float level = std::nearbyint(std::fmin(std::fmax(value / 0.01f, -128.0f), 127.0f)) + 128;
                is_same &= (sign(bits, i * words_of(columns), k) == 1) == bit;
                is_same &= bytes[i * words_of(columns) * 32 + k] == (k < columns ? level : 0);
            }
        at.expect(is_same, "forms of Rows");
        for (Form::Kind kind : {Form::bits, Form::bytes}) {
            const float kept = x[count * columns - 1];
            x.set(count * columns - 1, NAN);
            Rows faulty{columns, x.data()};
            faulty.count = 1, faulty.forms[0] = all.forms[kind == Form::bits ? 0 : 1], faulty.targets[0] = all.targets[kind == Form::bits ? 0 : 1];
            bool is_refused = false;
            try {
                context.run(faulty, count, 4);
            } catch (const NotANumber&) {
                is_refused = true;
            }
            at.expect(is_refused, "NaN in Rows");
            x.set(count * columns - 1, kept);
        }
    }
    for (bool relu : {false, true}) {
        at.run("Gate", Gate{wide.data(), columns, relu, sum.data()}, count, sum);
        std::vector<double> gated;
        for (i64 i = 0; i < count; ++i)
            for (i64 k = 0; k < columns; ++k) {
                const double y = double(wide[i * 2 * columns + k]) / (1 + std::exp(-double(wide[(i * 2 + 1) * columns + k])));
                gated.push_back(relu && y < 0 ? 0 : y);
            }
        at.close("Gate", sum, gated, 1e-5);
    }
    Odd<float> cosine(count * (columns / 2)), sine(count * (columns / 2)), turned(count * columns);
    cosine.randomize(), sine.randomize();
    std::vector<double> rotated;
    const i64 half = columns / 2;
    for (i64 i = 0; i < count * columns; ++i) turned.set(i, x[i]);
    for (i64 i = 0; i < count && columns % 2 == 0; ++i)
        for (i64 k = 0; k < columns; ++k) {
            const double c = cosine[i * half + k % half], s = sine[i * half + k % half];
            rotated.push_back(k < half ? x[i * columns + k] * c - x[i * columns + k + half] * s : x[i * columns + k] * c + x[i * columns + k - half] * s);
        }
    if (columns % 2 == 0) context.run(Rotate{turned.data(), 1, columns, cosine.data(), sine.data()}, count, 4);
    at.close("Rotate", turned, rotated, 1e-5);
}

static void spectrum(const Context& context, i64 samples, i64 mels) {
    const Case at{context, std::to_string(samples) + " samples"};
    const i64 frames = (samples + 159) / 160;
    SpectrumTables tables;
    for (int n = 0; n < 400; ++n) tables.window[n] = 0.5 - 0.5 * std::cos(2 * M_PI * n / 399);
    for (int n = 0; n < 512; ++n) tables.cosine[n] = std::cos(2 * M_PI * n / 512), tables.sine[n] = std::sin(2 * M_PI * n / 512);
    Odd<float> x(samples), filters(mels * 257), mean(mels), factor(mels), out(frames * mels);
    std::vector<int32_t> ranges;
    x.randomize(), mean.randomize();
    for (i64 m = 0; m < mels; ++m) {
        factor.set(m, 1.5f), ranges.push_back(int32_t(3 * m)), ranges.push_back(int32_t(3 * m + 5));
        for (i64 k = 3 * m; k < 3 * m + 5; ++k) filters.set(m * 257 + k, float(k % 4));
    }
    at.run("LogMel", LogMel{&tables, x.data(), samples, mels, filters.data(), ranges.data(), mean.data(), factor.data(), out.data()}, frames, out);
    std::vector<double> expected;
    for (i64 n = 0; n < frames; ++n) {
        std::vector<double> power(257);
        for (int k = 0; k < 257; ++k) {
            double re = 0, im = 0;
            for (i64 t = 0; t < 400 && n * 160 + t < samples; ++t) {
                re += x[n * 160 + t] * tables.window[t] * std::cos(2 * M_PI * double(k * t % 512) / 512);
                im -= x[n * 160 + t] * tables.window[t] * std::sin(2 * M_PI * double(k * t % 512) / 512);
            }
            power[size_t(k)] = re * re + im * im;
        }
        for (i64 m = 0; m < mels; ++m) {
            double energy = 1e-6;
            for (i64 k = 3 * m; k < 3 * m + 5; ++k) energy += power[size_t(k)] * double(k % 4);
            expected.push_back((std::log(energy) - mean[m]) / 1.5);
        }
    }
    at.close("LogMel", out, expected, 1e-5);
}

// Two utterances, the second one shorter. The first query is at any key, as in streaming.
static void attention(const Context& context, i64 keys, i64 heads, i64 dim, i64 radius, i64 first, bool is_relative, int bits) {
    const Case at{context, std::to_string(bits) + " bits, " + std::to_string(keys) + " keys, dim " + std::to_string(dim) + ", radius " +
                               std::to_string(radius) + ", first " + std::to_string(first) + (is_relative ? ", relative" : "")};
    const i64 batch = 2, queries = keys - first, words = words_of(dim), reach = keys + 3, offsets = blocks_of(2 * reach + 1);
    Odd<float> query(batch * queries * heads * dim), key(batch * keys * heads * dim), value(key.count), out(query.count);
    Odd<float> position(query.count), position_keys(heads * offsets * dim * LANES);
    Odd<uint32_t> q(batch * queries * heads * words), k(batch * keys * heads * words), v(k.count);
    position.randomize(), position_keys.randomize();
    auto fill = [&](Odd<float>& x, Odd<uint32_t>& packed) {
        for (i64 i = 0; i < x.count; ++i) {
            const bool bit = generator() & 1;
            x.set(i, bits == 1 ? (bit ? 1.0f : -1.0f) : float(int(generator() % 201) - 100) / (bits == 8 ? 1.0f : 50.0f));
            const i64 word = i / dim * words + i % dim / 32;
            if (bits == 1 && bit) packed.set(word, packed[word] | 1u << (i % dim % 32));
        }
    };
    fill(query, q), fill(key, k), fill(value, v);
    const int64_t lengths[2] = {keys, (keys + 1) / 2};
    const RelativeScores relative{position.data(), position_keys.data(), reach};
    const Window window{queries, keys, heads, dim, lengths, first, radius, is_relative ? &relative : nullptr};
    // Steps so irrational and coarse that no probability lies at a threshold.
    const float scale = bits == 8 ? 1e-3f : 0.2f, alpha = bits == 8 ? 0.71234567f : 0.86421357f / float(keys), highest = bits == 8 ? 1.0f : 0.0f;
    if (bits == 1)
        context.run(BinaryAttention{q.data(), k.data(), v.data(), window, scale, alpha / 2, 0.7f, out.data()}, batch * heads, 1);
    else
        context.run(FloatAttention{query.data(), key.data(), value.data(), window, scale, alpha, highest, 0.7f, out.data()}, batch * heads, 1);
    std::vector<double> expected(size_t(out.count), 0.0);
    for (i64 b = 0; b < batch; ++b)
        for (i64 i = 0; i < queries; ++i)
            for (i64 h = 0; h < heads; ++h) {
                const i64 low = radius < 0 ? 0 : std::max<i64>(0, first + i - radius);
                const i64 high = radius < 0 ? lengths[b] : std::min<i64>(lengths[b], first + i + radius + 1);
                const i64 row = (b * queries + i) * heads + h;
                std::vector<double> score;
                double most = -1e300, total = 0;
                for (i64 j = low; j < high; ++j) {
                    double sum = 0;
                    for (i64 c = 0; c < dim; ++c) {
                        sum += double(query[row * dim + c]) * key[((b * keys + j) * heads + h) * dim + c] * scale;
                        const i64 o = j - first - i + reach;
                        if (is_relative) sum += double(position[row * dim + c]) * position_keys[((h * offsets + o / LANES) * dim + c) * LANES + o % LANES];
                    }
                    score.push_back(sum), most = std::max(most, sum);
                }
                for (double& s : score) s = std::exp(s - most), total += s;
                for (i64 j = low; j < high; ++j) {
                    const double p = score[size_t(j - low)] / total;
                    const double weight = bits == 1 ? p > alpha / 2 : bits == 8 ? std::fmin(std::nearbyint(p / alpha), 1.0) : p;
                    for (i64 c = 0; c < dim; ++c)
                        expected[size_t(row * dim + c)] += 0.7 * weight * value[((b * keys + j) * heads + h) * dim + c];
                }
            }
    at.close("attention", out, expected);
}

int main(int count, char** names) {
    std::string tested;
    for (int number = 0; *level_name(number); ++number) {
        if (count > 1 && std::string(names[1]) != level_name(number)) continue;
        Level level;
        find_level(level_name(number), level);
        tested += std::string(" ") + level_name(number);
        for (int threads : {1, 3}) {
            ThreadPool pool(threads);
            Scratch scratch;
            const Context context{level, threads > 1 ? &pool : nullptr, scratch};
            for (i64 n : {1, 7, 13})
                for (i64 inputs : {1, 31, 33, 144, 196})
                    for (i64 outputs : {1, 17, 65, 168}) products(context, n, inputs, outputs);
            for (i64 taps : {1, 3, 8})
                for (i64 zeros : {0, 2}) windows(context, 9, 19, taps, 50, zeros);
            windows(context, 30, 5, 100, 17, 4);
            for (i64 taps : {1, 3, 8})
                for (i64 stride : {1, 2}) depthwise(context, 41, 19, taps, stride, taps / 2);
            for (i64 step : {1, 2}) stem(context, 11, 8, 5, step), stem(context, 6, 3, 16, step), stem(context, 1, 1, 33, step);
            for (i64 columns : {1, 18, 33, 144}) rows(context, 9, columns);
            spectrum(context, 3000, 20), spectrum(context, 1, 3);
            for (i64 keys : {1, 33, threads == 1 ? 40 : 70})
                for (i64 dim : {1, 36, 130})
                    for (i64 radius : {-1, 1, 20})
                        for (i64 first : {i64(0), keys / 2, keys - 1})
                            for (bool is_relative : {true, false})
                                for (int bits : {1, 8, 32}) attention(context, keys, 2, dim, radius, first, is_relative, bits);
        }
    }
    std::printf("%d failures at%s\n", failures, tested.c_str());
    return failures != 0;
}
