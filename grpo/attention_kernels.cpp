// Attention of packed groups and its backward pass in float (grpo/shared_attention.py).
//
// A unit of work is one query head of one pack: a prompt, causal to itself, and completions, each of
// which sees the whole prompt and itself up to the token. Units share nothing, so that results do
// not depend on the number of threads; gradients of keys and values are therefore kept apart for
// every query head. Matrices of a unit are copied to float and padded to whole blocks; T is float
// or bfloat16 (stored as uint16_t).

#include "kernels.h"

#include <vector>

namespace {

// One block of a matrix product: 16 registers of 16 numbers. Queries are taken TILE at a time.
constexpr int64_t ROWS = 8, COLUMNS = 32, TILE = 32;

typedef float Lanes __attribute__((vector_size(64), aligned(4), may_alias));

inline int64_t up_to(int64_t count, int64_t block) { return (count + block - 1) / block * block; }

// C [rows, columns] = A B, or added to it. A's entry (i, k) is a[i * a_row + k * a_k]; entry (k, j)
// of B is b[j / COLUMNS * b_block + k * b_k + j % COLUMNS]. Rows and columns are whole blocks.
void multiply(const float* a, int64_t a_row, int64_t a_k, const float* b, int64_t b_k,
              int64_t b_block, float* c, int64_t c_row, int64_t rows, int64_t columns,
              int64_t depth, bool add) {
    for (int64_t j = 0; j < columns; j += COLUMNS) {
        const float* panel = b + j / COLUMNS * b_block;
        for (int64_t i = 0; i < rows; i += ROWS) {
            Lanes sum[ROWS][2] = {};
            const float* left = a + i * a_row;
            for (int64_t k = 0; k < depth; ++k) {
                const Lanes first = *reinterpret_cast<const Lanes*>(panel + k * b_k);
                const Lanes second = *reinterpret_cast<const Lanes*>(panel + k * b_k + 16);
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; ++r) {
                    const float x = left[r * a_row + k * a_k];
                    sum[r][0] += x * first;
                    sum[r][1] += x * second;
                }
            }
            for (int r = 0; r < ROWS; ++r) {
                Lanes* place = reinterpret_cast<Lanes*>(c + (i + r) * c_row + j);
                place[0] = add ? place[0] + sum[r][0] : sum[r][0];
                place[1] = add ? place[1] + sum[r][1] : sum[r][1];
            }
        }
    }
}

// Rows [count, dim] of one head as they lie, in float; `to` has rows of `padded` numbers.
template <typename T>
void load_rows(const T* from, int64_t stride, int64_t count, int64_t dim, float* to,
               int64_t padded, float factor = 1.0f) {
    for (int64_t i = 0; i < count; ++i)
#pragma omp simd
        for (int64_t d = 0; d < dim; ++d) to[i * padded + d] = factor * wide(from[i * stride + d]);
}

// The same transposed, in panels [dim, COLUMNS] for every COLUMNS rows; the first is row `first`.
template <typename T>
void load_panels(const T* from, int64_t stride, int64_t count, int64_t dim, float* to,
                 int64_t first) {
    for (int64_t i = 0; i < count; ++i) {
        const int64_t row = first + i;
        float* column = to + row / COLUMNS * (dim * COLUMNS) + row % COLUMNS;
        for (int64_t d = 0; d < dim; ++d) column[d * COLUMNS] = wide(from[i * stride + d]);
    }
}

// A matrix of T: rows are `stride` numbers apart, heads `dim`.
template <typename T>
struct Heads {
    T* data;
    int64_t stride;
    T* at(int64_t row, int64_t head, int64_t dim) const { return data + row * stride + head * dim; }
};

// Packs [4]: start and length of the prompt, number of the first completion, how many; completions
// [2]: start and length.
struct Layout {
    const int64_t *packs, *completions;
    int64_t count, heads, key_heads, dim;
};

// Calls `act(first, length, prompt)` for the prompt (`prompt` = 0 earlier keys) and completions.
template <typename Act>
void for_sequences(const Layout& layout, const int64_t* pack, Act act) {
    act(pack[0], pack[1], int64_t{0});
    for (int64_t i = pack[2]; i < pack[2] + pack[3]; ++i)
        act(layout.completions[2 * i], layout.completions[2 * i + 1], pack[1]);
}

inline int64_t most_keys(const Layout& layout, const int64_t* pack) {
    int64_t most = pack[1];
    for_sequences(layout, pack, [&](int64_t, int64_t length, int64_t prompt) {
        most = std::max(most, prompt + length);
    });
    return up_to(most, COLUMNS);
}

