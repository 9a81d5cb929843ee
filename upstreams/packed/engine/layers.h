// Linear layers and convolutions of a packed file, with their weights in the layout of the kernel's products.

#pragma once

#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "../kernel/operations.h"
#include "../kernel/parallel.h"
#include "file.h"

namespace superbit {

template <class T>
struct CacheLines {
    using value_type = T;

    CacheLines() = default;
    template <class Other>
    CacheLines(const CacheLines<Other>&) {}
    T* allocate(size_t count) {
        if (count > (size_t(1) << 46)) throw std::bad_alloc();
        void* memory = std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64);
        if (memory == nullptr) throw std::bad_alloc();
        return static_cast<T*>(memory);
    }
    void deallocate(T* memory, size_t) { std::free(memory); }
    template <class Other>
    bool operator==(const CacheLines<Other>&) const { return true; }
    template <class Other>
    bool operator!=(const CacheLines<Other>&) const { return false; }
};

template <class T>
using Buffer = std::vector<T, CacheLines<T>>;

// A layer as the file holds it. The weights are whole numbers, or floats if they are not quantized.
struct FileLayer {
    Bits bits;
    i64 outputs = 0, inputs = 0;  // inputs: weights of an output
    std::vector<int8_t> whole;    // (outputs, inputs)
    std::vector<float> weight;    // the same in floating point
    std::vector<float> scale, bias;  // (outputs,)
    float alpha = 1.0f;
    std::vector<float> beta;  // shift of the input, empty if there is none
    bool is_signed = true;

    // order: for each input of the caller, its index in the file; empty: the same.
    static FileLayer read(const PackedFile& file, const std::string& name, const std::vector<i64>& order = {});

    bool is_one_bit() const { return bits == Bits{1, 1}; }
    bool has_levels() const { return bits.activation < 32; }  // of the input
    float low() const;  // the lowest and the highest level of the input
    float high() const;
    std::vector<int32_t> sums() const;  // of the weights of each output
    std::vector<float> floats() const;  // the weights with their scale
};

// Weights in blocks of outputs.
Buffer<float> float_blocks(const float* weight, i64 outputs, i64 inputs);
Buffer<uint32_t> bit_blocks(const std::vector<int8_t>& whole, i64 outputs, i64 inputs);

template <class T>
Buffer<T> padded(const std::vector<T>& values) {
    Buffer<T> all(values.begin(), values.end());
    all.resize(size_t(blocks_of(i64(values.size())) * LANES));
    return all;
}

class FloatLinear {
  public:
    FloatLinear() = default;
    FloatLinear(const float* weight, i64 outputs, i64 inputs, const std::vector<float>& bias)
        : inputs(inputs), outputs(outputs), weights(float_blocks(weight, outputs, inputs)), bias(padded(bias)) {}

    // Rows of x begin `stride` floats apart.
    void run(const Context& context, const f32* x, i64 stride, i64 rows, f32* out, i64 out_stride) const {
        FloatProduct product{x, stride, inputs, weights.data(), inputs, outputs, blocks_of(outputs), bias.data(), out, out_stride};
        context.run(product, rows, 8);
    }

    i64 inputs = 0, outputs = 0;

  private:
    Buffer<float> weights, bias;
};

// A linear layer of any bit widths.
class Linear {
  public:
    Linear() = default;
    explicit Linear(const FileLayer& layer, bool has_weights = true);  // false: the caller makes the blocks of 1-bit weights
    Linear(const PackedFile& file, const std::string& name, const std::vector<i64>& order = {})
        : Linear(FileLayer::read(file, name, order)) {}

    Linear(const Linear&) = delete;  // `input` points into `shift`
    Linear(Linear&&) = default;
    Linear& operator=(Linear&&) = default;

    const Form& form() const { return input; }
    // x: rows in `form`. out: (rows, outputs).
    void run(const Context& context, const void* x, i64 rows, f32* out) const;

    i64 inputs = 0, outputs = 0;

  private:
    enum class Kind { binary, bytes, int8, signs, floats } kind = Kind::floats;
    Form input;
    Buffer<float> shift;
    Buffer<uint32_t> bits;
    Buffer<int8_t> panels;
    FloatLinear product;
    Buffer<int32_t> offset;
    Buffer<float> scale, bias;

    friend class BitLinear;
};

// A layer of 1-bit weights and inputs whose outputs are needed only as bits: the next layer's input, or queries, keys and
// values, of which each head begins a new word.
class BitLinear {
  public:
    // The bit of an output is 1 if it is not below the threshold, or above it if `strict`.
    BitLinear(FileLayer layer, float threshold, bool strict, i64 heads);

    const Form& form() const { return linear.input; }
    i64 row_bytes() const { return outputs / 8; }
    void run(const Context& context, const void* x, i64 rows, void* out) const;

  private:
    i64 outputs = 0;
    Linear linear;
    Buffer<int32_t> limit;
};

// How the input of a convolution is quantized.
class InputLevels {
  public:
    InputLevels() = default;
    explicit InputLevels(const FileLayer& layer);

    bool is_active = false;
    // (rows, channels) -> the same, which may be x.
    void run(const Context& context, const f32* x, i64 rows, i64 channels, f32* out) const;

  private:
    bool is_sign = false;
    float alpha = 1.0f, low = 0.0f, high = 0.0f;
    Buffer<float> beta;
};

// A depthwise convolution over frames.
class DepthwiseConvolution {
  public:
    DepthwiseConvolution() = default;
    DepthwiseConvolution(const FileLayer& layer, i64 stride, i64 before);

    // Multiply what each channel gives by `factor` and add `more`: a batch normalisation that follows.
    void fold(const std::vector<float>& factor, const std::vector<float>& more);
    // (inputs, channels) -> (outputs, channels). x is zero outside; it is overwritten if the input is quantized.
    void run(const Context& context, f32* x, i64 inputs, i64 outputs, f32* out) const;

    i64 channels = 0;

  private:
    i64 taps = 0, stride = 1, before = 0;
    InputLevels levels;
    Buffer<float> weights, bias;
};

}  // namespace superbit
