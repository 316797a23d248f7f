// Attention of packed groups and its backward pass in bfloat16 with the processor's matrix tiles.
//
// A unit of work is a key head of a pack with all of its query heads. Queries and keys are taken
// BLOCK at a time, and blocks above the diagonal are left out; the keys of a completion begin at a
// whole block after those of its prompt. Scores, softmax and all sums are float; probabilities and
// gradients of scores are rounded to bfloat16 for the products with them, as flash attention does.
//
// A product takes its first operand by rows, and its second as tiles of pairs (tiles.h). Both come
// from two steps in registers, `pair` and `transpose`:
//
//     X [32, 16] as second operand              pair(X)
//     X^T [32, 16], from X [16, 32]             transpose(X), in which a pair counts as one number
//     X^T [16, 32] as first operand             transpose(pair(X)), from X [32, 16]
//
// so that gradients of keys and values are summed transposed: of_keys^T = queries^T of_scores.

#pragma once

#include "attention.h"
#include "tiles.h"

#if TILES

#include <cstdlib>
#include <memory>

namespace tiled {

constexpr int64_t BLOCK = 32;            // queries or keys: two tiles, or the depth of one product
constexpr int64_t SQUARE = BLOCK * BLOCK;
constexpr int64_t ONE = TILE * DEPTH;    // numbers in a tile
constexpr int64_t SCORES = SQUARE + BLOCK;  // apart: at 4 KiB a row's blocks would share cache lines
constexpr int64_t CHUNK = 8;             // blocks of keys whose gradients of scores exist at a time
constexpr int64_t STACK = 8;             // blocks of queries (of several heads) that are summed at once

struct Free {
    void operator()(void* place) const { std::free(place); }
};
template <typename T>
using Buffer = std::unique_ptr<T[], Free>;

// Aligned as tiles want it: loads across cache lines take twice as long.
template <typename T>
Buffer<T> buffer(int64_t count) {
    const std::size_t bytes = up_to(count * sizeof(T) + 64, 4096);
    return Buffer<T>(static_cast<T*>(std::aligned_alloc(4096, bytes)));
}

// A product's first operand: tile (i, k) begins at data + i * TILE * row + k * step.
struct Left {
    const bfloat16* data;
    int64_t row, step;
};

// Its second: tile (k, j) begins at data + j * column + k * step.
struct Right {
    const bfloat16* data;
    int64_t column, step;
};

// C [rows, columns], in whole blocks; columns of a block are side by side, blocks `block` apart.
struct Result {
    float* data;
    int64_t row, block;
};

// C = A B over `steps` tiles, or added to it.
inline void multiply(Left a, Right b, Result c, int64_t rows, int64_t columns, int64_t steps,
                     bool add) {
    stores_done();
    for (int64_t j = 0; j < columns / BLOCK; ++j) {
        for (int64_t i = 0; i < rows; i += BLOCK) {
            float* place = c.data + i * c.row + j * c.block;
            float* below = place + TILE * c.row;
            const int64_t stride = c.row * sizeof(float), across = a.row * sizeof(bfloat16);
            if (add) {
                _tile_loadd(0, place, stride);
                _tile_loadd(1, place + TILE, stride);
                _tile_loadd(2, below, stride);
                _tile_loadd(3, below + TILE, stride);
            } else {
                _tile_zero(0);
                _tile_zero(1);
                _tile_zero(2);
                _tile_zero(3);
            }
            const bfloat16 *left = a.data + i * a.row, *right = b.data + 2 * j * b.column;
            for (int64_t k = 0; k < steps; ++k, left += a.step, right += b.step) {
                _tile_loadd(4, left, across);
                _tile_loadd(5, left + TILE * a.row, across);
                _tile_loadd(6, right, 64);
                _tile_loadd(7, right + b.column, 64);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
            _tile_stored(0, place, stride);
            _tile_stored(1, place + TILE, stride);
            _tile_stored(2, below, stride);
            _tile_stored(3, below + TILE, stride);
        }
    }
}

// 16 x 16 words of 32 bits (floats, or pairs), transposed; strides in words.
inline void transpose(const void* from, int64_t from_row, void* to, int64_t to_row) {
    __m512i a[16], b[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i)
        a[i] = _mm512_loadu_si512(static_cast<const uint32_t*>(from) + i * from_row);
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    // a[4 r + c] holds column c + 4 * lane of rows 4 r to 4 r + 3, in lanes of four words
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
        const __m512i even = _mm512_shuffle_i32x4(a[c], a[4 + c], 0x88);
        const __m512i odd = _mm512_shuffle_i32x4(a[c], a[4 + c], 0xdd);
        const __m512i later_even = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0x88);
        const __m512i later_odd = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0xdd);
        uint32_t* place = static_cast<uint32_t*>(to) + c * to_row;
        _mm512_storeu_si512(place, _mm512_shuffle_i32x4(even, later_even, 0x88));
        _mm512_storeu_si512(place + 4 * to_row, _mm512_shuffle_i32x4(odd, later_odd, 0x88));
        _mm512_storeu_si512(place + 8 * to_row, _mm512_shuffle_i32x4(even, later_even, 0xdd));
        _mm512_storeu_si512(place + 12 * to_row, _mm512_shuffle_i32x4(odd, later_odd, 0xdd));
    }
}

