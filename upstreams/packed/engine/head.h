// A trained SUPERB head: scores of classes, from the mean over the frames of a weighted sum of all hidden states.

#pragma once

#include <string>
#include <vector>

#include "layers.h"

namespace superbit {

class Head {
  public:
    explicit Head(const PackedFile& file);

    // Frames of which s3prl takes the mean: samples / (samples of a frame), rounded, halves to even.
    i64 frames(i64 samples, i64 present) const;
    // features: (dim,). scores: one for each class of all slots.
    void run(const Context& context, const f32* features, f32* scores) const {
        linear.run(context, features, linear.inputs, 1, scores, linear.outputs);
    }

    std::vector<Slot> slots;
    float gain;  // factor of the samples: of the volume at which s3prl reads the task's corpus
    std::vector<float> layer_weights;

  private:
    i64 rate;  // samples of a frame
    FloatLinear linear;
};

}  // namespace superbit
