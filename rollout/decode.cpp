// What lies between the matrix products of one decoding step (rollout/native.py), one pass over
// memory each: norms, the gated activation, and the rotation of queries and keys, their place in the
// cache and attention over prompt and own tokens. Sums are in float; what is stored is rounded once.
//
// HEAD_SIZE is set by who compiles this, a multiple of 4.

#include "kernels.h"

#include <vector>

namespace {

template <class T>
void norm_row(const T* x, const T* weight, T* out, int64_t size, float epsilon) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < size; i++) sum += wide(x[i]) * wide(x[i]);
    float factor = 1.0f / std::sqrt(sum / float(size) + epsilon);
#pragma omp simd
    for (int64_t i = 0; i < size; i++) store(out + i, wide(x[i]) * factor * wide(weight[i]));
}

}  // namespace

// What all layers of a step share. Rows R, H query heads, K key heads of size D.
struct Step {
    int64_t rows, heads, kv_heads;
    int64_t slots;          // of a prompt; a multiple of LANES
    int64_t chunk;          // slots of own tokens that lie together, the same
    int64_t capacity;       // rows there is room for
    int64_t threads;
    const int64_t* group;      // [R] whose prompt a row reads
    const int64_t* lengths;    // [groups] of prompts
    const int64_t* positions;  // [R] of the new tokens
    const float* cosine;       // [positions, D]
    const float* sine;         // [positions, D], the first half negated
};

namespace {

constexpr int LANES = 32;  // keys that are scored side by side

template <class T, int D>
struct Attention {
    static_assert(D % 4 == 0);
    const Step& s;
    int64_t per, window;
    const T *prompt_keys, *prompt_values;  // [groups, K, D, slots], [groups, K, slots, D]
    T* own;                                // [chunks, 2, capacity, K, one chunk]
    const T *query_norm, *key_norm;        // [D] or null
    float epsilon;

    // The chunk of one own token: keys (kind 0) as [D, chunk], or values (1) as [chunk, D].
    T* place(int64_t row, int64_t head, int64_t token, int64_t kind) const {
        int64_t block = ((token / s.chunk * 2 + kind) * s.capacity + row) * s.kv_heads + head;
        return own + block * s.chunk * D;
    }

    void rotated(const T* x, const T* norm, int64_t position, float* y) const {
        T spare[D];
        if (norm) {
            norm_row(x, norm, spare, D, epsilon);
            x = spare;
        }
        const float *c = s.cosine + position * D, *n = s.sine + position * D;
        for (int i = 0; i < D / 2; i++) {
            float a = wide(x[i]), b = wide(x[i + D / 2]);
            y[i] = a * c[i] + b * n[i];
            y[i + D / 2] = b * c[i + D / 2] + a * n[i + D / 2];
        }
    }

    // Sums that do not wait for one another, so that few heads keep the processor busy too.
    static constexpr int apart(int heads) { return heads == 1 ? 4 : heads == 2 ? 2 : 1; }

    // scores[h][t] = queries[h] . keys[.., t] of P heads, for `count` keys rounded up to LANES.
    template <int P>
    static void dots(const T* keys, int64_t pitch, int64_t count, const float* queries,
                     float* scores, int64_t stride) {
        constexpr int U = apart(P);
        for (int64_t t = 0; t < count; t += LANES) {
            float sum[U][P][LANES] = {};
            for (int i = 0; i < D; i += U) {
                for (int u = 0; u < U; u++) {
                    const T* key = keys + (i + u) * pitch + t;
#pragma omp simd
                    for (int j = 0; j < LANES; j++) {
                        float k = wide(key[j]);
                        for (int h = 0; h < P; h++) sum[u][h][j] += queries[h * D + i + u] * k;
                    }
                }
            }
            for (int h = 0; h < P; h++)
                for (int j = 0; j < LANES; j++) {
                    float whole = sum[0][h][j];
                    for (int u = 1; u < U; u++) whole += sum[u][h][j];
                    scores[h * stride + t + j] = whole;
                }
        }
    }

    // sums[h] += weights[h][t] * values[t] of P heads.
    template <int P>
    static void add(const T* values, int64_t count, const float* weights, int64_t stride,
                    float* sums) {
        constexpr int U = apart(P);
        float sum[U][P][D] = {};
        int64_t t = 0;
        const auto one = [&](float (&to)[P][D], int64_t t) {
            const T* value = values + t * D;
#pragma omp simd
            for (int i = 0; i < D; i++) {
                float v = wide(value[i]);
                for (int h = 0; h < P; h++) to[h][i] += weights[h * stride + t] * v;
            }
        };
        for (; t + U <= count; t += U)
            for (int u = 0; u < U; u++) one(sum[u], t + u);
        for (; t < count; t++) one(sum[0], t);
        for (int u = 0; u < U; u++)
            for (int i = 0; i < P * D; i++) sums[i] += (&sum[u][0][0])[i];
    }

