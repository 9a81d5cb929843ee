#include "layers.h"

#include <algorithm>
#include <cmath>

namespace superbit {
namespace {

// A value for each of `outputs`, of a tensor with one value or with all.
std::vector<float> for_each_output(std::vector<float> values, i64 outputs) {
    if (values.size() == 1) values.resize(size_t(outputs), values[0]);
    return values;
}

std::vector<int8_t> unpacked(const std::vector<uint8_t>& codes, i64 outputs, i64 inputs, int bits) {
    std::vector<int8_t> whole(size_t(outputs * inputs));
    const i64 row = (inputs * bits + 7) / 8, each = 8 / bits;
    const int mask = (1 << bits) - 1, low = 1 << (bits - 1);
    for (i64 output = 0; output < outputs; ++output) {
        const uint8_t* from = codes.data() + output * row;
        int8_t* to = whole.data() + output * inputs;
        for (i64 byte = 0; byte < row; ++byte)
            for (i64 n = 0; n < std::min(each, inputs - byte * each); ++n) {
                const int code = from[byte] >> (n * bits) & mask;
                to[byte * each + n] = int8_t(bits == 1 ? 2 * code - 1 : code - low);
            }
    }
    return whole;
}

template <class T>
std::vector<T> reordered(std::vector<T> rows, const std::vector<i64>& order) {
    if (order.empty()) return rows;
    std::vector<T> to(rows.size());
    const size_t columns = order.size();
    for (size_t row = 0; row < rows.size() / columns; ++row)
        for (size_t k = 0; k < columns; ++k) to[row * columns + k] = rows[row * columns + size_t(order[k])];
    return to;
}

}  // namespace

FileLayer FileLayer::read(const PackedFile& file, const std::string& name, const std::vector<i64>& order) {
    FileLayer layer;
    auto found = file.layers.find(name);
    if (found == file.layers.end()) {
        const std::vector<i64>& shape = file.shape(name + ".weight");
        layer.outputs = shape[0], layer.inputs = 1;
        for (size_t n = 1; n < shape.size(); ++n) layer.inputs *= shape[n];
        layer.weight = reordered(file.floats(name + ".weight"), order);
        layer.bias = file.has(name + ".bias") ? file.floats(name + ".bias") : std::vector<float>(size_t(layer.outputs));
        layer.scale.assign(size_t(layer.outputs), 1.0f);
        return layer;
    }
    layer.bits = found->second.bits, layer.is_signed = found->second.is_signed;
    const std::vector<i64>& shape = file.shape(name + ".codes");
    layer.outputs = shape[0];
    layer.inputs = file.layers.at(name).columns;
    layer.whole = reordered(unpacked(file.codes(name + ".codes"), layer.outputs, layer.inputs, layer.bits.weight), order);
    layer.scale = for_each_output(file.floats(name + ".weight_scale"), layer.outputs);
    layer.bias = file.floats(name + ".bias");
    if (layer.has_levels()) layer.alpha = file.floats(name + ".alpha")[0];
    if (file.has(name + ".beta")) layer.beta = reordered(file.floats(name + ".beta"), order);
    return layer;
}

float FileLayer::low() const {
    if (!is_signed || !has_levels()) return 0.0f;
    return bits.activation == 1 ? -1.0f : -float(1 << (bits.activation - 1));
}

float FileLayer::high() const {
    if (!has_levels()) return 0.0f;
    if (bits.activation == 1) return 1.0f;
    return float((1 << (is_signed ? bits.activation - 1 : bits.activation)) - 1);
}

std::vector<int32_t> FileLayer::sums() const {
    std::vector<int32_t> all(size_t(outputs), 0);
    for (i64 output = 0; output < outputs; ++output)
        for (i64 k = 0; k < inputs; ++k) all[size_t(output)] += whole[size_t(output * inputs + k)];
    return all;
}

std::vector<float> FileLayer::floats() const {
    if (whole.empty()) return weight;
    std::vector<float> all(whole.size());
    for (i64 output = 0; output < outputs; ++output)
        for (i64 k = 0; k < inputs; ++k) {
            const size_t at = size_t(output * inputs + k);
            all[at] = float(whole[at]) * scale[size_t(output)];
        }
    return all;
}

Buffer<float> float_blocks(const float* weight, i64 outputs, i64 inputs) {
    Buffer<float> blocks(size_t(blocks_of(outputs) * LANES * inputs), 0.0f);
    for (i64 output = 0; output < outputs; ++output)
        for (i64 k = 0; k < inputs; ++k)
            blocks[size_t((output / LANES * inputs + k) * LANES + output % LANES)] = weight[output * inputs + k];
    return blocks;
}

Buffer<uint32_t> bit_blocks(const std::vector<int8_t>& whole, i64 outputs, i64 inputs) {
    const i64 words = words_of(inputs);
    Buffer<uint32_t> blocks(size_t(blocks_of(outputs) * LANES * words), 0u);
    for (i64 output = 0; output < outputs; ++output) {
        const int8_t* from = whole.data() + output * inputs;
        for (i64 word = 0; word < words; ++word) {
            uint32_t bits = 0;
            for (i64 n = 0; n < std::min<i64>(32, inputs - word * 32); ++n) bits |= uint32_t(from[word * 32 + n] > 0) << n;
            blocks[size_t((output / LANES * words + word) * LANES + output % LANES)] = bits;
        }
    }
    return blocks;
}

Linear::Linear(const FileLayer& layer, bool has_weights) : inputs(layer.inputs), outputs(layer.outputs), shift(layer.beta.begin(), layer.beta.end()) {
    input.columns = inputs;
    if (!layer.has_levels()) {
        if (layer.bits.weight == 1) {
            kind = Kind::signs;
            bits = bit_blocks(layer.whole, outputs, inputs);
            scale = padded(layer.scale), bias = padded(layer.bias);
        } else {
            product = FloatLinear(layer.floats().data(), outputs, inputs, layer.bias);
        }
        return;
    }
    std::vector<int32_t> offsets(size_t(outputs), 0);
    if (!layer.is_one_bit() || !layer.is_signed) offsets = layer.sums();
    double unit = layer.alpha;
    input.shift = shift.empty() ? nullptr : shift.data();
    if (layer.is_one_bit()) {
        kind = Kind::binary;
        input.kind = Form::bits;
        input.strict = !layer.is_signed;
        input.threshold = layer.is_signed ? 0.0f : layer.alpha / 2;
        // A level in {0, 1} is half a level in {-1, +1} plus one half; the halves add half the sum of the weights.
        for (int32_t& offset : offsets) offset = int32_t(inputs) + (layer.is_signed ? 0 : offset);
        unit *= layer.is_signed ? 1.0 : 0.5;
    } else {
        kind = layer.bits.weight == 1 ? Kind::bytes : Kind::int8;
        input.kind = Form::bytes;
        input.alpha = layer.alpha, input.low = layer.low(), input.high = layer.high();
        for (int32_t& offset : offsets) offset *= int32_t(layer.low());
    }
    if (kind == Kind::int8) {
        const i64 columns = words_of(inputs) * 32, pairs = (outputs + 31) / 32;
        panels.assign(size_t(pairs * 32 * columns), 0);
        for (i64 output = 0; output < outputs; ++output)
            for (i64 k = 0; k < inputs; ++k)
                panels[size_t(output / 32 * 32 * columns + k / 4 * 128 + output % 32 * 4 + k % 4)] =
                    layer.whole[size_t(output * inputs + k)];
    } else if (has_weights) {
        bits = bit_blocks(layer.whole, outputs, inputs);
    }
    std::vector<float> scales(layer.scale.size());
    for (size_t n = 0; n < scales.size(); ++n) scales[n] = float(double(layer.scale[n]) * unit);
    offset = padded(offsets), scale = padded(scales), bias = padded(layer.bias);
    if (kind == Kind::int8)  // whose tiles are two blocks wide
        for (Buffer<float>* values : {&scale, &bias}) values->resize(size_t((outputs + 31) / 32 * 32));
    offset.resize(scale.size());
}

void Linear::run(const Context& context, const void* x, i64 rows, f32* out) const {
    const i64 blocks = blocks_of(outputs);
    switch (kind) {
        case Kind::binary: {
            BinaryProduct of{static_cast<const u32*>(x), words_of(inputs), bits.data(), outputs, blocks};
            return context.run(BinaryToFloats{of, {offset.data(), scale.data(), bias.data(), -2}, out}, rows, 6);
        }
        case Kind::bytes:
            return context.run(ByteProduct{static_cast<const uint8_t*>(x), words_of(inputs), bits.data(), outputs, blocks,
                                           {offset.data(), scale.data(), bias.data(), 1}, out},
                               rows, 8);
        case Kind::int8:
            return context.run(Int8Product{static_cast<const uint8_t*>(x), words_of(inputs) * 32, panels.data(), outputs,
                                           {offset.data(), scale.data(), bias.data(), 1}, out, outputs},
                               rows, 8);
        case Kind::signs:
            return context.run(SignProduct{static_cast<const f32*>(x), inputs, bits.data(), outputs, blocks, scale.data(),
                                           bias.data(), out},
                               rows, 4);
        case Kind::floats: return product.run(context, static_cast<const f32*>(x), inputs, rows, out, outputs);
    }
}

BitLinear::BitLinear(FileLayer layer, float threshold, bool strict, i64 heads) {
    const i64 dim = layer.outputs / heads, padded_dim = words_of(dim) * 32, inputs = layer.inputs;
    outputs = heads * padded_dim;
    linear = Linear(layer, false);
    limit.assign(size_t(outputs), 0);  // no count is below the limit of an output that fills a word
    std::vector<int8_t> whole(size_t(outputs * inputs), 0);
    const double unit = double(layer.alpha) * (layer.is_signed ? 1.0 : 0.5);
    for (i64 n = 0; n < layer.outputs; ++n) {
        // scale (offset - 2 count) + bias falls as count grows. If the scale is 0 the output is the bias.
        const double scale = double(layer.scale[size_t(n)]) * unit, bias = layer.bias[size_t(n)];
        double highest = (double(linear.offset[size_t(n)]) - (double(threshold) - bias) / scale) / 2;
        if (!(scale > 0)) highest = (strict ? bias > threshold : bias >= threshold) ? INFINITY : -INFINITY;
        const double least = strict ? std::ceil(highest) : std::floor(highest) + 1;
        const i64 to = n / dim * padded_dim + n % dim;
        limit[size_t(to)] = int32_t(std::min(std::max(least, 0.0), double(inputs + 1)));
        std::copy_n(layer.whole.begin() + n * inputs, inputs, whole.begin() + to * inputs);
    }
    linear.bits = bit_blocks(whole, outputs, inputs);
    linear.offset = {}, linear.scale = {}, linear.bias = {};
}

void BitLinear::run(const Context& context, const void* x, i64 rows, void* out) const {
    BinaryProduct product{static_cast<const u32*>(x), words_of(linear.inputs), linear.bits.data(), outputs, blocks_of(outputs)};
    context.run(BinaryToBits{product, limit.data(), static_cast<u32*>(out)}, rows, 6);
}

InputLevels::InputLevels(const FileLayer& layer)
    : is_active(layer.has_levels()), is_sign(layer.bits.activation == 1 && layer.is_signed), alpha(layer.alpha),
      low(layer.low()), high(layer.high()), beta(layer.beta.begin(), layer.beta.end()) {}

void InputLevels::run(const Context& context, const f32* x, i64 rows, i64 channels, f32* out) const {
    const f32* shift = beta.empty() ? nullptr : beta.data();
    context.run(Levels{x, channels, shift, is_sign, alpha, low, high, alpha, out}, rows, 16);
}

DepthwiseConvolution::DepthwiseConvolution(const FileLayer& layer, i64 stride, i64 before)
    : channels(layer.outputs), taps(layer.inputs), stride(stride), before(before), levels(layer),
      weights(layer.whole.size() + layer.weight.size()), bias(layer.bias.begin(), layer.bias.end()) {
    const std::vector<float> by_channel = layer.floats();
    for (i64 c = 0; c < channels; ++c)
        for (i64 tap = 0; tap < taps; ++tap) weights[size_t(tap * channels + c)] = by_channel[size_t(c * taps + tap)];
}

void DepthwiseConvolution::fold(const std::vector<float>& factor, const std::vector<float>& more) {
    for (size_t n = 0; n < weights.size(); ++n) weights[n] *= factor[n % factor.size()];
    for (size_t c = 0; c < bias.size(); ++c) bias[c] = bias[c] * factor[c] + more[c];
}

void DepthwiseConvolution::run(const Context& context, f32* x, i64 inputs, i64 outputs, f32* out) const {
    if (levels.is_active) levels.run(context, x, inputs, channels, x);
    context.run(Depthwise{x, inputs, channels, taps, stride, before, weights.data(), bias.data(), out}, outputs, 16);
}

}  // namespace superbit
