// Attention of one decoding step (compiled_attention.py): the rotation of queries and keys, their
// place in the cache, and attention over prompt and own tokens, in one pass over memory. Sums are
// in float; what is stored is rounded once; queries and probabilities are rounded too before they
// are multiplied.
//
// HEAD_SIZE is set by who compiles this, a multiple of 16.

#include <vector>

#include "layers.h"

// What all layers of a step share. Rows R, H query heads, K key heads of size D.
struct AttentionStep {
    int64_t rows, heads, kv_heads;
    int64_t slots;             // of a prompt; a multiple of LANES
    int64_t chunk;             // slots of own tokens that lie together, the same
    int64_t capacity;          // rows there is room for
    const int64_t* group;      // [R] whose prompt a row reads
    const int64_t* lengths;    // [groups] of prompts
    const int64_t* positions;  // [R] of the new tokens
    const float* cosine;       // [positions, D]
    const float* sine;         // [positions, D], the first half negated
};

namespace {

// Numbers that are multiplied and summed at once: of bfloat16 two, in the place of one float.
template <typename T>
constexpr int64_t PAIR = sizeof(float) / sizeof(T);

// sum[j] += the sum over i < PAIR of one[i] * many[j * PAIR + i].
inline void multiply_add(Floats& sum, const float* one, const float* many) {
    sum += *one * load(many);
}

inline void multiply_add(Floats& sum, const bfloat16* one, const bfloat16* many) {
    Words pairs;
    std::memcpy(&pairs, many, sizeof pairs);
#ifdef __AVX512BF16__
    uint32_t pair;
    std::memcpy(&pair, one, sizeof pair);
    sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)pairs);
#else
    sum += wide(one[0]) * (Floats)(pairs << 16) + wide(one[1]) * (Floats)(pairs & 0xffff0000u);
#endif
}

template <typename T, int64_t D>
struct Attention {
    static_assert(D % LANES == 0);
    static constexpr int64_t P2 = PAIR<T>;
    const AttentionStep& s;
    int64_t per, window;
    const T* prompt_keys;    // [groups, K, D / PAIR, slots, PAIR]
    const T* prompt_values;  // [groups, K, slots / PAIR, D, PAIR]
    T* own;                  // [chunks, 2, capacity, K, one chunk], keys and values as in prompts
    const T *query_norm, *key_norm;  // [D] or null
    float epsilon;

    struct Memory {
        std::vector<float> scores;
        std::vector<T> queries, weights;
    };

    // The chunk of one own token: keys (kind 0) as [D / PAIR, chunk, PAIR], values (1) as
    // [chunk / PAIR, D, PAIR].
    T* place(int64_t row, int64_t head, int64_t token, int64_t kind) const {
        int64_t block = ((token / s.chunk * 2 + kind) * s.capacity + row) * s.kv_heads + head;
        return own + block * s.chunk * D;
    }

    void rotated(const T* x, const T* norm, int64_t position, T* y) const {
        T spare[D];
        if (norm) {
            norm_row(x, norm, spare, D, epsilon);
            x = spare;
        }
        const float *c = s.cosine + position * D, *n = s.sine + position * D;
        for (int64_t i = 0; i < D / 2; ++i) {
            float a = wide(x[i]), b = wide(x[i + D / 2]);
            store(y + i, a * c[i] + b * n[i]);
            store(y + i + D / 2, b * c[i + D / 2] + a * n[i + D / 2]);
        }
    }

    // The key and value of a new token. Its value's partner is cleared where that is yet to come:
    // a probability of 0 times whatever lies there may not be a number.
    void keep(int64_t row, int64_t head, int64_t token, const T* key, const T* value) const {
        const int64_t slot = token % s.chunk, half = slot % P2;
        T* keys = place(row, head, token, 0) + slot * P2;
        for (int64_t i = 0; i < D; ++i) {
            keys[i / P2 * s.chunk * P2 + i % P2] = key[i];
        }
        T* values = place(row, head, token, 1) + slot / P2 * P2 * D;
        for (int64_t i = 0; i < D; ++i) {
            values[i * P2 + half] = value[i];
            if (!half && P2 > 1) {
                values[i * P2 + 1] = 0;
            }
        }
    }

    // scores[h][t] = queries[h] . keys[t] of P heads, for `count` keys rounded up to LANES.
    template <int64_t P>
    static void dots(const T* keys, int64_t pitch, int64_t count, const T* queries, float* scores,
                     int64_t stride) {
        constexpr int64_t U = P == 1 ? 8 : P < 4 ? 4 : 2;  // sums that do not wait for one another
        for (int64_t t = 0; t < count; t += LANES) {
            Floats sums[U][P] = {};
            for (int64_t i = 0; i < D / P2; i += U) {
                for (int64_t u = 0; u < U; ++u) {
                    for (int64_t h = 0; h < P; ++h) {
                        multiply_add(sums[u][h], queries + h * D + (i + u) * P2,
                                     keys + ((i + u) * pitch + t) * P2);
                    }
                }
            }
            for (int64_t h = 0; h < P; ++h) {
                for (int64_t u = 1; u < U; ++u) {
                    sums[0][h] += sums[u][h];
                }
                std::memcpy(scores + h * stride + t, &sums[0][h], sizeof(Floats));
            }
        }
    }

    // sums[h] += weights[h][t] * values[t] of P heads, for `count` values rounded up to PAIR.
    template <int64_t P>
    static inline __attribute__((always_inline)) void add(const T* values, int64_t count,
                                                          const T* weights, int64_t stride,
                                                          Floats (&sums)[P][D / LANES]) {
        for (int64_t t = 0; t < count; t += P2) {
            for (int64_t h = 0; h < P; ++h) {
                for (int64_t i = 0; i < D / LANES; ++i) {
                    multiply_add(sums[h][i], weights + h * stride + t,
                                 values + t * D + i * LANES * P2);
                }
            }
        }
    }

