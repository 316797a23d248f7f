// What learner and engine do between matrix products, one pass over memory each (layers.py).
//
// Rows lie one behind the other. T is the type the products are computed in, float or bfloat16
// (stored as uint16_t); the learner's residual stream is float. Arithmetic is float in between.

#include "layers.h"

namespace {

inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

// out = x * scale * weight with scale = 1 / sqrt(mean(x^2) + eps), which is kept for every row.
template <typename X, typename T>
void rms_norm(const X* x, const X* weight, T* out, float* scales, int64_t rows, int64_t width,
              float eps, int64_t threads) {
    // Waking threads takes longer than a few rows.
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * width > 65536)
    for (int64_t row = 0; row < rows; ++row) {
        scales[row] = norm_row(x + row * width, weight, out + row * width, width, eps);
    }
}

// of_x = residual + scale * (g - y * mean(g * y)) with g = of_out * weight and y = x * scale.
// of_weight [threads, width] gets the sums of of_out * y, a row for each thread.
template <typename T>
void rms_norm_backward(const T* of_out, const float* x, const float* weight, const float* scales,
                       const float* residual, float* of_x, float* of_weight, int64_t rows,
                       int64_t width, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t part = 0; part < threads; ++part) {
        float* sums = of_weight + part * width;
        std::fill(sums, sums + width, 0.0f);
        for (int64_t row = rows * part / threads; row < rows * (part + 1) / threads; ++row) {
            const T* g = of_out + row * width;
            const float* from = x + row * width;
            const float scale = scales[row];
            float dot = 0;
#pragma omp simd reduction(+ : dot)
            for (int64_t i = 0; i < width; ++i) {
                const float product = wide(g[i]) * from[i];
                sums[i] += product * scale;
                dot += product * weight[i];
            }
            const float pull = dot * scale * scale / static_cast<float>(width);
            const float* up = residual + row * width;
            float* to = of_x + row * width;
#pragma omp simd
            for (int64_t i = 0; i < width; ++i) {
                to[i] = up[i] + scale * (wide(g[i]) * weight[i] - from[i] * pull);
            }
        }
    }
}

template <typename T>
void add(const float* x, const T* y, float* out, int64_t count, int64_t threads) {
#pragma omp parallel for simd num_threads(threads) schedule(static)
    for (int64_t i = 0; i < count; ++i) {
        out[i] = x[i] + wide(y[i]);
    }
}

// Rotary embedding in place: the first `heads` heads of rows that are `stride` numbers apart, by
// cos and sin [rows, dim]; backward: by the transposed matrix.
template <typename T>
void rotate(T* values, const float* cos, const float* sin, int64_t rows, int64_t stride,
            int64_t heads, int64_t dim, int64_t backward, int64_t threads) {
    const int64_t half = dim / 2;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
        const float *c = cos + row * dim, *s = sin + row * dim;
        for (int64_t head = 0; head < heads; ++head) {
            T* low = values + row * stride + head * dim;
            T* high = low + half;
#pragma omp simd
            for (int64_t i = 0; i < half; ++i) {
                const float a = wide(low[i]), b = wide(high[i]);
                // the two entries off the diagonal change places where the matrix is transposed
                const float up = backward ? s[i + half] : -s[i];
                const float down = backward ? -s[i] : s[i + half];
                store(low + i, a * c[i] + b * up);
                store(high + i, b * c[i + half] + a * down);
            }
        }
    }
}

// out = silu(gate) * up, the two side by side in rows [2 * width].
template <typename T>
void swiglu(const T* gate_up, T* out, int64_t rows, int64_t width, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
        const T* gate = gate_up + row * 2 * width;
        gated_row(gate, gate + width, out + row * width, width);
    }
}

// Gradients of gate and up, and `out` once more, which the next layer's weights need.
template <typename T>
void swiglu_backward(const T* gate_up, const T* of_out, T* of_gate_up, T* out, int64_t rows,
                     int64_t width, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
        const T *gate = gate_up + row * 2 * width, *up = gate + width;
        const T* upstream = of_out + row * width;
        T *of_gate = of_gate_up + row * 2 * width, *of_up = of_gate + width;
        T* to = out + row * width;
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) {
            const float g = wide(gate[i]), u = wide(up[i]), d = wide(upstream[i]);
            const float s = sigmoid(g);
            store(to + i, gated(g, u));
            store(of_up + i, d * silu(g));
            store(of_gate + i, d * u * s * (1.0f + g * (1.0f - s)));
        }
    }
}

