#include "front_end.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace superbit {
namespace {

constexpr i64 PART = 128 * 1024;  // floats of a stem's or a convolution's output that are computed at once

// For each channel of each bin, as the stem computes them, its place in the file, which has the bins of each channel.
std::vector<i64> by_bin(i64 width, i64 bins) {
    std::vector<i64> order(size_t(width * bins));
    for (i64 bin = 0; bin < bins; ++bin)
        for (i64 c = 0; c < width; ++c) order[size_t(bin * width + c)] = c * bins + bin;
    return order;
}

// (channels, columns) -> (columns, channels)
std::vector<float> transposed(const std::vector<float>& x, i64 channels) {
    std::vector<float> to(x.size());
    const i64 columns = i64(x.size()) / channels;
    for (i64 c = 0; c < channels; ++c)
        for (i64 k = 0; k < columns; ++k) to[size_t(k * channels + c)] = x[size_t(c * columns + k)];
    return to;
}

}  // namespace

LogMelFrontEnd::LogMelFrontEnd(const PackedFile& file) : tables(new SpectrumTables) {
    const FrontEndConfig& config = file.config.front_end;
    const std::string name = "front_end.log_mel";
    mels = config.mels, subsampling = config.subsampling, width = config.width;
    per_utterance = config.normalisation == "utterance";
    const std::vector<float> window = file.floats(name + ".window");
    std::copy(window.begin(), window.end(), tables->window);
    for (int n = 0; n < SpectrumTables::FFT; ++n) {
        const double angle = 2.0 * 3.14159265358979323846 * n / SpectrumTables::FFT;
        tables->cosine[n] = std::cos(angle), tables->sine[n] = std::sin(angle);
    }
    filters = transposed(file.floats(name + ".filters"), SpectrumTables::BINS);
    for (i64 m = 0; m < mels; ++m) {
        const float* filter = &filters[size_t(m * SpectrumTables::BINS)];
        int32_t first = 0, last = SpectrumTables::BINS;
        while (first < last && filter[first] == 0.0f) ++first;
        while (last > first && filter[last - 1] == 0.0f) --last;
        ranges.push_back(first), ranges.push_back(last);
    }
    mean = file.floats(name + ".mean"), deviation = file.floats(name + ".std");
    has_stem = config.stem == "convolution";
    before = 0, after = 0, bins = (mels + 3) / 4;
    if (has_stem) {
        before = subsampling == 4 ? 1 : 2, after = 3;
        FileLayer first = FileLayer::read(file, "front_end.stem.first");
        FileLayer depthwise = FileLayer::read(file, "front_end.stem.depthwise");
        FileLayer last = FileLayer::read(file, "front_end.stem.pointwise");
        first_weights = transposed(first.floats(), width), first_bias = first.bias;
        depthwise_weights = transposed(depthwise.floats(), width), depthwise_bias = depthwise.bias;
        pointwise = FloatLinear(last.floats().data(), width, width, last.bias);
        first_levels = InputLevels(first), depthwise_levels = InputLevels(depthwise), pointwise_levels = InputLevels(last);
    }
    projection = Linear(file, "front_end.projection", has_stem ? by_bin(width, bins) : std::vector<i64>{});
    norm = Norm(file, "front_end.norm");
}

void LogMelFrontEnd::log_mel(const Context& context, const f32* samples, i64 count, i64 frames, f32* out) const {
    const float *centre = mean.data(), *scale = deviation.data();
    std::vector<float> zeros, ones;
    if (per_utterance) {
        zeros.assign(size_t(mels), 0.0f), ones.assign(size_t(mels), 1.0f);
        centre = zeros.data(), scale = ones.data();
    }
    LogMel operation{tables.get(), samples, count, mels, filters.data(), ranges.data(), centre, scale, out};
    context.run(operation, frames, LogMel::FRAMES);
    if (!per_utterance) return;
    for (i64 m = 0; m < mels; ++m) {
        double sum = 0.0, squares = 0.0;
        for (i64 n = 0; n < frames; ++n) sum += out[n * mels + m];
        const float average = float(sum / double(frames));
        for (i64 n = 0; n < frames; ++n) squares += double(out[n * mels + m] - average) * double(out[n * mels + m] - average);
        const float spread = std::sqrt(float(squares / double(frames)) + 1e-5f);
        for (i64 n = 0; n < frames; ++n) out[n * mels + m] = (out[n * mels + m] - average) / spread;
    }
}

void LogMelFrontEnd::stacked(const f32* features, i64 offset, i64 rows, i64 first, i64 end, f32* out) const {
    for (i64 row = first * subsampling; row < end * subsampling; ++row, out += mels) {
        const i64 at = row - offset;
        if (at < rows)
            std::copy(features + at * mels, features + (at + 1) * mels, out);
        else
            std::fill(out, out + mels, 0.0f);
    }
}

