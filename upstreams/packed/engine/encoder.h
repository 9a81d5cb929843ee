// Positions, attention, feed-forward and convolution modules, and the blocks of all encoders.

#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "front_end.h"

namespace superbit {

// Convolutional positions, which see `before` frames to the left and `after` frames to the right.
class ConvPositions {
  public:
    explicit ConvPositions(const PackedFile& file);

    // x + gelu(convolution(x)) for `frames` frames, of which `padded` has the context, (before + frames + after, dim).
    void run(const Context& context, const f32* padded, i64 frames, f32* out) const;

    i64 before, after;

  private:
    void multiply(const Context& context, const f32* x, i64 frames, f32* out) const;
    // filter(output): its weights, (inputs of a group, taps)
    void transform_weights(const std::function<std::vector<float>(i64)>& filter);

    i64 dim, taps, groups;
    InputLevels levels;
    DepthwiseConvolution depthwise;
    std::vector<FloatLinear> products;
    // The same by spectra of segments of `length` frames, if that is not 0.
    i64 length = 0;
    Buffer<float> spectra, forward, backward, bias;
};

// What depends on positions alone: computed once for all blocks and calls, for the largest reach so far.
struct PositionTables {
    i64 reach = -1, frames = 0;
    std::vector<Buffer<float>> keys;  // of each block: [head][block of offsets][head dim][offset]
    Buffer<float> cosine, sine;       // (frames, head dim / 2)
};

// Queries, keys and values of some frames. With 1-bit products they are bits, else floats.
struct Operands {
    char *query = nullptr, *key = nullptr, *value = nullptr;
    f32* position_query = nullptr;  // with relative positions
};

class Attention {
  public:
    Attention(const PackedFile& file, const std::string& name);

    i64 row_bytes() const;  // of queries, keys and values of a frame
    bool is_relative() const { return projection != nullptr; }
    // The forms of the input that queries, keys and values are computed from.
    void set_forms(Rows& rows) const;
    // inputs: rows in the three forms. first: number of the first frame in the utterance.
    void operands(const Context& context, char* const inputs[3], i64 frames, i64 first, const PositionTables& tables,
                  const Operands& to) const;
    // The attention's output, (queries, dim). first: the key at the position of the first query. number: of the block.
    void run(const Context& context, const Operands& operands, i64 queries, i64 keys, i64 first, const PositionTables& tables,
             size_t number, f32* out) const;
    // The keys of the offsets -reach to reach.
    Buffer<float> relative_keys(const Context& context, i64 reach) const;

    i64 heads, dim, radius;  // dim: of the model; radius: -1 sees all frames
    bool is_rotary;

  private:
    int bits;  // of the products' operands
    float scales[4] = {1, 1, 1, 1};  // of query, key, value, probability
    Linear linear[3], output;
    std::unique_ptr<BitLinear> direct[3];  // where bits are all that is needed
    std::unique_ptr<Linear> projection;
    std::vector<float> content_bias, position_bias;
};

class FeedForward {
  public:
    FeedForward() = default;
    FeedForward(const PackedFile& file, const std::string& name);

    const Form& form() const { return fused ? fused->form() : expand.form(); }
    // x: rows in `form`. out: (rows, dim).
    void run(const Context& context, const char* x, i64 rows, f32* out) const;

  private:
    std::unique_ptr<BitLinear> fused;  // whose bits are the input of `contract`
    Linear expand, contract;
    Activation activation = Activation::relu;
};

class ConvolutionModule {
  public:
    ConvolutionModule() = default;
    ConvolutionModule(const PackedFile& file, const std::string& name);

    const Form& form() const { return expand.form(); }
    void run(const Context& context, const char* x, i64 rows, f32* out) const;

  private:
    Linear expand, contract;
    bool is_gated = true, has_relu = false;  // has_relu: before the depthwise convolution
    Activation activation = Activation::swish;
    DepthwiseConvolution depthwise;  // with the batch normalisation
};

class Block {
  public:
    Block(const PackedFile& file, int64_t number);

    // x and y: (frames, dim), which may be the same.
    void run(const Context& context, const f32* x, i64 frames, const PositionTables& tables, f32* y) const;

    // The two halves of a Transformer's block, for streaming: operands of the block's input, and its output from the input
    // and attention's output (`mixed`).
    void operands(const Context& context, const f32* x, i64 frames, i64 first, const PositionTables& tables,
                  const Operands& to) const;
    void finish(const Context& context, const f32* x, const f32* mixed, i64 frames, f32* y) const;

    Attention attention;

  private:
    void attend(const Context& context, Rows prepare, i64 frames, const PositionTables& tables, f32* mixed) const;
    template <class Module>
    void apply(const Context& context, Rows prepare, const Module& module, i64 frames, f32* mixed) const;

    enum class Kind { transformer, conformer, squeezeformer } kind;
    size_t number;
    i64 dim;
    bool is_pre_norm;
    FeedForward first, second;  // a Transformer has only the first
    ConvolutionModule convolution;
    std::vector<Norm> norms;
    std::vector<std::vector<float>> scales, shifts;  // Squeezeformer
};

}  // namespace superbit
