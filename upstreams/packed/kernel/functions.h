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

}  // namespace superbit
