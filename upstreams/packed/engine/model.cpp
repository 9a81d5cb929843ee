#include "model.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace superbit {

Model::Model(const PackedFile& file) : config(file.config), config_text(file.config_text), front_end(front_end_of(file)) {
    const EncoderConfig& encoder = config.encoder;
    const bool is_plain = encoder.kind == "transformer" || encoder.kind == "sparseformer";
    if (encoder.positions == "conv") positions = std::make_unique<ConvPositions>(file);
    if (is_plain && encoder.norm == "post") input_norm = std::make_unique<Norm>(file, "encoder.input_norm");
    if (is_plain && encoder.norm == "pre") norm = std::make_unique<Norm>(file, "encoder.norm");
    blocks.reserve(size_t(encoder.layers));
    for (i64 n = 0; n < encoder.layers; ++n) blocks.emplace_back(file, n);
    if (encoder.kind == "squeezeformer") {
        reduce = encoder.reduce, recover = encoder.recover;
        reduce_depthwise = DepthwiseConvolution(FileLayer::read(file, "encoder.reduce_depthwise.convolution"), 2, 2);
        reduce_pointwise = Linear(file, "encoder.reduce_pointwise");
        recover_linear = Linear(file, "encoder.recover");
    }
    if (!file.slots.empty()) head = std::make_unique<Head>(file);
    if (!config.output_map) return;
    const std::vector<float> mean = file.floats("output_mean"), deviation = file.floats("output_std");
    for (size_t n = 0; n < mean.size(); ++n) {
        map_scale.push_back(1.0f / deviation[n]);
        map_shift.push_back(-mean[n] / deviation[n]);
    }
    const std::vector<float> matrix = file.floats("output_rotation");
    std::vector<float> weight(matrix.size());
    const size_t width = size_t(encoder.dim);
    for (size_t row = 0; row < width; ++row)
        for (size_t column = 0; column < width; ++column) weight[column * width + row] = matrix[row * width + column];
    rotation = FloatLinear(weight.data(), encoder.dim, encoder.dim, std::vector<float>(width));
}