// Two rows of 16, [first | second], interleaved.
inline __m512i interleaved(__m512i both) {
    alignas(64) static constexpr uint16_t ORDER[32] = {
        0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return _mm512_permutexvar_epi16(_mm512_load_si512(ORDER), both);
}

// Rows [32, 16], `row` apart, as a tile of pairs.
inline void pair(const bfloat16* from, int64_t row, bfloat16* tile) {
    for (int p = 0; p < TILE; ++p, from += 2 * row, tile += DEPTH) {
        const auto* first = reinterpret_cast<const __m256i*>(from);
        const auto* second = reinterpret_cast<const __m256i*>(from + row);
        const __m512i low = _mm512_castsi256_si512(_mm256_loadu_si256(first));
        const __m512i both = _mm512_inserti64x4(low, _mm256_loadu_si256(second), 1);
        _mm512_store_si512(tile, interleaved(both));
    }
}

// [first | second], rounded.
inline __m512i narrow(__m512 first, __m512 second) {
    return (__m512i)_mm512_cvtne2ps_pbh(second, first);
}

// 2^x where the mask is set and 0 elsewhere, relative error 1e-7.
inline __m512 power_of_two(__mmask16 mask, __m512 x) {
    const __m512 r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512 p = _mm512_set1_ps(1.87757661e-3f);
    for (float coefficient : {8.98934025e-3f, 5.58263179e-2f, 2.40153617e-1f, 6.93153073e-1f,
                              9.99999925e-1f})
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(coefficient));
    return _mm512_maskz_scalef_ps(mask, p, x);
}

constexpr float LOG2E = 1.44269504f, LN2 = 0.693147181f;

// Blocks of keys that a token of any pack may attend to.
inline int64_t most_blocks(const Layout& layout) {
    int64_t most = 0;
    for (int64_t p = 0; p < layout.count; ++p) {
        for_sequences(layout, layout.packs + 4 * p, [&](int64_t, int64_t length, int64_t prompt) {
            most = std::max(most, up_to(prompt, BLOCK) + up_to(length, BLOCK));
        });
    }
    return most / BLOCK;
}

// Which keys of a block a query sees.
struct Seen {
    int64_t prompt, prompt_blocks;
    uint32_t mask(int64_t block, int64_t own) const {  // `own`: keys of its own sequence it sees
        const int64_t count = block < prompt_blocks ? prompt - block * BLOCK
                                                    : own - (block - prompt_blocks) * BLOCK;
        return count >= BLOCK ? ~0u : (1u << count) - 1;
    }
};

// One head of `count` tokens in whole blocks [.., width], filled up with zeros.
inline void copy(Heads<bfloat16> from, int64_t first, int64_t head, int64_t count,
                 int64_t dim, int64_t width, bfloat16* to) {
    for (int64_t i = 0; i < up_to(count, BLOCK); ++i, to += width) {
        const int64_t kept = i < count ? dim : 0;
        if (kept) std::copy_n(from.at(first + i, head, dim), dim, to);
        std::fill(to + kept, to + width, bfloat16{0});
    }
}

// A block [32, width] by columns: [width, 32] as first operand.
inline void turn(const bfloat16* from, int64_t width, bfloat16* to) {
    alignas(64) bfloat16 tile[ONE];
    for (int64_t d = 0; d < width; d += TILE) {
        pair(from + d, width, tile);
        transpose(tile, TILE, to + d * BLOCK, TILE);
    }
}

