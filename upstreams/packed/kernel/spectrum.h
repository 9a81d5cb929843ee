// Log-mel energies. A vector holds one value for each of eight frames, so that a frame's result does not depend on how many
// are computed at once.

#pragma once

#include <algorithm>

#include "functions.h"
#include "platform.h"
#include "scratch.h"

namespace superbit {

// Constants of the spectrum: a real transform of 512 samples is a complex one of 256, by four steps of radix 4.
struct SpectrumTables {
    static constexpr int WINDOW = 400, HOP = 160, FFT = 512, HALF = FFT / 2, BINS = HALF + 1;

    double window[WINDOW];
    double cosine[FFT], sine[FFT];  // of 2 pi n / 512
};

// Items are frames. A frame starts every 160 samples; zeros follow the samples.
struct LogMel {
    const SpectrumTables* tables;
    const f32* samples;
    i64 count;                 // samples
    i64 mels;
    const f32* filters;        // (mels, bins)
    const int32_t* ranges;     // (mels, 2): the first bin of a filter that is not zero, and the bin after the last one
    const f32 *mean, *factor;  // out = (log energy - mean) / factor
    f32* out;

    static constexpr int FRAMES = 8;  // at once
    using Doubles = double __attribute__((vector_size(64), aligned(16), may_alias));
    using Singles = float __attribute__((vector_size(32), aligned(16), may_alias));

    template <class Arch>
    INLINE void run(i64 begin, i64 end, Scratch& scratch) const {
        constexpr int half = SpectrumTables::HALF;
        Doubles* x = scratch.take<Doubles>(2 * half);
        Doubles* y = scratch.take<Doubles>(2 * half);
        Singles* power = scratch.take<Singles>(SpectrumTables::BINS);
        float* energies = scratch.take<float>(mels * FRAMES);
        for (i64 frame = begin; frame < end; frame += FRAMES) {
            load(frame, x);
            transform(x, y);
            powers(x, power);
            for (i64 m = 0; m < mels; ++m) {
                Singles sum = {};
                for (int32_t k = ranges[2 * m]; k < ranges[2 * m + 1]; ++k)
                    sum += power[k] * filters[m * SpectrumTables::BINS + k];
                *(Singles*)(energies + m * FRAMES) = sum;
            }
            for (i64 n = 0; n < mels * FRAMES; ++n) energies[n] = logarithm(energies[n] + 1e-6f);
            for (i64 lane = 0; lane < std::min<i64>(FRAMES, end - frame); ++lane)
                for (i64 m = 0; m < mels; ++m)
                    out[(frame + lane) * mels + m] = (energies[m * FRAMES + lane] - mean[m]) / factor[m];
        }
    }

  private:
    // Two samples times the window are one complex number.
    INLINE void load(i64 frame, Doubles* x) const {
        const double* window = tables->window;
        for (int lane = 0; lane < FRAMES; ++lane) {
            const i64 start = (frame + lane) * SpectrumTables::HOP;
            const i64 present = std::max<i64>(0, std::min<i64>(SpectrumTables::WINDOW, count - start));
            double* to = (double*)x + lane;
            for (i64 n = 0; n < present; ++n) to[n * FRAMES] = double(samples[start + n]) * window[n];
            for (i64 n = present; n < SpectrumTables::FFT; ++n) to[n * FRAMES] = 0.0;
        }
    }

    // Stockham's transform of 256 complex numbers: x holds the result, y is working memory.
    INLINE void transform(Doubles* x, Doubles* y) const {
        for (int n = SpectrumTables::HALF, step = 1; n > 1; n /= 4, step *= 4) {
            const int quarter = n / 4;
            for (int p = 0; p < quarter; ++p) {
                const int angle = SpectrumTables::FFT / n * p;
                const double c1 = tables->cosine[angle], s1 = -tables->sine[angle];
                const double c2 = tables->cosine[2 * angle], s2 = -tables->sine[2 * angle];
                const double c3 = tables->cosine[3 * angle], s3 = -tables->sine[3 * angle];
                for (int q = 0; q < step; ++q) {
                    const Doubles* a = x + 2 * (q + step * p);
                    const int apart = 2 * step * quarter;
                    const Doubles ar = a[0], ai = a[1], br = a[apart], bi = a[apart + 1];
                    const Doubles cr = a[2 * apart], ci = a[2 * apart + 1], dr = a[3 * apart], di = a[3 * apart + 1];
                    const Doubles sum_r = ar + cr, sum_i = ai + ci, less_r = ar - cr, less_i = ai - ci;
                    const Doubles more_r = br + dr, more_i = bi + di;
                    const Doubles turn_r = di - bi, turn_i = br - dr;  // i (b - d)
                    Doubles* to = y + 2 * (q + 4 * step * p);
                    const Doubles r1 = less_r - turn_r, i1 = less_i - turn_i, r2 = sum_r - more_r, i2 = sum_i - more_i;
                    const Doubles r3 = less_r + turn_r, i3 = less_i + turn_i;
                    to[0] = sum_r + more_r, to[1] = sum_i + more_i;
                    to[2 * step] = r1 * c1 - i1 * s1, to[2 * step + 1] = r1 * s1 + i1 * c1;
                    to[4 * step] = r2 * c2 - i2 * s2, to[4 * step + 1] = r2 * s2 + i2 * c2;
                    to[6 * step] = r3 * c3 - i3 * s3, to[6 * step + 1] = r3 * s3 + i3 * c3;
                }
            }
            std::swap(x, y);
        }
    }

    // Separate the transforms of the even and the odd samples, and add their halves.
    INLINE void powers(const Doubles* z, Singles* power) const {
        constexpr int half = SpectrumTables::HALF;
        for (int k = 0; k <= half; ++k) {
            const Doubles *a = z + 2 * (k % half), *b = z + 2 * ((half - k) % half);
            const Doubles even_r = (a[0] + b[0]) * 0.5, even_i = (a[1] - b[1]) * 0.5;
            const Doubles odd_r = (a[1] + b[1]) * 0.5, odd_i = (b[0] - a[0]) * 0.5;
            const double c = tables->cosine[k], s = -tables->sine[k];
            const Doubles re = even_r + odd_r * c - odd_i * s, im = even_i + odd_r * s + odd_i * c;
            const Doubles square = re * re + im * im;
            float* to = (float*)(power + k);
            for (int lane = 0; lane < FRAMES; ++lane) to[lane] = float(square[lane]);
        }
    }
};

}  // namespace superbit