void LogMelFrontEnd::convolved(const Context& context, const f32* features, i64 offset, i64 rows, i64 first, i64 end,
                               f32* out) const {
    const i64 step = subsampling / 2, halved = (mels + 1) / 2, frames = end - first;
    const i64 start = step * first - 1, count = step * (frames - 1) + 3;  // frames after the first convolution
    float* x = context.scratch.take<float>(count * halved * width);
    context.run(StemFirst{features, offset, rows, mels, width, start, (offset + rows + 1) / 2, first_weights.data(),
                          first_bias.data(), x},
                count, 4);
    if (depthwise_levels.is_active) depthwise_levels.run(context, x, count * halved, width, x);
    float* y = context.scratch.take<float>(frames * bins * width);
    context.run(StemDepthwise{x, halved, width, step, depthwise_weights.data(), depthwise_bias.data(), y}, frames, 4);
    if (pointwise_levels.is_active) pointwise_levels.run(context, y, frames * bins, width, y);
    pointwise.run(context, y, width, frames * bins, out, width);
}

void LogMelFrontEnd::part(const Context& context, const f32* features, i64 offset, i64 rows, i64 first, i64 end,
                          f32* out) const {
    const i64 dim = has_stem ? width * bins : mels * subsampling, most = std::max<i64>(8, PART / (2 * dim * (4 / subsampling)));
    Scratch::Scope outer(context.scratch);
    if (first_levels.is_active) {
        f32* levels = context.scratch.take<float>(rows * mels);
        first_levels.run(context, features, rows * mels, 1, levels);
        features = levels;
    }
    for (i64 from = first; from < end; from += most) {
        Scratch::Scope scope(context.scratch);
        const i64 until = std::min(end, from + most), frames = until - from;
        float* x = context.scratch.take<float>(frames * dim);
        if (has_stem)
            convolved(context, features, offset, rows, from, until, x);
        else
            stacked(features, offset, rows, from, until, x);
        Rows prepare{dim, x};
        if (has_stem) prepare.activation = Activation::relu;
        prepare.forms[0] = projection.form();
        prepare.targets[0] = context.scratch.take<char>(frames * projection.form().row_bytes());
        prepare.count = 1;
        context.run(prepare, frames, 4);
        f32* to = out + (from - first) * projection.outputs;
        projection.run(context, prepare.targets[0], frames, to);
        Rows normalise{projection.outputs, to};
        norm.apply_to(normalise);
        normalise.normed = to;
        context.run(normalise, frames, 16);
    }
}

void LogMelFrontEnd::run(const Context& context, const f32* samples, i64 count, f32* out) const {
    Scratch::Scope scope(context.scratch);
    const i64 rows = mel_frames(count);
    float* features = context.scratch.take<float>(rows * mels);
    log_mel(context, samples, count, rows, features);
    part(context, features, 0, rows, 0, frames(count), out);
}

WaveformFrontEnd::WaveformFrontEnd(const PackedFile& file) {
    const FrontEndConfig& config = file.config.front_end;
    width = config.width, epsilon = config.normalisation_eps;
    per_utterance = config.normalisation == "utterance", is_group = config.feature_norm == "group";
    for (int n = 0; n < 7; ++n) {
        const FileLayer layer = FileLayer::read(file, "front_end.convolutions." + std::to_string(n));
        levels[n] = InputLevels(layer);
        // A window of consecutive frames is one row of a product: (outputs, inputs, taps) -> (outputs, taps, inputs).
        const i64 inputs = n ? width : 1;
        const std::vector<float> weight = layer.floats();
        std::vector<float> rows(weight.size());
        for (i64 output = 0; output < width; ++output)
            for (i64 k = 0; k < inputs; ++k)
                for (i64 tap = 0; tap < TAPS[n]; ++tap)
                    rows[size_t((output * TAPS[n] + tap) * inputs + k)] = weight[size_t((output * inputs + k) * TAPS[n] + tap)];
        convolutions[n] = FloatLinear(rows.data(), width, layer.inputs, layer.bias);
    }
    for (int n = 0; n < (is_group ? 1 : 7); ++n) norms.emplace_back(file, "front_end.norms." + std::to_string(n));
    if (config.projection_norm) norm = std::make_unique<Norm>(file, "front_end.norm");
    projection = Linear(file, "front_end.projection");
}

i64 WaveformFrontEnd::frames(i64 samples) const {
    i64 frames = std::max<i64>(samples, SpectrumTables::WINDOW);  // the receptive field of one frame
    for (int n = 0; n < 7; ++n) frames = (frames - TAPS[n]) / STRIDES[n] + 1;
    return frames;
}

// The convolution of layer `layer`, from (inputs, channels) to (outputs, width), without norm and activation.
void WaveformFrontEnd::convolve(const Context& context, int layer, const f32* x, i64 inputs, i64 outputs, f32* out) const {
    const i64 channels = layer ? width : 1;
    Scratch::Scope scope(context.scratch);
    if (levels[layer].is_active) {
        f32* whole = context.scratch.take<float>(inputs * channels);
        levels[layer].run(context, x, inputs, channels, whole);
        x = whole;
    }
    convolutions[layer].run(context, x, STRIDES[layer] * channels, outputs, out, width);
}