// A block [32, width] as the second operand of a product with its transpose.
inline void across(const bfloat16* from, int64_t width, bfloat16* to) {
    for (int64_t i = 0; i < BLOCK; i += TILE)
        for (int64_t d = 0; d < width; d += DEPTH, to += ONE)
            transpose(from + i * width + d, width / 2, to, TILE);
}

// A block [32, width] as second operand.
inline void along(const bfloat16* from, int64_t width, bfloat16* to) {
    for (int64_t d = 0; d < width; d += TILE, to += ONE) pair(from + d, width, to);
}

// Numbers of one row, times a factor, rounded.
inline void give(const float* from, float factor, int64_t dim, bfloat16* to) {
    for (int64_t d = 0; d < dim; d += TILE) {
        const __mmask16 mask = dim - d >= TILE ? 0xffff : (1u << (dim - d)) - 1;
        const __m512 x = _mm512_mul_ps(_mm512_loadu_ps(from + d), _mm512_set1_ps(factor));
        _mm256_mask_storeu_epi16(to + d, mask, (__m256i)_mm512_cvtneps_pbh(x));
    }
}

// The highest score of a row that its query sees, times the factor.
inline float most(const float* row, float factor, int64_t blocks, Seen seen, int64_t own) {
    const __m512 times = _mm512_set1_ps(factor), none = _mm512_set1_ps(-INFINITY);
    __m512 low = none, high = none;
    for (int64_t c = 0; c < blocks; ++c, row += SCORES) {
        const uint32_t mask = seen.mask(c, own);
        const __m512 first = _mm512_mul_ps(_mm512_load_ps(row), times);
        const __m512 second = _mm512_mul_ps(_mm512_load_ps(row + TILE), times);
        low = _mm512_mask_max_ps(low, mask, low, first);
        high = _mm512_mask_max_ps(high, mask >> TILE, high, second);
    }
    return _mm512_reduce_max_ps(_mm512_max_ps(low, high));
}

// 2^(score * factor - highest) of a row, rounded to bfloat16; their sum before that.
inline float exponentials(const float* row, float factor, float highest, int64_t blocks, Seen seen,
                          int64_t own, bfloat16* to) {
    const __m512 times = _mm512_set1_ps(factor), less = _mm512_set1_ps(highest);
    __m512 low = _mm512_setzero_ps(), high = low;
    for (int64_t c = 0; c < blocks; ++c, row += SCORES, to += SQUARE) {
        const uint32_t mask = seen.mask(c, own);
        const __m512 first = power_of_two(mask, _mm512_fmsub_ps(_mm512_load_ps(row), times, less));
        const __m512 second = power_of_two(
            mask >> TILE, _mm512_fmsub_ps(_mm512_load_ps(row + TILE), times, less));
        low = _mm512_add_ps(low, first);
        high = _mm512_add_ps(high, second);
        _mm512_store_si512(to, narrow(first, second));
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(low, high));
}

