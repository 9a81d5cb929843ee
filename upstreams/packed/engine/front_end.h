// Front-ends: samples to frames.

#pragma once

#include <memory>
#include <vector>

#include "layers.h"

namespace superbit {

struct Norm {
    Norm() = default;
    Norm(const PackedFile& file, const std::string& name)
        : weight(file.floats(name + ".weight")), bias(file.floats(name + ".bias")) {}

    std::vector<float> weight, bias;

    void apply_to(Rows& rows) const { rows.weight = weight.data(), rows.bias = bias.data(); }
};

class FrontEnd {
  public:
    virtual ~FrontEnd() = default;
    virtual i64 frames(i64 samples) const = 0;
    // samples (count,) -> (frames(count), dim)
    virtual void run(const Context& context, const f32* samples, i64 count, f32* out) const = 0;
};

class LogMelFrontEnd : public FrontEnd {
  public:
    explicit LogMelFrontEnd(const PackedFile& file);

    static i64 mel_frames(i64 samples) { return (samples + SpectrumTables::HOP - 1) / SpectrumTables::HOP; }
    i64 frames(i64 samples) const override { return (mel_frames(samples) + subsampling - 1) / subsampling; }
    void run(const Context& context, const f32* samples, i64 count, f32* out) const override;

    // The first `frames` log-mel frames, (frames, mels). Zeros follow the samples.
    void log_mel(const Context& context, const f32* samples, i64 count, i64 frames, f32* out) const;
    // Encoder frames `first` to `end` - 1. features: log-mel frames from `offset` on, with the context of the stem except where
    // the utterance begins or ends.
    void part(const Context& context, const f32* features, i64 offset, i64 rows, i64 first, i64 end, f32* out) const;

    i64 mels, subsampling;
    // Context of a frame: frames to the left, log-mel frames to the right.
    i64 before, after;

  private:
    void stacked(const f32* features, i64 offset, i64 rows, i64 first, i64 end, f32* out) const;
    void convolved(const Context& context, const f32* features, i64 offset, i64 rows, i64 first, i64 end, f32* out) const;

    bool per_utterance, has_stem;
    i64 width, bins;
    std::unique_ptr<SpectrumTables> tables;
    std::vector<float> filters, mean, deviation;
    std::vector<int32_t> ranges;
    InputLevels first_levels, depthwise_levels, pointwise_levels;
    std::vector<float> first_weights, first_bias, depthwise_weights, depthwise_bias;
    FloatLinear pointwise;
    Linear projection;
    Norm norm;
};

class WaveformFrontEnd : public FrontEnd {
  public:
    explicit WaveformFrontEnd(const PackedFile& file);

    i64 frames(i64 samples) const override;
    void run(const Context& context, const f32* samples, i64 count, f32* out) const override;

  private:
    void convolve(const Context& context, int layer, const f32* x, i64 inputs, i64 outputs, f32* out) const;
    void first_moments(const Context& context, const f32* samples, i64 frames, std::vector<float>& mean,
                       std::vector<float>& factor) const;

    bool per_utterance, is_group;
    double epsilon;
    i64 width;
    FloatLinear convolutions[7];
    InputLevels levels[7];
    std::vector<Norm> norms;
    std::unique_ptr<Norm> norm;
    Linear projection;
};

std::unique_ptr<FrontEnd> front_end_of(const PackedFile& file);

}  // namespace superbit