template <typename T>
void forward(Heads<const T> query, Heads<const T> key, Heads<const T> value, T* out, float* norm,
             float scale, const Layout& layout, int threads) {
    const int64_t dim = layout.dim, padded = up_to(dim, COLUMNS), H = layout.heads;
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(threads)
    for (int64_t p = 0; p < layout.count; ++p) {
        for (int64_t h = 0; h < H; ++h) {
            const int64_t* pack = layout.packs + 4 * p;
            const int64_t k = h * layout.key_heads / H, room = most_keys(layout, pack);
            std::vector<float> keys(room * dim), values(room * padded), q(TILE * padded),
                scores(TILE * room), result(TILE * padded);
            for_sequences(layout, pack, [&](int64_t first, int64_t length, int64_t prompt) {
                load_panels(key.at(first, k, dim), key.stride, length, dim, keys.data(), prompt);
                load_rows(value.at(first, k, dim), value.stride, length, dim,
                          values.data() + prompt * padded, padded);
                for (int64_t start = 0; start < length; start += TILE) {
                    const int64_t rows = std::min(TILE, length - start);
                    const int64_t seen = prompt + start + rows, columns = up_to(seen, COLUMNS);
                    load_rows(query.at(first + start, h, dim), query.stride, rows, dim, q.data(),
                              padded, scale);
                    multiply(q.data(), padded, 1, keys.data(), COLUMNS, dim * COLUMNS,
                             scores.data(), room, up_to(rows, ROWS), columns, dim, false);
                    for (int64_t r = 0; r < rows; ++r) {
                        float *row = scores.data() + r * room, highest = row[0], total = 0;
                        const int64_t visible = prompt + start + r + 1;
#pragma omp simd reduction(max : highest)
                        for (int64_t j = 0; j < visible; ++j) highest = std::max(highest, row[j]);
#pragma omp simd reduction(+ : total)
                        for (int64_t j = 0; j < visible; ++j)
                            total += row[j] = exponential(row[j] - highest);
                        std::fill(row + visible, row + columns, 0.0f);
                        const int64_t place = (first + start + r) * H + h;
                        norm[place] = highest + std::log(total);
#pragma omp simd
                        for (int64_t j = 0; j < visible; ++j) row[j] /= total;
                    }
                    multiply(scores.data(), room, 1, values.data(), padded, COLUMNS, result.data(),
                             padded, up_to(rows, ROWS), padded, seen, false);
                    for (int64_t r = 0; r < rows; ++r) {
                        T* to = out + ((first + start + r) * H + h) * dim;
#pragma omp simd
                        for (int64_t d = 0; d < dim; ++d) store(to + d, result[r * padded + d]);
                    }
                }
            });
        }
    }
}