    // P query heads that share a key head: softmax(queries K scale) V into `out` [P, D]. Scores
    // of the prompt come first, those of own tokens from `split` on; what lies between is -inf.
    template <int64_t P>
    void read(int64_t row, int64_t head, int64_t first, const T* queries, Memory& memory,
              T* out) const {
        const int64_t group = s.group[row], prompt = s.lengths[group];
        const int64_t at = (group * s.kv_heads + head) * s.slots * D, split = up_to(prompt, LANES);
        const int64_t seen = s.positions[row] + 1 - prompt, end = split + up_to(seen, LANES);
        const int64_t from = std::min(first, prompt) / LANES * LANES;
        const int64_t own_first = std::max(first - prompt, int64_t{0}) / s.chunk * s.chunk;
        memory.scores.resize(P * end);
        memory.weights.resize(P * end);
        float* scores = memory.scores.data();
        T* weights = memory.weights.data();
        dots<P>(prompt_keys + at + from * P2, s.slots, prompt - from, queries, scores + from, end);
        for (int64_t t = own_first; t < seen; t += s.chunk) {
            dots<P>(place(row, head, t, 0), s.chunk, std::min(s.chunk, seen - t), queries,
                    scores + split + t, end);
        }
        const float scale = 1.0f / std::sqrt(static_cast<float>(D));
        float factors[P];
        for (int64_t h = 0; h < P; ++h) {
            float* score = scores + h * end;
            std::fill(score + from, score + std::min(first, prompt), -INFINITY);
            std::fill(score + prompt, score + split + std::max(first - prompt, int64_t{0}),
                      -INFINITY);
            std::fill(score + split + seen, score + end, -INFINITY);
            Floats tops = Floats{} - INFINITY, total = {};
            for (int64_t t = from; t < end; t += LANES) {
                tops = larger(tops, load(score + t));
            }
            const float top = across(tops, [](float a, float b) { return std::max(a, b); });
            for (int64_t t = from; t < end; t += LANES) {
                const Floats weight = exponential((load(score + t) - top) * scale);
                total += weight;
                store(weights + h * end + t, weight);
            }
            factors[h] = 1.0f / ::sum(total);
        }
        Floats sums[P][D / LANES] = {};
        add<P>(prompt_values + at + from * D, prompt - from, weights + from, end, sums);
        for (int64_t t = own_first; t < seen; t += s.chunk) {
            add<P>(place(row, head, t, 1), std::min(s.chunk, seen - t), weights + split + t, end,
                   sums);
        }
        for (int64_t h = 0; h < P; ++h) {
            for (int64_t i = 0; i < D / LANES; ++i) {
                store(out + h * D + i * LANES, sums[h][i] * factors[h]);
            }
        }
    }

    // One row and key head: mixed [H + 2 K, D] of the row; the row's output is [H, D].
    void one(int64_t row, int64_t head, const T* mixed, T* out, Memory& memory) const {
        const int64_t position = s.positions[row], token = position - s.lengths[s.group[row]];
        const int64_t first = window ? std::max(position + 1 - window, int64_t{0}) : 0;
        T key[D];
        memory.queries.resize(per * D);
        for (int64_t h = 0; h < per; ++h) {
            rotated(mixed + (head * per + h) * D, query_norm, position, &memory.queries[h * D]);
        }
        rotated(mixed + (s.heads + head) * D, key_norm, position, key);
        keep(row, head, token, key, mixed + (s.heads + s.kv_heads + head) * D);
        out += head * per * D;
        constexpr int64_t most = D <= 64 ? 4 : D <= 128 ? 2 : 1;  // sums that fit into registers
        for (int64_t h = 0; h < per;) {
            const int64_t now = std::min(per - h, most);
            const T* q = &memory.queries[h * D];
            T* to = out + h * D;
            if (now == 4) {
                read < most<4 ? 1 : 4>(row, head, first, q, memory, to);
            } else if (now == 3) {
                read < most<3 ? 1 : 3>(row, head, first, q, memory, to);
            } else if (now == 2) {
                read < most<2 ? 1 : 2>(row, head, first, q, memory, to);
            } else {
                read<1>(row, head, first, q, memory, to);
            }
            h += now;
        }
    }

    void all(const T* mixed, T* out, int64_t threads) const {
        int64_t items = s.rows * s.kv_heads;
#pragma omp parallel num_threads(threads)
        {
            Memory memory;
#pragma omp for schedule(static)
            for (int64_t item = 0; item < items; ++item) {
                int64_t row = item / s.kv_heads, head = item % s.kv_heads;
                one(row, head, mixed + row * (s.heads + 2 * s.kv_heads) * D,
                    out + row * s.heads * D, memory);
            }
        }
    }
};

}  // namespace

#define FOR_TYPE(T, NAME)                                                                          \
    extern "C" void attend_##NAME(const AttentionStep* s, int64_t window, const T* mixed,          \
                                  const T* keys, const T* values, T* own, const T* query_norm,     \
                                  const T* key_norm, float epsilon, T* out, int64_t threads) {     \
        Attention<T, HEAD_SIZE> attention{                                                         \
            *s, s->heads / s->kv_heads, window, keys, values, own, query_norm, key_norm, epsilon}; \
        attention.all(mixed, out, threads);                                                        \
    }

FOR_TYPE(float, f32)
FOR_TYPE(bfloat16, bf16)