// Mean and 1 / deviation of each channel after the first convolution, over all frames.
void WaveformFrontEnd::first_moments(const Context& context, const f32* samples, i64 frames, std::vector<float>& mean,
                                     std::vector<float>& factor) const {
    const i64 most = std::max<i64>(1, PART / width);
    std::vector<double> sums(size_t(width), 0.0), squares(size_t(width), 0.0);
    mean.assign(size_t(width), 0.0f), factor.assign(size_t(width), 0.0f);
    Scratch::Scope scope(context.scratch);
    float* x = context.scratch.take<float>(most * width);
    for (int pass = 0; pass < 2; ++pass) {
        for (i64 first = 0; first < frames; first += most) {
            const i64 count = std::min(most, frames - first);
            convolve(context, 0, samples + first * STRIDES[0], (count - 1) * STRIDES[0] + TAPS[0], count, x);
            for (i64 n = 0; n < count; ++n) {
                const float* row = x + n * width;
                if (pass == 0)
                    for (i64 c = 0; c < width; ++c) sums[size_t(c)] += row[c];
                else
                    for (i64 c = 0; c < width; ++c) squares[size_t(c)] += double(row[c] - mean[size_t(c)]) * double(row[c] - mean[size_t(c)]);
            }
        }
        for (size_t c = 0; c < size_t(width); ++c) {
            if (pass == 0)
                mean[c] = float(sums[c] / double(frames));
            else
                factor[c] = 1.0f / std::sqrt(float(squares[c] / double(frames)) + 1e-5f);
        }
    }
}

void WaveformFrontEnd::run(const Context& context, const f32* given, i64 count, f32* out) const {
    Scratch::Scope scope(context.scratch);
    const i64 samples = std::max<i64>(count, SpectrumTables::WINDOW), total = frames(count);
    float* waveform = context.scratch.take<float>(samples);
    std::copy(given, given + count, waveform);
    std::fill(waveform + count, waveform + samples, 0.0f);
    if (per_utterance) {
        double sum = 0.0, squares = 0.0;
        for (i64 n = 0; n < count; ++n) sum += waveform[n];
        const float mean = float(sum / double(count));
        for (i64 n = 0; n < count; ++n) squares += double(waveform[n] - mean) * double(waveform[n] - mean);
        const float deviation = std::sqrt(float(squares / double(count)) + float(epsilon));
        for (i64 n = 0; n < count; ++n) waveform[n] = (waveform[n] - mean) / deviation;
    }
    std::vector<float> scale, shift;  // the group norm of the first convolution
    if (is_group) {
        first_moments(context, waveform, (samples - TAPS[0]) / STRIDES[0] + 1, shift, scale);
        for (size_t c = 0; c < size_t(width); ++c) {
            scale[c] *= norms[0].weight[c];
            shift[c] = norms[0].bias[c] - shift[c] * scale[c];
        }
    }
    // In parts, with the few frames of each layer that two parts share computed twice: the layers of a part fit into the cache.
    const i64 most = std::max<i64>(1, PART * 4 / (64 * width));
    for (i64 first = 0; first < total; first += most) {
        Scratch::Scope part(context.scratch);
        const i64 frames = std::min(most, total - first);
        i64 starts[8], counts[8];  // of the input of each layer
        starts[7] = first, counts[7] = frames;
        for (int n = 6; n >= 0; --n) starts[n] = starts[n + 1] * STRIDES[n], counts[n] = (counts[n + 1] - 1) * STRIDES[n] + TAPS[n];
        const f32* x = waveform + starts[0];
        for (int n = 0; n < 7; ++n) {
            float* y = context.scratch.take<float>(counts[n + 1] * width);
            convolve(context, n, x, counts[n], counts[n + 1], y);
            Rows finish{width, y};
            if (is_group) {
                if (n == 0) {
                    Rows normalise{width, y};
                    normalise.scale = scale.data(), normalise.shift = shift.data();
                    normalise.forms[0].columns = width, normalise.targets[0] = reinterpret_cast<char*>(y), normalise.count = 1;
                    context.run(normalise, counts[n + 1], 16);
                }
            } else {
                Rows normalise{width, y};
                norms[size_t(n)].apply_to(normalise);
                normalise.normed = y;
                context.run(normalise, counts[n + 1], 16);
            }
            finish.activation = Activation::gelu;
            finish.sum = y;
            context.run(finish, counts[n + 1], 16);
            x = y;
        }
        Rows prepare{width, x};
        if (norm) norm->apply_to(prepare);
        prepare.forms[0] = projection.form();
        prepare.targets[0] = context.scratch.take<char>(frames * projection.form().row_bytes());
        prepare.count = 1;
        context.run(prepare, frames, 16);
        projection.run(context, prepare.targets[0], frames, out + first * projection.outputs);
    }
}

std::unique_ptr<FrontEnd> front_end_of(const PackedFile& file) {
    if (file.config.front_end.kind == "waveform") return std::make_unique<WaveformFrontEnd>(file);
    return std::make_unique<LogMelFrontEnd>(file);
}

}  // namespace superbit
