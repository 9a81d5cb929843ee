// Depthwise convolutions over frames, and the stem's convolutions over frames and bins.

#pragma once

#include <algorithm>
#include <cstring>

#include "floats.h"
#include "platform.h"

namespace superbit {

// out[frame][channel] = bias[channel] + sum over taps of x[frame * stride - before + tap][channel] weights[tap][channel].
// x is zero outside its frames.
struct Depthwise {
    const f32* x;
    i64 frames, channels, taps, stride, before;
    const f32 *weights, *bias;
    f32* out;

    static constexpr int ROWS = 4;

    template <class Arch>
    INLINE void run(i64 begin, i64 end, Scratch&) const {
        i64 frame = begin;
        for (; frame + ROWS <= end; frame += ROWS) rows<Arch, ROWS>(frame);
        for (; frame < end; ++frame) rows<Arch, 1>(frame);
    }

  private:
    template <class Arch, int count>
    INLINE void rows(i64 frame) const {
        using Vector = VectorOf<Arch>;
        constexpr int length = LENGTH<Arch>;
        const i64 start = frame * stride - before;  // the first frame that the first row reads
        const bool is_inside = start >= 0 && start + (count - 1) * stride + taps <= frames;
        i64 c = 0;
        for (; c + length <= channels; c += length) {
            Vector sum[count];
            for (int r = 0; r < count; ++r) sum[r] = *(const Vector*)(bias + c);
            for (i64 tap = 0; tap < taps; ++tap) {
                const Vector weight = *(const Vector*)(weights + tap * channels + c);
                for (int r = 0; r < count; ++r) {
                    const i64 at = start + r * stride + tap;
                    if (is_inside || (at >= 0 && at < frames)) sum[r] += *(const Vector*)(x + at * channels + c) * weight;
                }
            }
            for (int r = 0; r < count; ++r) *(Vector*)(out + (frame + r) * channels + c) = sum[r];
        }
        for (; c < channels; ++c)
            for (int r = 0; r < count; ++r) {
                float sum = bias[c];
                for (i64 tap = 0; tap < taps; ++tap) {
                    const i64 at = start + r * stride + tap;
                    if (at >= 0 && at < frames) sum += x[at * channels + c] * weights[tap * channels + c];
                }
                out[(frame + r) * channels + c] = sum;
            }
    }
};

// One channel to `width` channels over (frames, bins): 3 x 3, stride 2, then ReLU. Items are output frames from `first` on;
// output frame s reads the rows 2 s - 1 to 2 s + 1 of x. x has the rows `offset` to `offset + rows - 1`; others are zero.
struct StemFirst {
    const f32* x;
    i64 offset, rows, bins, width, first, limit;  // output frames outside 0 to limit - 1 are zero
    const f32 *weights, *bias;                    // weights: (9, width)
    f32* out;                                     // (output frames, ceil(bins / 2), width)

    template <class Arch>
    INLINE void run(i64 begin, i64 end, Scratch& scratch) const {
        using Vector = VectorOf<Arch>;
        constexpr int length = LENGTH<Arch>;
        const i64 halved = (bins + 1) / 2, span = 2 * halved + 1;  // a bin of zeros to either side
        float* lines = scratch.take<float>(3 * span);
        for (i64 item = begin; item < end; ++item) {
            const i64 frame = first + item;
            f32* to = out + item * halved * width;
            if (frame < 0 || frame >= limit) {
                std::memset(to, 0, size_t(halved * width) * sizeof(float));
                continue;
            }
            std::fill(lines, lines + 3 * span, 0.0f);
            for (i64 n = 0; n < 3; ++n) {
                const i64 row = 2 * frame - 1 + n - offset;
                for (i64 bin = 0; row >= 0 && row < rows && bin < bins; ++bin) lines[n * span + 1 + bin] = x[row * bins + bin];
            }
            i64 c = 0;
            for (; c + length <= width; c += length) {
                Vector weight[9];
                const Vector start = *(const Vector*)(bias + c);
                for (int k = 0; k < 9; ++k) weight[k] = *(const Vector*)(weights + k * width + c);
                for (i64 bin = 0; bin < halved; ++bin) {
                    Vector sum = start;
#pragma GCC unroll 9
                    for (int k = 0; k < 9; ++k) sum += lines[k / 3 * span + 2 * bin + k % 3] * weight[k];
                    *(Vector*)(to + bin * width + c) = sum < 0.0f ? Vector{} : sum;
                }
            }
            for (; c < width; ++c)
                for (i64 bin = 0; bin < halved; ++bin) {
                    float sum = bias[c];
                    for (int k = 0; k < 9; ++k) sum += lines[k / 3 * span + 2 * bin + k % 3] * weights[k * width + c];
                    to[bin * width + c] = sum < 0.0f ? 0.0f : sum;
                }
        }
    }
};

// Depthwise 3 x 3 over (frames, bins, width), stride (step, 2). Output frame n reads the rows n * step to n * step + 2 of x,
// whose first row is the one before output frame 0.
struct StemDepthwise {
    const f32* x;
    i64 bins, width, step;
    const f32 *weights, *bias;  // weights: (9, width)
    f32* out;                   // (output frames, ceil(bins / 2), width)

    template <class Arch>
    INLINE void run(i64 begin, i64 end, Scratch&) const {
        const i64 halved = (bins + 1) / 2;
        for (i64 frame = begin; frame < end; ++frame)
            for (i64 bin = 0; bin < halved; ++bin) {
                f32* to = out + (frame * halved + bin) * width;
                for (i64 c = 0; c < width; ++c) to[c] = bias[c];
                for (int k = 0; k < 9; ++k) {
                    const i64 column = 2 * bin - 1 + k % 3;
                    if (column < 0 || column >= bins) continue;
                    const f32* __restrict from = x + ((frame * step + k / 3) * bins + column) * width;
                    const f32* __restrict weight = weights + k * width;
                    for (i64 c = 0; c < width; ++c) to[c] += from[c] * weight[c];
                }
            }
    }
};

}  // namespace superbit