inline void forward(const Tensors<bfloat16>& tensors, float* norm, const Layout& layout) {
    const int64_t dim = layout.dim, width = up_to(dim, BLOCK), steps = width / DEPTH;
    const int64_t group = layout.group(), laid = BLOCK * width;
    const float factor = layout.scale * LOG2E;
    const int64_t room = most_blocks(layout);
#pragma omp parallel num_threads(layout.threads)
    {
        const TileRegisters held;
        const auto rows = buffer<bfloat16>(laid), keys = buffer<bfloat16>(room * laid),
                   values = buffer<bfloat16>(room * laid), probs = buffer<bfloat16>(room * SQUARE);
        const auto scores = buffer<float>(room * SCORES), result = buffer<float>(laid);
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t p = 0; p < layout.count; ++p) {
            for (int64_t k = 0; k < layout.key_heads; ++k) {
                const int64_t* pack = layout.packs + 4 * p;
                for_sequences(layout, pack, [&](int64_t first, int64_t length, int64_t prompt) {
                    const Seen seen{prompt, up_to(prompt, BLOCK) / BLOCK};
                    for (int64_t start = 0; start < length; start += BLOCK) {
                        const int64_t count = std::min(BLOCK, length - start);
                        const int64_t last = seen.prompt_blocks + start / BLOCK, blocks = last + 1;
                        copy(tensors.key, first + start, k, count, dim, width, rows.get());
                        across(rows.get(), width, &keys[last * laid]);
                        copy(tensors.value, first + start, k, count, dim, width, rows.get());
                        along(rows.get(), width, &values[last * laid]);
                        for (int64_t h = k * group; h < (k + 1) * group; ++h) {
                            copy(tensors.query, first + start, h, count, dim, width, rows.get());
                            multiply({rows.get(), width, DEPTH}, {keys.get(), steps * ONE, ONE},
                                     {scores.get(), BLOCK, SCORES}, BLOCK, blocks * BLOCK, steps,
                                     false);
                            float totals[BLOCK];
                            for (int64_t r = 0; r < count; ++r) {
                                const float* row = &scores[r * BLOCK];
                                const float highest =
                                    most(row, factor, blocks, seen, start + r + 1);
                                totals[r] = exponentials(row, factor, highest, blocks, seen,
                                                         start + r + 1, &probs[r * BLOCK]);
                                norm[(first + start + r) * layout.heads + h] =
                                    highest * LN2 + std::log(totals[r]);
                            }
                            multiply({probs.get(), BLOCK, SQUARE}, {values.get(), ONE, 2 * steps * ONE},
                                     {result.get(), width, BLOCK}, BLOCK, width, blocks, false);
                            for (int64_t r = 0; r < count; ++r)
                                give(&result[r * width], 1 / totals[r], dim,
                                     tensors.out.at(first + start + r, h, dim));
                        }
                    }
                });
            }
        }
    }
}

// The gradients of keys or values of a block, summed as [width, 32], to rows of a head.
inline void give_turned(const float* from, float factor, int64_t count, int64_t dim,
                        Heads<bfloat16> to, int64_t first, int64_t head) {
    alignas(64) float rows[TILE * TILE];
    for (int64_t i = 0; i < count; i += TILE) {
        for (int64_t d = 0; d < dim; d += TILE) {
            transpose(from + d * BLOCK + i, BLOCK, rows, TILE);
            for (int64_t r = 0; r < std::min(TILE, count - i); ++r)
                give(rows + r * TILE, factor, std::min(TILE, dim - d),
                     to.at(first + i + r, head, dim) + d);
        }
    }
}

// The sum of of_out * out of a row: what the softmax takes from every gradient of a probability.
inline float dot(const bfloat16* a, const bfloat16* b, int64_t count) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t d = 0; d < count; ++d) sum += wide(a[d]) * wide(b[d]);
    return sum;
}

// For two rows of a block of keys: probabilities and gradients of scores as pairs, for sums over
// queries, and the latter as they lie too, for sums over keys. `next`: to the pairs of 16 more keys.
struct Pulled {
    bfloat16 *probs, *of_scores, *lying;
    int64_t next;
};

inline void pull_back(const float* scores, const float* of_probs, float factor, const float* norm,
                      const float* delta, const uint32_t* masks, Pulled to) {
    const __m512 times = _mm512_set1_ps(factor);
    __m512 of_scores[2][2];
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
        __m512 probs[2];
#pragma GCC unroll 2
        for (int r = 0; r < 2; ++r) {
            const int64_t place = r * BLOCK + half * TILE;
            const __mmask16 mask = masks[r] >> half * TILE;
            const __m512 score = _mm512_load_ps(scores + place);
            const __m512 of_prob = _mm512_load_ps(of_probs + place);
            probs[r] = power_of_two(mask, _mm512_fmsub_ps(score, times, _mm512_set1_ps(norm[r])));
            of_scores[r][half] = _mm512_maskz_mul_ps(
                mask, probs[r], _mm512_sub_ps(of_prob, _mm512_set1_ps(delta[r])));
        }
        _mm512_store_si512(to.probs + half * to.next, interleaved(narrow(probs[0], probs[1])));
        _mm512_store_si512(to.of_scores + half * to.next,
                           interleaved(narrow(of_scores[0][half], of_scores[1][half])));
    }
    for (int r = 0; r < 2; ++r)
        _mm512_store_si512(to.lying + r * BLOCK, narrow(of_scores[r][0], of_scores[r][1]));
}