// With P = exp(score - norm) and delta = sum(of_out * out) of a query, the gradient of a score is
// P (of_out . value - delta). of_key and of_value: float [N, H, dim], every query head by itself.
template <typename T>
void backward(const T* of_out, Heads<const T> query, Heads<const T> key, Heads<const T> value,
              const T* out, const float* norm, T* of_query, float* of_key, float* of_value,
              float scale, const Layout& layout, int threads) {
    const int64_t dim = layout.dim, padded = up_to(dim, COLUMNS), H = layout.heads;
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(threads)
    for (int64_t p = 0; p < layout.count; ++p) {
        for (int64_t h = 0; h < H; ++h) {
            const int64_t* pack = layout.packs + 4 * p;
            const int64_t k = h * layout.key_heads / H, room = most_keys(layout, pack);
            std::vector<float> key_panels(room * dim), value_panels(room * dim),
                keys(room * padded), of_keys(room * padded), of_values(room * padded),
                q(TILE * padded), upstream(TILE * padded), probs(TILE * room),
                of_scores(TILE * room), result(TILE * padded);
            const auto give = [&](int64_t first, int64_t length, int64_t from) {
                for (int64_t i = 0; i < length; ++i) {
                    const int64_t place = ((first + i) * H + h) * dim;
                    std::copy_n(&of_keys[(from + i) * padded], dim, of_key + place);
                    std::copy_n(&of_values[(from + i) * padded], dim, of_value + place);
                }
            };
            for_sequences(layout, pack, [&](int64_t first, int64_t length, int64_t prompt) {
                load_panels(key.at(first, k, dim), key.stride, length, dim, key_panels.data(),
                            prompt);
                load_panels(value.at(first, k, dim), value.stride, length, dim,
                            value_panels.data(), prompt);
                load_rows(key.at(first, k, dim), key.stride, length, dim,
                          keys.data() + prompt * padded, padded);
                // the prompt's own gradients go on adding up over its completions
                std::fill(of_keys.begin() + prompt * padded, of_keys.end(), 0.0f);
                std::fill(of_values.begin() + prompt * padded, of_values.end(), 0.0f);
                for (int64_t start = 0; start < length; start += TILE) {
                    const int64_t rows = std::min(TILE, length - start);
                    const int64_t seen = prompt + start + rows, columns = up_to(seen, COLUMNS);
                    load_rows(query.at(first + start, h, dim), query.stride, rows, dim, q.data(),
                              padded, scale);
                    load_rows(of_out + ((first + start) * H + h) * dim, H * dim, rows, dim,
                              upstream.data(), padded);
                    multiply(q.data(), padded, 1, key_panels.data(), COLUMNS, dim * COLUMNS,
                             probs.data(), room, up_to(rows, ROWS), columns, dim, false);
                    multiply(upstream.data(), padded, 1, value_panels.data(), COLUMNS,
                             dim * COLUMNS, of_scores.data(), room, up_to(rows, ROWS), columns,
                             dim, false);
                    for (int64_t r = 0; r < rows; ++r) {
                        const int64_t place = (first + start + r) * H + h;
                        const T* found = out + place * dim;
                        float delta = 0;
#pragma omp simd reduction(+ : delta)
                        for (int64_t d = 0; d < dim; ++d)
                            delta += upstream[r * padded + d] * wide(found[d]);
                        float *prob = &probs[r * room], *of_score = &of_scores[r * room];
                        const int64_t visible = prompt + start + r + 1;
                        const float total = norm[place];
#pragma omp simd
                        for (int64_t j = 0; j < visible; ++j) {
                            prob[j] = exponential(prob[j] - total);
                            of_score[j] = prob[j] * (of_score[j] - delta);
                        }
                        std::fill(prob + visible, prob + columns, 0.0f);
                        std::fill(of_score + visible, of_score + columns, 0.0f);
                    }
                    multiply(of_scores.data(), room, 1, keys.data(), padded, COLUMNS,
                             result.data(), padded, up_to(rows, ROWS), padded, seen, false);
                    for (int64_t r = 0; r < rows; ++r) {
                        T* to = of_query + ((first + start + r) * H + h) * dim;
#pragma omp simd
                        for (int64_t d = 0; d < dim; ++d)
                            store(to + d, scale * result[r * padded + d]);
                    }
                    // q holds the scale already
                    multiply(of_scores.data(), 1, room, q.data(), padded, COLUMNS, of_keys.data(),
                             padded, up_to(seen, ROWS), padded, rows, true);
                    multiply(probs.data(), 1, room, upstream.data(), padded, COLUMNS,
                             of_values.data(), padded, up_to(seen, ROWS), padded, rows, true);
                }
                if (prompt) give(first, length, prompt);
            });
            give(pack[0], pack[1], 0);
        }
    }
}

}  // namespace

#define FOR_TYPE(T, NAME)                                                                          \
    extern "C" void attend_##NAME(const T* query, int64_t query_stride, const T* key,              \
                                  int64_t key_stride, const T* value, int64_t value_stride,        \
                                  T* out, float* norm, float scale, const int64_t* packs,          \
                                  const int64_t* completions, int64_t count, int64_t heads,        \
                                  int64_t key_heads, int64_t dim, int threads) {                   \
        forward<T>({query, query_stride}, {key, key_stride}, {value, value_stride}, out, norm,     \
                   scale, {packs, completions, count, heads, key_heads, dim}, threads);            \
    }                                                                                              \
    extern "C" void attend_backward_##NAME(                                                        \
        const T* of_out, const T* query, int64_t query_stride, const T* key, int64_t key_stride,   \
        const T* value, int64_t value_stride, const T* out, const float* norm, T* of_query,        \
        float* of_key, float* of_value, float scale,                      \
        const int64_t* packs, const int64_t* completions, int64_t count, int64_t heads,            \
        int64_t key_heads, int64_t dim, int threads) {                                             \
        backward<T>(of_out, {query, query_stride}, {key, key_stride}, {value, value_stride}, out,  \
                    norm, of_query, of_key, of_value, scale,                    \
                    {packs, completions, count, heads, key_heads, dim}, threads);                  \
    }

FOR_TYPE(float, f32)
FOR_TYPE(bfloat16, bf16)
