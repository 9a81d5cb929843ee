// The configuration of a model as a packed file holds it (upstreams/config.py), and bit widths.

#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "json.h"

namespace superbit {

// A file that is not valid. The message is one sentence without the name of the file.
struct InvalidFile : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct Bits {
    int weight = 32, activation = 32;

    static Bits parse(const std::string& text);
    std::string text() const { return "w" + std::to_string(weight) + "a" + std::to_string(activation); }
    bool operator==(const Bits& other) const { return weight == other.weight && activation == other.activation; }
    bool is_float() const { return weight == 32 && activation == 32; }
};

struct FrontEndConfig {
    std::string kind = "log_mel", normalisation = "dataset";
    double normalisation_eps = 1e-5;
    int64_t mels = 80, subsampling = 4;
    std::string stem = "stack";
    int64_t width = 32;
    std::string feature_norm = "group";
    bool projection_norm = true;
};

struct EncoderConfig {
    std::string kind = "sparseformer";
    int64_t layers = 8, dim = 128, heads = 4, feed_forward_dim = 512;
    std::string activation = "relu", norm = "pre", positions = "conv";
    int64_t position_kernel = 15, position_groups = 128, radius = 16, kernel = 31, reduce = 0, recover = 0;
    double dropout = 0.0, layerdrop = 0.0;
};

struct QuantizationConfig {
    std::vector<std::pair<std::string, std::string>> overrides;  // the last one that matches counts
    std::string weight_scale = "tensor", feed_forward_input = "auto", convolution_input = "signed";
};

struct ModelConfig {
    std::string name;
    FrontEndConfig front_end;
    EncoderConfig encoder;
    std::string bits = "w32a32";
    QuantizationConfig quantization;
    bool output_map = true;
    std::string source;

    // Throw InvalidFile unless the value is a valid configuration.
    static ModelConfig read(const Json& value);
};

// True if a configuration's choice puts a ReLU before a layer of these bits.
bool wants_relu(const std::string& choice, const Bits& bits);

// True if the pattern of an override is a module's kind or fits its name.
bool matches(const std::string& pattern, const std::string& name, const std::string& kind);

}  // namespace superbit