// What a thread has of a unit of work in the backward pass. Queries are taken `height` blocks at a
// time, each for all heads of the group (together `stack` blocks, the earlier tokens first), so
// that gradients of keys and values are read and written once for all of them.
struct Backward {
    const Tensors<bfloat16>&tensors, &gradients;
    const float* norms;
    const Layout& layout;
    const int64_t room;  // blocks of keys
    const int64_t dim = layout.dim, width = up_to(dim, BLOCK), steps = width / DEPTH,
                  group = layout.group(), laid = BLOCK * width,
                  height = std::max(int64_t{1}, STACK / group), stack = height * group;
    // of keys and values: as second operands, and their gradients, summed as [width, 32]
    const Buffer<bfloat16> keys_across = buffer<bfloat16>(room * laid),
                           values_across = buffer<bfloat16>(room * laid),
                           keys_along = buffer<bfloat16>(room * laid);
    const Buffer<float> of_keys = buffer<float>(room * laid),
                        of_values = buffer<float>(room * laid);
    // of a stack of queries
    const Buffer<bfloat16> queries = buffer<bfloat16>(stack * laid),
                           upstream = buffer<bfloat16>(stack * laid),
                           queries_turned = buffer<bfloat16>(stack * laid),
                           upstream_turned = buffer<bfloat16>(stack * laid);
    const Buffer<float> of_queries = buffer<float>(stack * laid),
                        norm = buffer<float>(stack * BLOCK), delta = buffer<float>(stack * BLOCK);
    // of a chunk of keys
    const Buffer<bfloat16> probs = buffer<bfloat16>(CHUNK * stack * SQUARE),
                           of_scores = buffer<bfloat16>(CHUNK * stack * SQUARE),
                           lying = buffer<bfloat16>(CHUNK * SQUARE);
    const Buffer<float> scores = buffer<float>(CHUNK * SCORES),
                        of_probs = buffer<float>(CHUNK * SCORES);

    void load_keys(int64_t first, int64_t length, int64_t head, int64_t block) const {
        for (int64_t start = 0; start < length; start += BLOCK, ++block) {
            const int64_t count = std::min(BLOCK, length - start), place = block * laid;
            copy(tensors.key, first + start, head, count, dim, width, queries.get());
            across(queries.get(), width, &keys_across[place]);
            along(queries.get(), width, &keys_along[place]);
            copy(tensors.value, first + start, head, count, dim, width, queries.get());
            across(queries.get(), width, &values_across[place]);
            std::fill_n(&of_keys[place], laid, 0.0f);
            std::fill_n(&of_values[place], laid, 0.0f);
        }
    }

    void load_queries(int64_t first, int64_t count, int64_t head, int64_t index) const {
        const int64_t place = index * laid, row = index * BLOCK;
        copy(tensors.query, first, head, count, dim, width, &queries[place]);
        copy(gradients.out, first, head, count, dim, width, &upstream[place]);
        turn(&queries[place], width, &queries_turned[place]);
        turn(&upstream[place], width, &upstream_turned[place]);
        for (int64_t r = 0; r < BLOCK; ++r) {
            const bool real = r < count;  // what fills up has no gradient, whatever its norm
            norm[row + r] = real ? norms[(first + r) * layout.heads + head] * LOG2E : 0;
            delta[row + r] = real ? dot(&upstream[place + r * width],
                                        tensors.out.at(first + r, head, dim), dim)
                                  : 0;
        }
    }

    // Gradients of scores of a block of queries; `own`: the number of its first token.
    void pull_back_block(int64_t index, int64_t chunk, int64_t blocks, Seen seen,
                         int64_t own) const {
        const int64_t place = index * laid, from = chunk * laid, row = index * BLOCK;
        multiply({&queries[place], width, DEPTH}, {&keys_across[from], steps * ONE, ONE},
                 {scores.get(), BLOCK, SCORES}, BLOCK, blocks * BLOCK, steps, false);
        multiply({&upstream[place], width, DEPTH}, {&values_across[from], steps * ONE, ONE},
                 {of_probs.get(), BLOCK, SCORES}, BLOCK, blocks * BLOCK, steps, false);
        for (int64_t c = 0; c < blocks; ++c) {
            for (int64_t r = 0; r < BLOCK; r += 2) {
                const uint32_t masks[2] = {seen.mask(chunk + c, own + r + 1),
                                           seen.mask(chunk + c, own + r + 2)};
                const int64_t at = c * SCORES + r * BLOCK;
                const int64_t pairs = (2 * c * stack + index) * ONE + r / 2 * DEPTH;
                pull_back(&scores[at], &of_probs[at], layout.scale * LOG2E, &norm[row + r],
                          &delta[row + r], masks,
                          {&probs[pairs], &of_scores[pairs], &lying[c * SQUARE + r * BLOCK],
                           stack * ONE});
            }
        }
        multiply({lying.get(), BLOCK, SQUARE}, {&keys_along[from], ONE, 2 * steps * ONE},
                 {&of_queries[place], width, BLOCK}, BLOCK, width, blocks, chunk > 0);
    }

