// Attention of packed groups and its backward pass (grpo/attention/shared.py).
//
// A unit of work is one key head of one pack with its query heads: a prompt, causal to itself, and
// completions, each of which sees the whole prompt and itself up to the token. Units share nothing,
// so that results do not depend on the number of threads. In bfloat16 it is the work of the
// processor's tiles where there are any (attention_tiles.h; not with FLOAT_ONLY defined). What
// follows is everything else: matrices of a unit are copied to float and padded to whole blocks; T
// is float or bfloat16 (stored as uint16_t).

#include "attention.h"
#ifndef FLOAT_ONLY
#include "attention_tiles.h"
#else
#define TILES 0
#endif

#include <type_traits>
#include <vector>

namespace {

// One block of a matrix product: 16 registers of 16 numbers. Queries are taken QUERIES at a time.
constexpr int64_t ROWS = 8, COLUMNS = 32, QUERIES = 32;

using Lanes = float __attribute__((vector_size(64), aligned(4), may_alias));

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
                for (int64_t r = 0; r < ROWS; ++r) {
                    const float x = left[r * a_row + k * a_k];
                    sum[r][0] += x * first;
                    sum[r][1] += x * second;
                }
            }
            for (int64_t r = 0; r < ROWS; ++r) {
                Lanes* place = reinterpret_cast<Lanes*>(c + (i + r) * c_row + j);
                place[0] = add ? place[0] + sum[r][0] : sum[r][0];
                place[1] = add ? place[1] + sum[r][1] : sum[r][1];
            }
        }
    }
}

// Some tokens of a head in the padded buffers.
template <typename T>
struct Part {
    Heads<T> heads;
    int64_t first, head, count, dim;
    T* row(int64_t i) const { return heads.at(first + i, head, dim); }
};

// Its rows [count, dim] as they lie, in float; `to` has rows of `padded` numbers.
template <typename T>
void load_rows(const Part<T>& from, float* to, int64_t padded, float factor = 1.0f) {
    for (int64_t i = 0; i < from.count; ++i) {
        const T* row = from.row(i);
#pragma omp simd
        for (int64_t d = 0; d < from.dim; ++d) {
            to[i * padded + d] = factor * wide(row[d]);
        }
    }
}

// The same transposed, in panels [dim, COLUMNS] for every COLUMNS rows; the first is row `start`.
template <typename T>
void load_panels(const Part<T>& from, float* to, int64_t start) {
    for (int64_t i = 0; i < from.count; ++i) {
        const int64_t row = start + i;
        float* column = to + row / COLUMNS * (from.dim * COLUMNS) + row % COLUMNS;
        const T* values = from.row(i);
        for (int64_t d = 0; d < from.dim; ++d) {
            column[d * COLUMNS] = wide(values[d]);
        }
    }
}

// Back into a tensor, times a factor.
template <typename T>
void store_rows(const float* from, int64_t padded, const Part<T>& to, float factor = 1.0f) {
    for (int64_t i = 0; i < to.count; ++i) {
        T* row = to.row(i);
#pragma omp simd
        for (int64_t d = 0; d < to.dim; ++d) {
            store(row + d, factor * from[i * padded + d]);
        }
    }
}

inline int64_t most_keys(const Layout& layout, const int64_t* pack) {
    int64_t most = pack[1];
    for_sequences(layout, pack, [&](int64_t, int64_t length, int64_t prompt) {
        most = std::max(most, prompt + length);
    });
    return up_to(most, COLUMNS);
}