void Model::prepare(const Context& context, i64 frames, PositionTables& tables) const {
    const Attention& attention = blocks[0].attention;
    const i64 reach = attention.radius < 0 ? frames - 1 : std::min(attention.radius, frames - 1);
    if (attention.is_relative() && tables.reach < reach) {
        tables.reach = -1;
        tables.keys.resize(blocks.size());
        for (size_t n = 0; n < blocks.size(); ++n) tables.keys[n] = blocks[n].attention.relative_keys(context, reach);
        tables.reach = reach;
    }
    if (attention.is_rotary && tables.frames < frames) {
        tables.frames = 0;
        const i64 half = dim() / attention.heads / 2;
        tables.cosine.resize(size_t(frames * half)), tables.sine.resize(size_t(frames * half));
        for (i64 k = 0; k < half; ++k) {
            const float rate = std::exp(float(k) * float(-std::log(10'000.0) / double(half)));
            for (i64 n = 0; n < frames; ++n) {
                const float angle = float(n) * rate;
                tables.cosine[size_t(n * half + k)] = std::cos(angle), tables.sine[size_t(n * half + k)] = std::sin(angle);
            }
        }
        tables.frames = frames;
    }
}

void Model::enter(const Context& context, const f32* padded, i64 frames, f32* out) const {
    if (positions)
        positions->run(context, padded, frames, out);
    else if (out != padded)
        std::copy(padded, padded + frames * dim(), out);
    if (!input_norm) return;
    Rows normalise{dim(), out};
    input_norm->apply_to(normalise);
    normalise.normed = out;
    context.run(normalise, frames, 16);
}

void Model::write(const Context& context, i64 layer, const f32* x, i64 frames, f32* out) const {
    const Norm* last = layer == layers() ? norm.get() : nullptr;
    if (!has_map() && last == nullptr) {
        if (out != x) std::copy(x, x + frames * dim(), out);
        return;
    }
    Scratch::Scope scope(context.scratch);
    Rows prepare{dim(), x};
    if (last) last->apply_to(prepare);
    if (!has_map()) {
        prepare.normed = out;
        return context.run(prepare, frames, 16);
    }
    prepare.scale = &map_scale[size_t(layer * dim())], prepare.shift = &map_shift[size_t(layer * dim())];
    f32* standard = context.scratch.take<float>(frames * dim());
    prepare.count = 1, prepare.forms[0].columns = dim(), prepare.targets[0] = reinterpret_cast<char*>(standard);
    context.run(prepare, frames, 16);
    rotation.run(context, standard, dim(), frames, out, dim());
}

void Model::add(const Context& context, i64 layer, const f32* x, i64 frames, float weight, f32* out) const {
    Scratch::Scope scope(context.scratch);
    const Norm* last = layer == layers() ? norm.get() : nullptr;
    const f32* standard = x;
    if (has_map() || last) {
        f32* to = context.scratch.take<float>(frames * dim());
        Rows prepare{dim(), x};
        if (last) last->apply_to(prepare);
        if (has_map()) prepare.scale = &map_scale[size_t(layer * dim())], prepare.shift = &map_shift[size_t(layer * dim())];
        prepare.count = 1, prepare.forms[0].columns = dim(), prepare.targets[0] = reinterpret_cast<char*>(to);
        context.run(prepare, frames, 16);
        standard = to;
    }
    Rows sum{dim(), out};
    sum.add = standard, sum.factor = weight, sum.sum = out;
    context.run(sum, frames, 16);
}

void Model::rotate(const Context& context, f32* x, i64 frames) const {
    if (!has_map()) return;
    Scratch::Scope scope(context.scratch);
    f32* copy = context.scratch.take<float>(frames * dim());
    std::copy(x, x + frames * dim(), copy);
    rotation.run(context, copy, dim(), frames, x, dim());
}

void Model::apply(const Context& context, const Linear& linear, const f32* x, i64 rows, f32* out) const {
    Scratch::Scope scope(context.scratch);
    Rows prepare{linear.inputs, x};
    prepare.count = 1, prepare.forms[0] = linear.form();
    prepare.targets[0] = context.scratch.take<char>(rows * linear.form().row_bytes());
    context.run(prepare, rows, 16);
    linear.run(context, prepare.targets[0], rows, out);
}

// Repeat each row; a last row without a partner once.
static void repeat_rows(const f32* x, i64 rows, i64 dim, f32* out) {
    for (i64 n = 0; n < rows; ++n) std::copy(x + n / 2 * dim, x + (n / 2 + 1) * dim, out + n * dim);
}

template <class Place, class State>
void Model::encode(const Context& context, const f32* frames_in, i64 frames, i64 layers, const PositionTables& tables,
                   const Place& place, const State& state) const {
    Scratch::Scope scope(context.scratch);
    const i64 width = dim(), before = positions ? positions->before : 0, after = positions ? positions->after : 0;
    auto placed = [&](i64 layer) {
        f32* to = place(layer);
        return to ? to : static_cast<f32*>(context.scratch.take<float>(frames * width));
    };
    f32* x = placed(0);
    {
        Scratch::Scope inner(context.scratch);
        f32* padded = context.scratch.take<float>((before + frames + after) * width);
        std::fill(padded, padded + before * width, 0.0f);
        std::copy(frames_in, frames_in + frames * width, padded + before * width);
        std::fill(padded + (before + frames) * width, padded + (before + frames + after) * width, 0.0f);
        enter(context, padded, frames, x);
    }
    state(0, x);
    const bool is_placed = place(0) != nullptr;
    const i64 halved = (frames + 1) / 2;
    f32 *skip = nullptr, *half = nullptr;
    if (reduce >= 0 && reduce < layers) {
        skip = context.scratch.take<float>(frames * width);
        half = context.scratch.take<float>(halved * width);
    }
    for (i64 n = 0; n < layers; ++n) {
        f32* y = is_placed ? place(n + 1) : x;
        if (n == reduce) {
            std::copy(x, x + frames * width, skip);
            Scratch::Scope inner(context.scratch);
            f32 *input = context.scratch.take<float>(frames * width), *strided = context.scratch.take<float>(halved * width);
            std::copy(x, x + frames * width, input);
            reduce_depthwise.run(context, input, frames, halved, strided);
            apply(context, reduce_pointwise, strided, halved, half);
        }
        if (n == recover) {
            Scratch::Scope inner(context.scratch);
            f32 *y_half = context.scratch.take<float>(halved * width), *repeated = context.scratch.take<float>(frames * width);
            apply(context, recover_linear, half, halved, y_half);
            repeat_rows(y_half, frames, width, repeated);
            Rows sum{width, skip};
            sum.add = repeated, sum.sum = skip;
            context.run(sum, frames, 16);
            x = skip;
        }
        if (reduce >= 0 && n >= reduce && n < recover) {
            blocks[size_t(n)].run(context, half, halved, tables, half);
            repeat_rows(half, frames, width, y);
        } else {
            blocks[size_t(n)].run(context, x, frames, tables, y);
        }
        x = y;
        state(n + 1, x);
    }
}

Session::Session(std::shared_ptr<const Model> of, int threads, Level level)
    : model(std::move(of)), level(level), pool(threads > 1 ? new ThreadPool(threads) : nullptr) {}

void Session::encode(const Context& context, const f32* frames_in, i64 frames, i64 layers, f32* states) const {
    const Model& m = *model;
    const i64 size = frames * m.dim();
    // Without a map each block reads the last state where it was written; the norm of the last state comes at its end.
    auto place = [&](i64 layer) { return m.has_map() ? nullptr : states + layer * size; };
    m.encode(context, frames_in, frames, layers, tables, place,
             [&](i64 layer, const f32* x) { m.write(context, layer, x, frames, states + layer * size); });
}

void Session::encode(const f32* frames_in, i64 frames, i64 layers, f32* states) {
    model->prepare(context(), frames, tables);
    encode(context(), frames_in, frames, layers, states);
}

void Session::front_end(const f32* samples, i64 count, f32* out) { model->front_end->run(context(), samples, count, out); }

void Session::forward(const f32* samples, i64 count, i64 layers, f32* states) {
    const float* const one = reinterpret_cast<const float*>(samples);
    float* const to = reinterpret_cast<float*>(states);
    const int64_t length = count;
    forward(1, &one, &length, layers, &to);
}

void Session::forward(i64 utterances, const float* const* samples, const int64_t* counts, i64 layers, float* const* states) {
    i64 longest = 1;
    for (i64 n = 0; n < utterances; ++n) longest = std::max(longest, model->front_end->frames(counts[n]));
    model->prepare(context(), longest, tables);
    auto run = [&](const Context& own, i64 n) {
        Scratch::Scope scope(own.scratch);
        const i64 frames = model->front_end->frames(counts[n]);
        f32* embedded = own.scratch.take<float>(frames * model->dim());
        model->front_end->run(own, samples[n], counts[n], embedded);
        encode(own, embedded, frames, layers, states[n]);
    };
    if (utterances == 1) return run(context(), 0);
    context().each(int(utterances), [&](int n, Scratch& own) { run(Context{level, nullptr, own}, n); });
}

void Session::sum_states(const f32* samples, i64 count, const f32* weights, f32* out) {
    const Model& m = *model;
    const Context all = context();
    const i64 frames = m.front_end->frames(count);
    m.prepare(all, frames, tables);
    Scratch::Scope scope(all.scratch);
    f32* embedded = all.scratch.take<float>(frames * m.dim());
    m.front_end->run(all, samples, count, embedded);
    std::memset(out, 0, size_t(frames * m.dim()) * sizeof(float));
    m.encode(all, embedded, frames, m.layers(), tables, [](i64) -> f32* { return nullptr; },
             [&](i64 layer, const f32* x) { m.add(all, layer, x, frames, weights[layer], out); });
}

void Session::weighted_sum(const f32* samples, i64 count, const f32* weights, f32* out) {
    sum_states(samples, count, weights, out);
    model->rotate(context(), out, model->front_end->frames(count));
}

void Session::decide(const f32* samples, i64 count, f32* scores) {
    const Model& m = *model;
    const Head& head = *m.head;
    const Context all = context();
    Scratch::Scope scope(all.scratch);
    f32* scaled = all.scratch.take<float>(count);
    for (i64 n = 0; n < count; ++n) scaled[n] = samples[n] * head.gain;
    const i64 present = m.front_end->frames(count), frames = head.frames(count, present), width = m.dim();
    f32* sum = all.scratch.take<float>(present * width);
    sum_states(scaled, count, head.layer_weights.data(), sum);
    // Rotation and head are linear: one row of means passes through them, not every frame.
    double* total = all.scratch.take<double>(width);
    std::fill(total, total + width, 0.0);
    for (i64 n = 0; n < frames; ++n)
        for (i64 c = 0; c < width; ++c) total[c] += sum[n * width + c];
    for (i64 c = 0; c < width; ++c) sum[c] = float(total[c] / double(frames));
    m.rotate(all, sum, 1);
    head.run(all, sum, scores);
}

}  // namespace superbit