    // Gradients of the keys and values of a block, from `first` of the `last` blocks of queries.
    void add_up(int64_t block, int64_t chunk, int64_t first, int64_t last) const {
        const int64_t place = block * laid, pairs = (2 * (block - chunk) * stack + first) * ONE;
        multiply({&queries_turned[first * laid], BLOCK, laid}, {&of_scores[pairs], stack * ONE, ONE},
                 {&of_keys[place], BLOCK, 0}, width, BLOCK, last - first, true);
        multiply({&upstream_turned[first * laid], BLOCK, laid}, {&probs[pairs], stack * ONE, ONE},
                 {&of_values[place], BLOCK, 0}, width, BLOCK, last - first, true);
    }

    void give_keys(int64_t first, int64_t length, int64_t head, int64_t block) const {
        for (int64_t start = 0; start < length; start += BLOCK, ++block) {
            const int64_t count = std::min(BLOCK, length - start), place = block * laid;
            give_turned(&of_keys[place], layout.scale, count, dim, gradients.key, first + start,
                        head);
            give_turned(&of_values[place], 1.0f, count, dim, gradients.value, first + start, head);
        }
    }

    void stack_of_queries(int64_t first, int64_t length, int64_t start, int64_t head,
                          Seen seen) const {
        const int64_t begin = start / BLOCK;  // number of the first block in its sequence
        const int64_t many = std::min(height, up_to(length - start, BLOCK) / BLOCK);
        const int64_t all = many * group, end = seen.prompt_blocks + begin + many;
        for (int64_t i = 0; i < all; ++i) {
            const int64_t own = start + i / group * BLOCK;
            load_queries(first + own, std::min(BLOCK, length - own), head * group + i % group, i);
        }
        for (int64_t chunk = 0; chunk < end; chunk += CHUNK) {
            const int64_t stop = std::min(chunk + CHUNK, end);
            for (int64_t i = 0; i < all; ++i) {
                const int64_t own = begin + i / group;
                const int64_t blocks = std::min(stop, seen.prompt_blocks + own + 1) - chunk;
                if (blocks > 0) pull_back_block(i, chunk, blocks, seen, own * BLOCK);
            }
            for (int64_t block = chunk; block < stop; ++block) {
                const int64_t later = std::max(int64_t{0}, block - seen.prompt_blocks - begin);
                add_up(block, chunk, later * group, all);
            }
        }
        for (int64_t i = 0; i < all; ++i) {
            const int64_t own = start + i / group * BLOCK;
            for (int64_t r = 0; r < std::min(BLOCK, length - own); ++r)
                give(&of_queries[i * laid + r * width], layout.scale, dim,
                     gradients.query.at(first + own + r, head * group + i % group, dim));
        }
    }

    void unit(const int64_t* pack, int64_t head) const {
        for_sequences(layout, pack, [&](int64_t first, int64_t length, int64_t prompt) {
            const Seen seen{prompt, up_to(prompt, BLOCK) / BLOCK};
            load_keys(first, length, head, seen.prompt_blocks);
            for (int64_t start = 0; start < length; start += height * BLOCK)
                stack_of_queries(first, length, start, head, seen);
            // the prompt's own gradients go on adding up over its completions
            if (prompt || !pack[1]) give_keys(first, length, head, seen.prompt_blocks);
        });
        give_keys(pack[0], pack[1], head, 0);
    }
};

inline void backward(const Tensors<bfloat16>& tensors, const Tensors<bfloat16>& gradients,
                     const float* norm, const Layout& layout) {
    const int64_t room = most_blocks(layout);
#pragma omp parallel num_threads(layout.threads)
    {
        const TileRegisters held;
        const Backward thread{tensors, gradients, norm, layout, room};
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t p = 0; p < layout.count; ++p)
            for (int64_t k = 0; k < layout.key_heads; ++k) thread.unit(layout.packs + 4 * p, k);
    }
}

}  // namespace tiled

#endif
