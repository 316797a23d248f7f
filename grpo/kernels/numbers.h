// What every kernel needs: float32 and bfloat16 in memory, float in registers, and e^x.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __AVX512BF16__
#include "intrinsics.h"
#endif

using bfloat16 = uint16_t;

// `count`, in whole blocks.
inline int64_t up_to(int64_t count, int64_t block) { return (count + block - 1) / block * block; }

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

constexpr float TO_WHOLE = 12582912.0f;  // numbers as large as this have no fraction

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
    // A float as large as this is whole and ends in n + 127, the exponent of 2^n. NaN may have any.
    const float shifted = n + (TO_WHOLE + 127.0f);
    uint32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits <<= 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return x < -87.0f ? 0.0f : p * power;
}

// Sixteen numbers in a register: for loops that compilers do not vectorize by themselves.

constexpr int64_t LANES = 16;
using Floats = float __attribute__((vector_size(4 * LANES)));
using Words = uint32_t __attribute__((vector_size(4 * LANES)));
using Halves = bfloat16 __attribute__((vector_size(2 * LANES)));

inline Floats load(const float* place) {
    Floats values;
    std::memcpy(&values, place, sizeof values);
    return values;
}

inline Floats load(const bfloat16* place) {
    Halves values;
    std::memcpy(&values, place, sizeof values);
    return (Floats)(__builtin_convertvector(values, Words) << 16);
}

inline void store(float* place, Floats values) { std::memcpy(place, &values, sizeof values); }

inline void store(bfloat16* place, Floats values) {
#ifdef __AVX512BF16__
    const __m256bh halves = _mm512_cvtneps_pbh(values);
#else
    const Words bits = (Words)values, quiet = Words{} + 0x7fc0;
    const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const Halves halves = __builtin_convertvector(values != values ? quiet : rounded, Halves);
#endif
    std::memcpy(place, &halves, sizeof halves);
}

inline Floats larger(Floats a, Floats b) { return a < b ? b : a; }

inline Floats exponential(Floats x) {
    const Floats bounded = x < -87.0f ? Floats{} - 87.0f : x > 88.0f ? Floats{} + 88.0f : x;
    const Floats n = (bounded * 1.44269504f + TO_WHOLE) - TO_WHOLE;
    const Floats r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
    Floats p = r * 1.9875691e-4f + 1.3981999e-3f;
    p = p * r + 8.3334519e-3f;
    p = p * r + 4.1665796e-2f;
    p = p * r + 1.6666665e-1f;
    p = p * r + 5.0000001e-1f;
    p = p * r * r + r + 1.0f;
    const Floats power = (Floats)((Words)(n + (TO_WHOLE + 127.0f)) << 23);
    return x < -87.0f ? Floats{} : p * power;
}

template <typename Combine>
float across(Floats values, Combine combine) {
    for (int64_t width = LANES / 2; width; width /= 2) {
        for (int64_t i = 0; i < width; ++i) {
            values[i] = combine(values[i], values[i + width]);
        }
    }
    return values[0];
}

inline float sum(Floats values) {
    return across(values, [](float a, float b) { return a + b; });
}
