// A model, and a session that runs it.

#pragma once

#include <memory>
#include <vector>

#include "encoder.h"
#include "head.h"

namespace superbit {

class Model {
  public:
    explicit Model(const PackedFile& file);

    ModelConfig config;
    std::string config_text;
    std::unique_ptr<FrontEnd> front_end;
    std::unique_ptr<ConvPositions> positions;
    std::unique_ptr<Norm> input_norm, norm;  // of the first block's input and of the last one's output
    std::vector<Block> blocks;
    std::unique_ptr<Head> head;  // null without one

    i64 dim() const { return config.encoder.dim; }
    i64 layers() const { return config.encoder.layers; }

    // Make the tables of positions large enough for an utterance.
    void prepare(const Context& context, i64 frames, PositionTables& tables) const;
    // The first block's input, of the front-end's output with the context of the positions, (before + frames + after, dim).
    void enter(const Context& context, const f32* padded, i64 frames, f32* out) const;
    // Hidden state `layer` as it is exported; times `weight` and added to `out` if `is_sum`, without the map's rotation.
    void write(const Context& context, i64 layer, const f32* x, i64 frames, f32* out) const;
    void add(const Context& context, i64 layer, const f32* x, i64 frames, float weight, f32* out) const;
    void rotate(const Context& context, f32* x, i64 frames) const;
    // Call state(layer, x) with the hidden states 0 to `layers`, (frames, dim), before they are exported. place(layer): where
    // block `layer` - 1 writes, or null.
    template <class Place, class State>
    void encode(const Context& context, const f32* frames_in, i64 frames, i64 layers, const PositionTables& tables,
                const Place& place, const State& state) const;

    bool has_map() const { return !map_scale.empty(); }

    // Squeezeformer: blocks reduce to recover - 1 run at half the frame rate.
    i64 reduce = -1, recover = -1;

  private:
    DepthwiseConvolution reduce_depthwise;
    Linear reduce_pointwise, recover_linear;
    std::vector<float> map_scale, map_shift;  // (layers + 1, dim)
    FloatLinear rotation;

    void apply(const Context& context, const Linear& linear, const f32* x, i64 rows, f32* out) const;
};

class Session {
  public:
    Session(std::shared_ptr<const Model> model, int threads, Level level);

    const std::shared_ptr<const Model> model;

    void forward(const f32* samples, i64 count, i64 layers, f32* states);
    void forward(i64 utterances, const float* const* samples, const int64_t* counts, i64 layers, float* const* states);
    void weighted_sum(const f32* samples, i64 count, const f32* weights, f32* out);
    // The head's scores of all classes. Only for a model with a head.
    void decide(const f32* samples, i64 count, f32* scores);
    void front_end(const f32* samples, i64 count, f32* out);
    void encode(const f32* frames_in, i64 frames, i64 layers, f32* states);

    Context context() { return {level, pool.get(), scratch}; }
    PositionTables tables;

  private:
    void encode(const Context& context, const f32* frames_in, i64 frames, i64 layers, f32* states) const;
    // The weighted sum without the output map's rotation, (frames, dim).
    void sum_states(const f32* samples, i64 count, const f32* weights, f32* out);

    Level level;
    std::unique_ptr<ThreadPool> pool;
    Scratch scratch;
};

}  // namespace superbit
