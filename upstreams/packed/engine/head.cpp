#include "head.h"

#include <algorithm>

namespace superbit {

Head::Head(const PackedFile& file)
    : slots(file.slots), gain(file.floats("head.gain")[0]), layer_weights(file.floats("head.layer_weights")),
      rate(file.config.front_end.kind == "waveform" ? 320 : SpectrumTables::HOP * file.config.front_end.subsampling),
      linear(file.floats("head.weight").data(), file.shape("head.weight")[0], file.config.encoder.dim, file.floats("head.bias")) {}

i64 Head::frames(i64 samples, i64 present) const {
    const i64 whole = samples / rate, twice = 2 * (samples % rate);
    const i64 rounded = whole + (twice > rate || (twice == rate && whole % 2 == 1));
    return std::max<i64>(1, std::min(rounded, present));  // s3prl has no score for less than half a frame
}

}  // namespace superbit
