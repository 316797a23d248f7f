// RMS norm and gated activation of a row: one formula each for the learner (layers.cpp) and the
// engine (matmul.cpp, or layers.py), so that both round alike.
//
// V is a number or sixteen of them. Arithmetic is in float; a result is rounded where it is stored.

#pragma once

#include "numbers.h"

// 1 / sqrt(mean(x^2) + epsilon) of a row.
template <typename T>
inline float norm_scale(const T* x, int64_t width, float epsilon) {
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < width; ++i) {
        squares += wide(x[i]) * wide(x[i]);
    }
    return 1.0f / std::sqrt(squares / static_cast<float>(width) + epsilon);
}

template <typename V>
inline V normed(V x, float scale, V weight) {
    return x * scale * weight;
}

// A row of any types: x * norm_scale(x) * weight. Returns the scale.
template <typename X, typename W, typename T>
inline float norm_row(const X* x, const W* weight, T* out, int64_t width, float epsilon) {
    const float scale = norm_scale(x, width, epsilon);
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
        store(out + i, normed(wide(x[i]), scale, wide(weight[i])));
    }
    return scale;
}

// x * sigmoid(x), with one rounding less than the product has.
template <typename V>
inline V silu(V x) {
    return x / (1.0f + exponential(-x));
}

template <typename V>
inline V gated(V gate, V up) {
    return silu(gate) * up;
}

// gated(gate, up) of a row.
template <typename T>
inline void gated_row(const T* gate, const T* up, T* out, int64_t width) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
        store(out + i, gated(wide(gate[i]), wide(up[i])));
    }
}