template <typename T>
void forward(const Tensors<T>& tensors, float* norm, const Layout& layout, int64_t threads) {
    const int64_t dim = layout.dim, padded = up_to(dim, COLUMNS), H = layout.heads;
    const int64_t group = layout.group();
#pragma omp parallel for collapse(2) num_threads(threads) schedule(dynamic)
    for (int64_t p = 0; p < layout.count; ++p) {
        for (int64_t k = 0; k < layout.key_heads; ++k) {
            const int64_t* pack = layout.packs + 4 * p;
            const int64_t room = most_keys(layout, pack);
            std::vector<float> keys(room * dim), values(room * padded), q(QUERIES * padded),
                scores(QUERIES * room), result(QUERIES * padded);
            const auto attend = [&](int64_t first, int64_t rows, int64_t before, int64_t h) {
                const int64_t seen = before + rows, columns = up_to(seen, COLUMNS);
                load_rows<T>({tensors.query, first, h, rows, dim}, q.data(), padded, layout.scale);
                multiply(q.data(), padded, 1, keys.data(), COLUMNS, dim * COLUMNS, scores.data(),
                         room, up_to(rows, ROWS), columns, dim, false);
                for (int64_t r = 0; r < rows; ++r) {
                    float *row = scores.data() + r * room, highest = row[0], total = 0;
                    const int64_t visible = before + r + 1;
#pragma omp simd reduction(max : highest)
                    for (int64_t j = 0; j < visible; ++j) highest = std::max(highest, row[j]);
#pragma omp simd reduction(+ : total)
                    for (int64_t j = 0; j < visible; ++j)
                        total += row[j] = exponential(row[j] - highest);
                    std::fill(row + visible, row + columns, 0.0f);
                    norm[(first + r) * H + h] = highest + std::log(total);
#pragma omp simd
                    for (int64_t j = 0; j < visible; ++j) row[j] /= total;
                }
                multiply(scores.data(), room, 1, values.data(), padded, COLUMNS, result.data(),
                         padded, up_to(rows, ROWS), padded, seen, false);
                store_rows<T>(result.data(), padded, {tensors.out, first, h, rows, dim});
            };
            for_sequences(layout, pack, [&](int64_t first, int64_t length, int64_t prompt) {
                load_panels<T>({tensors.key, first, k, length, dim}, keys.data(), prompt);
                load_rows<T>({tensors.value, first, k, length, dim}, &values[prompt * padded],
                             padded);
                for (int64_t h = k * group; h < (k + 1) * group; ++h) {
                    for (int64_t start = 0; start < length; start += QUERIES) {
                        attend(first + start, std::min(QUERIES, length - start), prompt + start, h);
                    }
                }
            });
        }
    }
}

