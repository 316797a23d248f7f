// What every kernel needs: float32 and bfloat16 in memory, float in registers, and e^x.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

using bfloat16 = uint16_t;

inline float wide(float value) { return value; }

inline float wide(bfloat16 value) {
    const uint32_t bits = static_cast<uint32_t>(value) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

inline void store(float* place, float value) { *place = value; }

// To the nearest, ties to even; NaN stays NaN.
inline void store(bfloat16* place, float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    *place = static_cast<bfloat16>(value != value ? 0x7fc0 : rounded);
}

// exp by 2^n * p(r) with |r| <= ln(2) / 2, relative error 1e-7; 0 below -87. Branch-free, so that
// loops over it are vectorized. NaN stays NaN, by the order of the arguments.
inline float exponential(float x) {
    const float bounded = std::min(std::max(x, -87.0f), 88.0f);
    const float n = std::nearbyint(bounded * 1.44269504f);
    const float r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691e-4f;
    p = p * r + 1.3981999e-3f;
    p = p * r + 8.3334519e-3f;
    p = p * r + 4.1665796e-2f;
    p = p * r + 1.6666665e-1f;
    p = p * r + 5.0000001e-1f;
    p = p * r * r + r + 1.0f;
    const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return x < -87.0f ? 0.0f : p * power;
}
