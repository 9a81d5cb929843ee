#include "encoder.h"

#include <algorithm>
#include <cmath>

#include "../kernel/levels.h"

namespace superbit {
namespace {

Activation activation_of(const std::string& name) {
    return name == "relu" ? Activation::relu : name == "gelu" ? Activation::gelu : Activation::swish;
}

// True if quantizing a layer puts a ReLU before it (upstreams/quantization/convert.py).
bool puts_relu(const PackedFile& file, const std::string& layer, const std::string& choice) {
    auto found = file.layers.find(layer);
    return found != file.layers.end() && wants_relu(choice, found->second.bits);
}

char* take_form(const Context& context, const Form& form, i64 rows) { return context.scratch.take<char>(rows * form.row_bytes()); }

constexpr i64 PART = 128;  // rows of a feed-forward's hidden layer that are computed at once

}  // namespace

ConvPositions::ConvPositions(const PackedFile& file) {
    const EncoderConfig& config = file.config.encoder;
    dim = config.dim, taps = config.position_kernel, groups = config.position_groups;
    before = taps / 2, after = taps - 1 - before;
    const std::string name = "encoder.positions.convolution";
    const i64 inputs = dim / groups, filter = inputs * taps;
    // Segments of a stream would be cut elsewhere than those of a whole utterance, with other roundings.
    const bool is_spectral = config.kind != "sparseformer" && inputs >= 8 && taps >= 48;
    if (is_spectral && !file.layers.count(name)) {
        const std::vector<float> shift = file.floats(name + ".bias");
        bias.assign(shift.begin(), shift.end());
        // One filter at a time: at 12 x 768 all of them have 19 MB.
        transform_weights([&](i64 output) { return file.floats(name + ".weight", output * filter, filter); });
        return;
    }
    FileLayer layer = FileLayer::read(file, name);
    levels = InputLevels(layer);
    if (inputs == 1) {
        depthwise = DepthwiseConvolution(layer, 1, 0);
        return;
    }
    bias.assign(layer.bias.begin(), layer.bias.end());
    const std::vector<float> weight = layer.floats();
    if (is_spectral) {
        transform_weights([&](i64 output) {
            return std::vector<float>(weight.begin() + output * filter, weight.begin() + (output + 1) * filter);
        });
        return;
    }
    std::vector<float> rows(size_t(inputs * inputs * taps));
    for (i64 group = 0; group < groups; ++group) {
        const float* from = weight.data() + group * inputs * inputs * taps;
        for (i64 output = 0; output < inputs; ++output)
            for (i64 k = 0; k < inputs; ++k)
                for (i64 tap = 0; tap < taps; ++tap)
                    rows[size_t((output * taps + tap) * inputs + k)] = from[(output * inputs + k) * taps + tap];
        const std::vector<float> own(layer.bias.begin() + group * inputs, layer.bias.begin() + (group + 1) * inputs);
        products.emplace_back(rows.data(), inputs, inputs * taps, own);
    }
}

void ConvPositions::transform_weights(const std::function<std::vector<float>(i64)>& filter) {
    length = (taps + taps / 2 + 1) / 2 * 2;
    const i64 step = length - taps + 1, frequencies = length / 2 + 1, rows = 2 * frequencies;
    const i64 inputs = dim / groups, part = blocks_of(inputs) * inputs * LANES;
    auto angle = [&](i64 frequency, i64 n) { return 2.0 * 3.14159265358979323846 * double(frequency * n % length) / double(length); };
    forward.resize(size_t(rows * length)), backward.resize(size_t(step * rows));
    std::vector<float> of_taps(size_t(rows * taps));  // conjugated: out[t] sums weight[tap] x[t + tap]
    for (i64 f = 0; f < frequencies; ++f) {
        const double share = (f == 0 || f == length / 2 ? 1.0 : 2.0) / double(length);
        for (i64 n = 0; n < length; ++n) {
            forward[size_t(2 * f * length + n)] = float(std::cos(angle(f, n)));
            forward[size_t((2 * f + 1) * length + n)] = float(-std::sin(angle(f, n)));
        }
        for (i64 n = 0; n < step; ++n) {
            backward[size_t(n * rows + 2 * f)] = float(share * std::cos(angle(f, n)));
            backward[size_t(n * rows + 2 * f + 1)] = float(-share * std::sin(angle(f, n)));
        }
        for (i64 tap = 0; tap < taps; ++tap) {
            of_taps[size_t(2 * f * taps + tap)] = float(std::cos(angle(f, tap)));
            of_taps[size_t((2 * f + 1) * taps + tap)] = float(std::sin(angle(f, tap)));
        }
    }
    const FloatLinear transform(of_taps.data(), rows, taps, std::vector<float>(size_t(rows)));
    Level level;
    find_level(nullptr, level);
    Scratch scratch;
    const Context context{level, nullptr, scratch};
    spectra.assign(size_t(groups * frequencies * 2 * part), 0.0f);
    std::vector<float> of_output(size_t(inputs * rows));
    for (i64 output = 0; output < dim; ++output) {
        transform.run(context, filter(output).data(), taps, inputs, of_output.data(), rows);
        const i64 group = output / inputs, j = output % inputs;
        for (i64 k = 0; k < inputs; ++k)
            for (i64 n = 0; n < rows; ++n)
                spectra[size_t((group * rows + n) * part + (j / LANES * inputs + k) * LANES + j % LANES)] = of_output[size_t(k * rows + n)];
    }
}

void ConvPositions::multiply(const Context& context, const f32* x, i64 frames, f32* out) const {
    const i64 total = before + frames + after, inputs = dim / groups;
    float* group = context.scratch.take<float>(total * inputs);
    for (i64 g = 0; g < groups; ++g) {
        for (i64 n = 0; n < total; ++n) std::copy(x + n * dim + g * inputs, x + n * dim + (g + 1) * inputs, group + n * inputs);
        products[size_t(g)].run(context, group, inputs, frames, out + g * inputs, dim);
    }
}

void ConvPositions::run(const Context& context, const f32* padded, i64 frames, f32* out) const {
    Scratch::Scope scope(context.scratch);
    const i64 total = before + frames + after;
    float *y = context.scratch.take<float>(frames * dim), *x = context.scratch.take<float>(total * dim);
    if (dim == groups) {
        std::copy(padded, padded + total * dim, x);
        depthwise.run(context, x, total, frames, y);
    } else {
        const f32* from = padded;
        if (levels.is_active) {
            levels.run(context, padded, total, dim, x);
            from = x;
        }
        if (length)
            context.run(SpectralConvolution{from, frames, taps, dim, groups, length, forward.data(), spectra.data(), backward.data(),
                                            bias.data(), y},
                        groups, 1);
        else
            multiply(context, from, frames, y);
    }
    Rows finish{dim, y};
    finish.activation = Activation::gelu, finish.add = padded + before * dim, finish.sum = out;
    context.run(finish, frames, 16);
}

Attention::Attention(const PackedFile& file, const std::string& name) {
    const EncoderConfig& config = file.config.encoder;
    heads = config.heads, dim = config.dim, radius = config.kind == "sparseformer" ? config.radius : -1;
    is_rotary = config.positions == "rotary";
    const std::string product = name + ".product", operands[4] = {"query", "key", "value", "probability"};
    auto found = file.layers.find(product);
    bits = found == file.layers.end() ? 32 : found->second.bits.activation;
    for (int n = 0; n < 4 && bits < 32; ++n) scales[n] = file.floats(product + "." + operands[n])[0];
    if (config.positions == "relative") {
        projection = std::make_unique<Linear>(file, name + ".positions.projection");
        content_bias = file.floats(name + ".positions.content_bias");
        position_bias = file.floats(name + ".positions.position_bias");
    }
    for (int n = 0; n < 3; ++n) {
        const FileLayer layer = FileLayer::read(file, name + "." + operands[n]);
        // Relative and rotary positions need queries and keys in floating point before they become bits.
        const bool is_direct = n == 2 || (!is_rotary && !is_relative());
        if (bits == 1 && is_direct && layer.is_one_bit())
            direct[n] = std::make_unique<BitLinear>(layer, 0.0f, false, heads);
        else
            linear[n] = Linear(layer);
    }
    output = Linear(file, name + ".output");
}

i64 Attention::row_bytes() const { return bits == 1 ? heads * words_of(dim / heads) * 4 : dim * 4; }

void Attention::set_forms(Rows& rows) const {
    rows.count = 3;
    for (int n = 0; n < 3; ++n) rows.forms[n] = direct[n] ? direct[n]->form() : linear[n].form();
}

void Attention::operands(const Context& context, char* const inputs[3], i64 frames, i64 first, const PositionTables& tables,
                         const Operands& to) const {
    Scratch::Scope scope(context.scratch);
    char* const targets[3] = {to.query, to.key, to.value};
    const i64 head = dim / heads;
    float* y = bits == 32 ? nullptr : context.scratch.take<float>(frames * dim);
    for (int n = 0; n < 3; ++n) {
        if (direct[n]) {
            direct[n]->run(context, inputs[n], frames, targets[n]);
            continue;
        }
        f32* x = bits == 32 ? reinterpret_cast<f32*>(targets[n]) : y;
        linear[n].run(context, inputs[n], frames, x);
        if (is_rotary && n < 2)
            context.run(Rotate{x, heads, head, tables.cosine.data() + first * (head / 2), tables.sine.data() + first * (head / 2)},
                        frames, 16);
        if (is_relative() && n == 0)
            context.run(RelativeQuery{x, dim, content_bias.data(), position_bias.data(), 1.0f / std::sqrt(float(head)),
                                      to.position_query},
                        frames, 16);
        if (bits == 1) {
            Rows binarize{head, x};
            binarize.count = 1, binarize.targets[0] = targets[n];
            binarize.forms[0].kind = Form::bits, binarize.forms[0].columns = head;
            context.run(binarize, frames * heads, 16);
        } else if (bits < 32) {
            const float most = float(1 << (bits - 1));
            context.run(Levels{x, dim, nullptr, false, scales[n], -most, most - 1, 1.0f, reinterpret_cast<f32*>(targets[n])},
                        frames, 16);
        }
    }
}

void Attention::run(const Context& context, const Operands& operands, i64 queries, i64 keys, i64 first,
                    const PositionTables& tables, size_t number, f32* out) const {
    Scratch::Scope scope(context.scratch);
    const i64 head = dim / heads;
    const int64_t lengths[1] = {keys};
    RelativeScores relative{operands.position_query, nullptr, tables.reach};
    if (is_relative()) relative.keys = tables.keys[number].data();
    // A radius beyond the last key would overflow sums of frames.
    const Window window{queries, keys, heads, head, lengths, first, std::min(radius, keys + queries),
                        is_relative() ? &relative : nullptr};
    float* context_rows = context.scratch.take<float>(queries * dim);
    const float root = 1.0f / float(std::sqrt(double(head)));
    const float score = float(1.0 / std::sqrt(double(head)) * scales[0] * scales[1]), value = scales[2] * scales[3];
    if (bits == 1) {
        auto words = [](const char* x) { return reinterpret_cast<const u32*>(x); };
        context.run(BinaryAttention{words(operands.query), words(operands.key), words(operands.value), window, score,
                                    scales[3] / 2, value, context_rows},
                    heads, 1);
    } else {
        auto floats = [](const char* x) { return reinterpret_cast<const f32*>(x); };
        const float highest = bits == 32 ? 0.0f : float((1 << bits) - 1);
        context.run(FloatAttention{floats(operands.query), floats(operands.key), floats(operands.value), window,
                                   bits == 32 ? root : score, scales[3], highest, bits == 32 ? 1.0f : value, context_rows},
                    heads, 1);
    }
    Rows prepare{dim, context_rows};
    prepare.count = 1, prepare.forms[0] = output.form();
    if (output.form().kind == Form::floats)
        prepare.targets[0] = reinterpret_cast<char*>(context_rows);
    else {
        prepare.targets[0] = take_form(context, output.form(), queries);
        context.run(prepare, queries, 16);
    }
    output.run(context, prepare.targets[0], queries, out);
}

Buffer<float> Attention::relative_keys(const Context& context, i64 reach) const {
    Scratch::Scope scope(context.scratch);
    const i64 offsets = 2 * reach + 1, head = dim / heads, blocks = blocks_of(offsets);
    float *sinusoids = context.scratch.take<float>(offsets * dim), *y = context.scratch.take<float>(offsets * dim);
    for (i64 k = 0; k < dim; k += 2) {
        const float rate = std::exp(float(k) * float(-std::log(10'000.0) / double(dim)));
        for (i64 n = 0; n < offsets; ++n) {
            const float angle = float(reach - n) * rate;
            sinusoids[n * dim + k] = std::sin(angle);
            if (k + 1 < dim) sinusoids[n * dim + k + 1] = std::cos(angle);
        }
    }
    Rows prepare{dim, sinusoids};
    prepare.count = 1, prepare.forms[0] = projection->form(), prepare.targets[0] = take_form(context, projection->form(), offsets);
    context.run(prepare, offsets, 16);
    projection->run(context, prepare.targets[0], offsets, y);
    Buffer<float> keys(size_t(heads * blocks * head * LANES), 0.0f);
    for (i64 n = 0; n < offsets; ++n)
        for (i64 c = 0; c < dim; ++c)
            keys[size_t(((c / head * blocks + n / LANES) * head + c % head) * LANES + n % LANES)] = y[n * dim + c];
    return keys;
}

FeedForward::FeedForward(const PackedFile& file, const std::string& name) {
    FileLayer first = FileLayer::read(file, name + ".expand");
    const FileLayer last = FileLayer::read(file, name + ".contract");
    contract = Linear(last);
    const bool is_relu = puts_relu(file, name + ".contract", file.config.quantization.feed_forward_input);
    activation = is_relu ? Activation::relu : activation_of(file.config.encoder.activation);
    // The threshold is not negative: max(x, 0) exceeds it if and only if x does.
    if (first.is_one_bit() && last.is_one_bit() && !last.is_signed)
        fused = std::make_unique<BitLinear>(std::move(first), contract.form().threshold, true, 1);
    else
        expand = Linear(first);
}

void FeedForward::run(const Context& context, const char* x, i64 rows, f32* out) const {
    for (i64 at = 0; at < rows; at += PART) {
        Scratch::Scope scope(context.scratch);
        const i64 count = std::min(PART, rows - at);
        const char* from = x + at * form().row_bytes();
        char* hidden = take_form(context, contract.form(), count);
        if (fused) {
            fused->run(context, from, count, hidden);
        } else {
            Rows finish{expand.outputs, context.scratch.take<float>(count * expand.outputs)};
            expand.run(context, from, count, const_cast<f32*>(finish.x));
            finish.activation = activation, finish.count = 1, finish.forms[0] = contract.form(), finish.targets[0] = hidden;
            context.run(finish, count, 8);
        }
        contract.run(context, hidden, count, out + at * contract.outputs);
    }
}

ConvolutionModule::ConvolutionModule(const PackedFile& file, const std::string& name)
    : expand(file, name + ".expand"), contract(file, name + ".contract") {
    const std::string& choice = file.config.quantization.convolution_input;
    const FileLayer layer = FileLayer::read(file, name + ".depthwise.convolution");
    is_gated = file.config.encoder.kind == "conformer";
    has_relu = puts_relu(file, name + ".depthwise.convolution", choice);
    activation = puts_relu(file, name + ".contract", choice) ? Activation::relu : Activation::swish;
    depthwise = DepthwiseConvolution(layer, 1, layer.inputs / 2);
    std::vector<float> factor = file.floats(name + ".norm.weight"), more = file.floats(name + ".norm.bias");
    const std::vector<float> mean = file.floats(name + ".norm.running_mean"), variance = file.floats(name + ".norm.running_var");
    for (size_t c = 0; c < factor.size(); ++c) {
        factor[c] /= std::sqrt(variance[c] + 1e-5f);
        more[c] -= mean[c] * factor[c];
    }
    depthwise.fold(factor, more);
}

void ConvolutionModule::run(const Context& context, const char* x, i64 rows, f32* out) const {
    Scratch::Scope scope(context.scratch);
    const i64 inner = depthwise.channels;
    float *wide = context.scratch.take<float>(rows * expand.outputs), *y = context.scratch.take<float>(rows * inner);
    float* gated = wide;
    expand.run(context, x, rows, wide);
    if (is_gated) {
        gated = context.scratch.take<float>(rows * inner);
        context.run(Gate{wide, inner, has_relu, gated}, rows, 8);
    } else {
        Rows finish{inner, wide};
        finish.activation = has_relu ? Activation::relu : Activation::swish, finish.sum = wide;
        context.run(finish, rows, 8);
    }
    depthwise.run(context, gated, rows, rows, y);
    Rows finish{inner, y};
    finish.activation = activation, finish.count = 1, finish.forms[0] = contract.form();
    finish.targets[0] = take_form(context, contract.form(), rows);
    context.run(finish, rows, 8);
    contract.run(context, finish.targets[0], rows, out);
}

Block::Block(const PackedFile& file, int64_t number)
    : attention(file, "encoder.blocks." + std::to_string(number) + ".attention"), number(size_t(number)), dim(file.config.encoder.dim),
      is_pre_norm(file.config.encoder.norm == "pre") {
    const std::string name = "encoder.blocks." + std::to_string(number) + ".", &type = file.config.encoder.kind;
    kind = type == "conformer" ? Kind::conformer : type == "squeezeformer" ? Kind::squeezeformer : Kind::transformer;
    std::vector<std::string> names = {"attention_norm", "feed_forward_norm"};
    if (kind == Kind::transformer) {
        first = FeedForward(file, name + "feed_forward");
    } else {
        first = FeedForward(file, name + "first"), second = FeedForward(file, name + "second");
        convolution = ConvolutionModule(file, name + "convolution");
        names = {"first_norm", "attention_norm", "convolution_norm", "second_norm", "norm"};
    }
    if (kind == Kind::squeezeformer) {
        names = {"norms.0", "norms.1", "norms.2", "norms.3"};
        for (int n = 0; n < 4; ++n) {
            scales.push_back(file.floats(name + "scales." + std::to_string(n) + ".scale"));
            shifts.push_back(file.floats(name + "scales." + std::to_string(n) + ".bias"));
        }
    }
    for (const auto& norm : names) norms.emplace_back(file, name + norm);
}

// Attention on what `prepare` makes of rows.
void Block::attend(const Context& context, Rows prepare, i64 frames, const PositionTables& tables, f32* mixed) const {
    Scratch::Scope scope(context.scratch);
    attention.set_forms(prepare);
    for (int n = 0; n < 3; ++n) prepare.targets[n] = take_form(context, prepare.forms[n], frames);
    context.run(prepare, frames, 16);
    Operands operands;
    for (char** one : {&operands.query, &operands.key, &operands.value})
        *one = context.scratch.take<char>(frames * attention.row_bytes());
    if (attention.is_relative()) operands.position_query = context.scratch.take<float>(frames * dim);
    attention.operands(context, prepare.targets, frames, 0, tables, operands);
    attention.run(context, operands, frames, frames, 0, tables, number, mixed);
}

// A feed-forward or convolution module on what `prepare` makes of rows.
template <class Module>
void Block::apply(const Context& context, Rows prepare, const Module& module, i64 frames, f32* mixed) const {
    Scratch::Scope scope(context.scratch);
    prepare.count = 1, prepare.forms[0] = module.form(), prepare.targets[0] = take_form(context, module.form(), frames);
    context.run(prepare, frames, 16);
    module.run(context, prepare.targets[0], frames, mixed);
}

void Block::run(const Context& context, const f32* x, i64 frames, const PositionTables& tables, f32* y) const {
    Scratch::Scope scope(context.scratch);
    f32* mixed = context.scratch.take<float>(frames * dim);
    auto rows = [&](const f32* from, float factor = 1.0f) {  // y = from + factor * mixed
        Rows all{dim, from};
        all.add = mixed, all.factor = factor, all.sum = y;
        return all;
    };
    auto normed = [&](Rows all, size_t norm) {
        norms[norm].apply_to(all);
        return all;
    };
    if (kind == Kind::transformer) {
        Rows start{dim, x};
        attend(context, is_pre_norm ? normed(start, 0) : start, frames, tables, mixed);
        return finish(context, x, mixed, frames, y);
    }
    if (kind == Kind::conformer) {
        apply(context, normed(Rows{dim, x}, 0), first, frames, mixed);
        attend(context, normed(rows(x, 0.5f), 1), frames, tables, mixed);
        apply(context, normed(rows(y), 2), convolution, frames, mixed);
        apply(context, normed(rows(y), 3), second, frames, mixed);
        Rows last = normed(rows(y, 0.5f), 4);
        last.sum = nullptr, last.normed = y;
        return context.run(last, frames, 16);
    }
    auto scaled = [&](Rows all, size_t n) {
        all.scale = scales[n].data(), all.shift = shifts[n].data();
        return all;
    };
    auto after = [&](const f32* from, size_t norm) {  // y = norm(from + mixed)
        Rows all = normed(rows(from), norm);
        all.sum = nullptr, all.normed = y;
        return all;
    };
    attend(context, scaled(Rows{dim, x}, 0), frames, tables, mixed);
    apply(context, scaled(after(x, 0), 1), first, frames, mixed);
    apply(context, scaled(after(y, 1), 2), convolution, frames, mixed);
    apply(context, scaled(after(y, 2), 3), second, frames, mixed);
    context.run(after(y, 3), frames, 16);
}

void Block::operands(const Context& context, const f32* x, i64 frames, i64 first_frame, const PositionTables& tables,
                     const Operands& to) const {
    Scratch::Scope scope(context.scratch);
    Rows prepare{dim, x};
    if (is_pre_norm) norms[0].apply_to(prepare);
    attention.set_forms(prepare);
    for (int n = 0; n < 3; ++n) prepare.targets[n] = take_form(context, prepare.forms[n], frames);
    context.run(prepare, frames, 16);
    attention.operands(context, prepare.targets, frames, first_frame, tables, to);
}

void Block::finish(const Context& context, const f32* x, const f32* mixed, i64 frames, f32* y) const {
    Scratch::Scope scope(context.scratch);
    f32* more = context.scratch.take<float>(frames * dim);
    Rows all{dim, x};
    all.add = mixed;
    norms[is_pre_norm ? 1 : 0].apply_to(all);
    (is_pre_norm ? all.sum : all.normed) = y;
    apply(context, all, first, frames, more);
    Rows last{dim, y};
    last.add = more;
    if (!is_pre_norm) norms[1].apply_to(last);
    (is_pre_norm ? last.sum : last.normed) = y;
    context.run(last, frames, 16);
}

}  // namespace superbit