// With P = exp(score - norm) and delta = sum(of_out * out) of a query, the gradient of a score is
// P (of_out . value - delta).
template <typename T>
void backward(const Tensors<T>& tensors, const Tensors<T>& gradients, const float* norm,
              const Layout& layout, int64_t threads) {
    const int64_t dim = layout.dim, padded = up_to(dim, COLUMNS), H = layout.heads;
    const int64_t group = layout.group();
#pragma omp parallel for collapse(2) num_threads(threads) schedule(dynamic)
    for (int64_t p = 0; p < layout.count; ++p) {
        for (int64_t k = 0; k < layout.key_heads; ++k) {
            const int64_t* pack = layout.packs + 4 * p;
            const int64_t room = most_keys(layout, pack);
            std::vector<float> key_panels(room * dim), value_panels(room * dim),
                keys(room * padded), of_keys(room * padded), of_values(room * padded),
                q(QUERIES * padded), upstream(QUERIES * padded), probs(QUERIES * room),
                of_scores(QUERIES * room), result(QUERIES * padded);
            const auto pull_back = [&](int64_t first, int64_t rows, int64_t before, int64_t h) {
                const int64_t seen = before + rows, columns = up_to(seen, COLUMNS);
                const int64_t whole = up_to(rows, ROWS);
                load_rows<T>({tensors.query, first, h, rows, dim}, q.data(), padded, layout.scale);
                load_rows<T>({gradients.out, first, h, rows, dim}, upstream.data(), padded);
                multiply(q.data(), padded, 1, key_panels.data(), COLUMNS, dim * COLUMNS,
                         probs.data(), room, whole, columns, dim, false);
                multiply(upstream.data(), padded, 1, value_panels.data(), COLUMNS, dim * COLUMNS,
                         of_scores.data(), room, whole, columns, dim, false);
                for (int64_t r = 0; r < rows; ++r) {
                    const T* out = tensors.out.at(first + r, h, dim);
                    float delta = 0;
#pragma omp simd reduction(+ : delta)
                    for (int64_t d = 0; d < dim; ++d)
                        delta += upstream[r * padded + d] * wide(out[d]);
                    float *prob = &probs[r * room], *of_score = &of_scores[r * room];
                    const int64_t visible = before + r + 1;
                    const float total = norm[(first + r) * H + h];
#pragma omp simd
                    for (int64_t j = 0; j < visible; ++j) {
                        prob[j] = exponential(prob[j] - total);
                        of_score[j] = prob[j] * (of_score[j] - delta);
                    }
                    std::fill(prob + visible, prob + columns, 0.0f);
                    std::fill(of_score + visible, of_score + columns, 0.0f);
                }
                multiply(of_scores.data(), room, 1, keys.data(), padded, COLUMNS, result.data(),
                         padded, whole, padded, seen, false);
                store_rows<T>(result.data(), padded, {gradients.query, first, h, rows, dim},
                              layout.scale);
                // q holds the scale already
                multiply(of_scores.data(), 1, room, q.data(), padded, COLUMNS, of_keys.data(),
                         padded, up_to(seen, ROWS), padded, rows, true);
                multiply(probs.data(), 1, room, upstream.data(), padded, COLUMNS, of_values.data(),
                         padded, up_to(seen, ROWS), padded, rows, true);
            };
            const auto give = [&](int64_t first, int64_t length, int64_t from) {
                store_rows<T>(&of_keys[from * padded], padded,
                              {gradients.key, first, k, length, dim});
                store_rows<T>(&of_values[from * padded], padded,
                              {gradients.value, first, k, length, dim});
            };
            for_sequences(layout, pack, [&](int64_t first, int64_t length, int64_t prompt) {
                load_panels<T>({tensors.key, first, k, length, dim}, key_panels.data(), prompt);
                load_panels<T>({tensors.value, first, k, length, dim}, value_panels.data(), prompt);
                load_rows<T>({tensors.key, first, k, length, dim}, &keys[prompt * padded], padded);
                // the prompt's own gradients go on adding up over its completions
                std::fill(of_keys.begin() + prompt * padded, of_keys.end(), 0.0f);
                std::fill(of_values.begin() + prompt * padded, of_values.end(), 0.0f);
                for (int64_t h = k * group; h < (k + 1) * group; ++h) {
                    for (int64_t start = 0; start < length; start += QUERIES) {
                        pull_back(first + start, std::min(QUERIES, length - start), prompt + start,
                                  h);
                    }
                }
                if (prompt || !pack[1]) {
                    give(first, length, prompt);
                }
            });
            give(pack[0], pack[1], 0);
        }
    }
}

bool use_tiles() {
#if TILES
    return tiles_allowed();
#else
    return false;
#endif
}

template <typename T>
void attend(const Tensors<T>& tensors, float* norm, const Layout& layout, int64_t threads) {
#if TILES
    if constexpr (std::is_same_v<T, bfloat16>) {
        if (use_tiles()) {
            return tiled::forward(tensors, norm, layout, threads);
        }
    }
#endif
    forward(tensors, norm, layout, threads);
}

template <typename T>
void pull_back(const Tensors<T>& tensors, const Tensors<T>& gradients, const float* norm,
               const Layout& layout, int64_t threads) {
#if TILES
    if constexpr (std::is_same_v<T, bfloat16>) {
        if (use_tiles()) {
            return tiled::backward(tensors, gradients, norm, layout, threads);
        }
    }
#endif
    backward(tensors, gradients, norm, layout, threads);
}

}  // namespace

// Whether the bfloat16 kernels are those with tiles.
extern "C" int has_tiles() { return use_tiles(); }

#define FOR_TYPE(T, NAME)                                                                          \
    extern "C" void attend_##NAME(const Tensors<T>* tensors, float* norm, const Layout* layout,    \
                                  int64_t threads) {                                               \
        attend(*tensors, norm, *layout, threads);                                                  \
    }                                                                                              \
    extern "C" void attend_backward_##NAME(const Tensors<T>* tensors, const Tensors<T>* gradients, \
                                           const float* norm, const Layout* layout,                \
                                           int64_t threads) {                                      \
        pull_back(*tensors, *gradients, norm, *layout, threads);                                   \
    }

FOR_TYPE(float, f32)
FOR_TYPE(bfloat16, bf16)