    // P query heads that share a key head: softmax(queries K) V into `out` [P, D].
    template <int P>
    void read(int64_t row, int64_t head, int64_t first, const float* queries, float* scores,
              T* out) const {
        int64_t group = s.group[row], prompt = s.lengths[group], seen = s.positions[row] + 1;
        int64_t at = (group * s.kv_heads + head) * s.slots * D, own_end = seen - prompt;
        int64_t stride = room(seen), own_first = std::max(first - prompt, int64_t(0));
        int64_t from = first / LANES * LANES, chunk_from = own_first / s.chunk * s.chunk;
        int64_t end = from + (seen - from + LANES - 1) / LANES * LANES;  // in whole vectors
        if (from < prompt)
            dots<P>(prompt_keys + at + from, s.slots, prompt - from, queries, scores + from, stride);
        for (int64_t t = chunk_from; t < own_end; t += s.chunk)
            dots<P>(place(row, head, t, 0), s.chunk, std::min(s.chunk, own_end - t), queries,
                    scores + prompt + t, stride);
        float sums[P * D] = {};
        for (int h = 0; h < P; h++) {
            float *score = scores + h * stride, top = -INFINITY, sum = 0;
            std::fill(score + from, score + first, -INFINITY);
            std::fill(score + seen, score + end, -INFINITY);
#pragma omp simd reduction(max : top)
            for (int64_t t = from; t < end; t++) top = std::max(top, score[t]);
            for (int64_t t = from; t < end; t += LANES)
#pragma omp simd reduction(+ : sum)
                for (int j = 0; j < LANES; j++)
                    sum += score[t + j] = exponential(score[t + j] - top);
            float factor = 1.0f / sum;
#pragma omp simd
            for (int64_t t = from; t < end; t++) score[t] *= factor;
        }
        if (first < prompt)
            add<P>(prompt_values + at + first * D, prompt - first, scores + first, stride, sums);
        for (int64_t t = own_first; t < own_end;) {
            int64_t end = std::min(own_end, (t / s.chunk + 1) * s.chunk);
            add<P>(place(row, head, t, 1) + t % s.chunk * D, end - t, scores + prompt + t, stride,
                   sums);
            t = end;
        }
        for (int i = 0; i < P * D; i++) store(out + i, sums[i]);
    }

    static int64_t room(int64_t seen) { return seen + 2 * LANES; }

    // One row and key head: mixed [H + 2 K, D] of the row; the row's output is [H, D].
    void one(int64_t row, int64_t head, const T* mixed, T* out, std::vector<float>& memory) const {
        int64_t position = s.positions[row], first = window ? std::max(position + 1 - window, int64_t(0)) : 0;
        int64_t token = position - s.lengths[s.group[row]];
        memory.resize(per * D + 4 * room(position + 1));
        float *queries = memory.data(), *scores = queries + per * D;
        float scale = 1.0f / std::sqrt(float(D)), turned[D];
        for (int64_t h = 0; h < per; h++) {
            rotated(mixed + (head * per + h) * D, query_norm, position, queries + h * D);
            for (int i = 0; i < D; i++) queries[h * D + i] *= scale;
        }
        rotated(mixed + (s.heads + head) * D, key_norm, position, turned);
        T* key = place(row, head, token, 0) + token % s.chunk;
        for (int i = 0; i < D; i++) store(key + i * s.chunk, turned[i]);
        const T* value = mixed + (s.heads + s.kv_heads + head) * D;
        std::copy(value, value + D, place(row, head, token, 1) + token % s.chunk * D);
        out += head * per * D;
        for (int64_t h = 0; h < per;) {
            int64_t left = per - h;
            const float* q = queries + h * D;
            T* to = out + h * D;
            if (left >= 4) read<4>(row, head, first, q, scores, to), h += 4;
            else if (left == 3) read<3>(row, head, first, q, scores, to), h += 3;
            else if (left == 2) read<2>(row, head, first, q, scores, to), h += 2;
            else read<1>(row, head, first, q, scores, to), h += 1;
        }
    }

    void all(const T* mixed, T* out) const {
        int64_t items = s.rows * s.kv_heads;
#pragma omp parallel num_threads(s.threads)
        {
            std::vector<float> memory;
#pragma omp for schedule(static)
            for (int64_t item = 0; item < items; item++) {
                int64_t row = item / s.kv_heads, head = item % s.kv_heads;
                one(row, head, mixed + row * (s.heads + 2 * s.kv_heads) * D,
                    out + row * s.heads * D, memory);
            }
        }
    }
};

template <class T>
void norm(const T* x, const T* weight, T* out, int64_t rows, int64_t size, float epsilon,
          int64_t threads) {
    // Waking threads takes longer than a few rows.
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * size > 65536)
    for (int64_t row = 0; row < rows; row++)
        norm_row(x + row * size, weight, out + row * size, size, epsilon);
}

template <class T>
void swiglu(const T* gate_up, T* out, int64_t rows, int64_t width, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const T *gate = gate_up + 2 * row * width, *up = gate + width;
#pragma omp simd
        for (int64_t i = 0; i < width; i++) {
            float g = wide(gate[i]);
            store(out + row * width + i, g / (1.0f + exponential(-g)) * wide(up[i]));
        }
    }
}

}  // namespace

#define ENTRIES(NAME, T)                                                                          \
    extern "C" void norm_##NAME(const T* x, const T* weight, T* out, int64_t rows, int64_t size,  \
                                float epsilon, int64_t threads) {                                 \
        norm(x, weight, out, rows, size, epsilon, threads);                                       \
    }                                                                                             \
    extern "C" void swiglu_##NAME(const T* gate_up, T* out, int64_t rows, int64_t width,          \
                                  int64_t threads) {                                              \
        swiglu(gate_up, out, rows, width, threads);                                               \
    }                                                                                             \
    extern "C" void attend_##NAME(const Step* s, int64_t window, const T* mixed, const T* keys,   \
                                  const T* values, T* own, const T* query_norm,                   \
                                  const T* key_norm, float epsilon, T* out) {                     \
        Attention<T, HEAD_SIZE> attention{*s,  s->heads / s->kv_heads, window,   keys,   values,  \
                                          own, query_norm,             key_norm, epsilon};        \
        attention.all(mixed, out);                                                                \
    }

ENTRIES(float32, float)
ENTRIES(bfloat16, bfloat16)