// 32 x 32 numbers of 16 bits: halves of rows change places, then quarters of halves, ...
constexpr int64_t SIDE = 32;
using Row = uint16_t __attribute__((vector_size(SIDE * sizeof(uint16_t))));

inline void transpose_square(Row square[SIDE]) {
    for (int64_t width = SIDE / 2; width > 0; width /= 2) {
        Row first, second;
        for (int64_t i = 0; i < SIDE; ++i) {
            first[i] = static_cast<uint16_t>(i & width ? SIDE + i - width : i);
            second[i] = static_cast<uint16_t>(i & width ? SIDE + i : i + width);
        }
        for (int64_t i = 0; i < SIDE; ++i) {
            if (i & width) {
                continue;
            }
            const Row a = square[i], b = square[i + width];
            square[i] = __builtin_shuffle(a, b, first);
            square[i + width] = __builtin_shuffle(a, b, second);
        }
    }
}

// [rows, columns] -> [columns, rows], rows being so many numbers apart before and after.
void transpose(const bfloat16* from, int64_t stride, bfloat16* to, int64_t to_stride, int64_t rows,
               int64_t columns, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row += SIDE) {
        const int64_t high = std::min(SIDE, rows - row);
        for (int64_t column = 0; column < columns; column += SIDE) {
            const int64_t across = std::min(SIDE, columns - column);
            const bfloat16* source = from + row * stride + column;
            bfloat16* target = to + column * to_stride + row;
            if (high < SIDE || across < SIDE) {  // a margin
                for (int64_t r = 0; r < high; ++r) {
                    for (int64_t c = 0; c < across; ++c) {
                        target[c * to_stride + r] = source[r * stride + c];
                    }
                }
                continue;
            }
            Row square[SIDE];
            for (int64_t r = 0; r < SIDE; ++r) {
                std::memcpy(&square[r], source + r * stride, sizeof(Row));
            }
            transpose_square(square);
            for (int64_t c = 0; c < SIDE; ++c) {
                std::memcpy(target + c * to_stride, &square[c], sizeof(Row));
            }
        }
    }
}

}  // namespace

#define NORM(X, T, NAME)                                                                       \
    extern "C" void rms_norm_##NAME(const X* x, const X* weight, T* out, float* scales,        \
                                    int64_t rows, int64_t width, float eps, int64_t threads) { \
        rms_norm(x, weight, out, scales, rows, width, eps, threads);                           \
    }

NORM(float, float, f32_f32)
NORM(float, bfloat16, f32_bf16)
NORM(bfloat16, bfloat16, bf16_bf16)

#define FOR_TYPE(T, NAME)                                                                          \
    extern "C" void rms_norm_backward_##NAME(const T* of_out, const float* x, const float* weight, \
                                             const float* scales, const float* residual,           \
                                             float* of_x, float* of_weight, int64_t rows,          \
                                             int64_t width, int64_t threads) {                     \
        rms_norm_backward(of_out, x, weight, scales, residual, of_x, of_weight, rows, width,       \
                          threads);                                                                \
    }                                                                                              \
    extern "C" void add_##NAME(const float* x, const T* y, float* out, int64_t count,              \
                               int64_t threads) {                                                  \
        add(x, y, out, count, threads);                                                            \
    }                                                                                              \
    extern "C" void rotate_##NAME(T* values, const float* cos, const float* sin, int64_t rows,     \
                                  int64_t stride, int64_t heads, int64_t dim, int64_t backward,    \
                                  int64_t threads) {                                               \
        rotate(values, cos, sin, rows, stride, heads, dim, backward, threads);                     \
    }                                                                                              \
    extern "C" void swiglu_##NAME(const T* gate_up, T* out, int64_t rows, int64_t width,           \
                                  int64_t threads) {                                               \
        swiglu(gate_up, out, rows, width, threads);                                                \
    }                                                                                              \
    extern "C" void swiglu_backward_##NAME(const T* gate_up, const T* of_out, T* of_gate_up,       \
                                           T* out, int64_t rows, int64_t width, int64_t threads) { \
        swiglu_backward(gate_up, of_out, of_gate_up, out, rows, width, threads);                   \
    }

FOR_TYPE(float, f32)
FOR_TYPE(bfloat16, bf16)

extern "C" void transpose_16(const uint16_t* from, int64_t stride, uint16_t* to, int64_t to_stride,
                             int64_t rows, int64_t columns, int64_t threads) {
    transpose(from, stride, to, to_stride, rows, columns, threads);
}
