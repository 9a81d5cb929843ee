// Elementary functions as straight-line arithmetic, so that the compiler can vectorize loops that call them.

#pragma once

#include <cmath>
#include <cstring>

#include "platform.h"

namespace superbit {

// Nearest whole number, halves to even, for |x| < 2^22: 1.5 * 2^23 leaves no fractional bits.
INLINE float round_to_even(float x) { return (x + 12582912.0f) - 12582912.0f; }

// exp(x) for x <= 0, within 2 units in the last place; exp(-87) for anything lower and for NaN.
INLINE float exponential(float x) {
    x = x > -87.0f ? x : -87.0f;
    float whole = round_to_even(x * 1.44269504f);
    float r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t power = (int32_t(whole) + 127) << 23;
    float scale;
    std::memcpy(&scale, &power, 4);
    return p * scale;
}

// erf(x) within 2e-7 (Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26).
INLINE float error_function(float x) {
    float size = std::fabs(x), t = 1.0f / (1.0f + 0.3275911f * size);
    float p = 1.061405429f;
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    return std::copysign(1.0f - p * t * exponential(-size * size), x);
}

// 1 / (1 + exp(-x)), without overflow.
INLINE float sigmoid(float x) {
    float e = exponential(-std::fabs(x));
    return (x >= 0.0f ? 1.0f : e) / (1.0f + e);
}

// log(x) for normal x > 0, within 2 units in the last place (Cephes, logf); x itself if it is infinite or NaN.
INLINE float logarithm(float x) {
    int32_t bits;
    std::memcpy(&bits, &x, 4);
    int32_t power = (bits - 0x3f3504f3) >> 23;  // x = 2^power * m, with m in [sqrt(1/2), sqrt(2))
    bits -= power * (1 << 23);
    float m, e = float(power);
    std::memcpy(&m, &bits, 4);
    m -= 1.0f;
    float square = m * m, p = 7.0376836292e-2f;
    p = p * m - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    p = p * m * square + e * -2.12194440e-4f - 0.5f * square;
    return x <= 3.402823466e38f ? m + p + e * 0.693359375f : x;
}

}  // namespace superbit
