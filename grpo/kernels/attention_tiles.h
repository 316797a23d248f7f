// Attention of packed groups and its backward pass in bfloat16 with the processor's matrix tiles.
//
// A unit of work is a key head of a pack with all of its query heads. Queries and keys are taken
// BLOCK at a time, and blocks above the diagonal are left out; the keys of a completion begin at a
// whole block after those of its prompt. Scores, softmax and all sums are float; probabilities and
// gradients of scores are rounded to bfloat16 for the products with them, as flash attention does.
//
// Gradients of keys and values are summed transposed, of_keys^T = queries^T of_scores: there are
// fewer queries to transpose for that than scores.

#pragma once

#include "tile_blocks.h"

#if TILES

namespace tiled {

// Scores lie in blocks [32, 32], a row's blocks not 4 KiB apart: they would share cache lines.
constexpr int64_t SCORES = SQUARE + BLOCK;
constexpr int64_t CHUNK = 8;  // blocks of keys whose gradients of scores exist at a time
constexpr int64_t STACK = 8;  // blocks of queries, of several heads, that are summed at once

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
        const int64_t count =
            block < prompt_blocks ? prompt - block * BLOCK : own - (block - prompt_blocks) * BLOCK;
        return _bzhi_u32(~0u, static_cast<uint32_t>(std::min(count, BLOCK)));
    }
};

// The highest score of a row that its query sees, times the factor.
inline float most(const float* row, float factor, int64_t blocks, Seen seen, int64_t own) {
    const __m512 times = _mm512_set1_ps(factor), none = _mm512_set1_ps(-INFINITY);
    __m512 low = none, high = none;
    for (int64_t c = 0; c < blocks; ++c, row += SCORES) {
        const uint32_t mask = seen.mask(c, own);
        const __m512 first = _mm512_mul_ps(_mm512_load_ps(row), times);
        const __m512 second = _mm512_mul_ps(_mm512_load_ps(row + TILE), times);
        low = _mm512_mask_max_ps(low, half_of(mask, 0), low, first);
        high = _mm512_mask_max_ps(high, half_of(mask, 1), high, second);
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
        const __m512 first =
            power_of_two(half_of(mask, 0), _mm512_fmsub_ps(_mm512_load_ps(row), times, less));
        const __m512 second = power_of_two(
            half_of(mask, 1), _mm512_fmsub_ps(_mm512_load_ps(row + TILE), times, less));
        low = _mm512_add_ps(low, first);
        high = _mm512_add_ps(high, second);
        _mm512_store_si512(to, narrow(first, second));
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(low, high));
}

// What a thread has of a unit of work in the forward pass.
struct Forward {
    const Tensors<bfloat16>& tensors;
    float* norm;
    const Layout& layout;
    const int64_t room;  // blocks of keys
    const int64_t dim = layout.dim, width = up_to(dim, BLOCK), steps = width / DEPTH,
                  group = layout.group(), laid = BLOCK * width;
    const Buffer<bfloat16> rows = buffer<bfloat16>(laid), keys = buffer<bfloat16>(room * laid),
                           values = buffer<bfloat16>(room * laid),
                           probs = buffer<bfloat16>(room * SQUARE);
    const Buffer<float> scores = buffer<float>(room * SCORES), result = buffer<float>(laid);

    void load_keys(int64_t first, int64_t count, int64_t head, int64_t block) const {
        copy(tensors.key, first, head, count, dim, width, rows.get());
        across(rows.get(), width, &keys[block * laid]);
        copy(tensors.value, first, head, count, dim, width, rows.get());
        along(rows.get(), width, &values[block * laid]);
    }

    // A block of queries from token `first`, the `own`-th of its sequence.
    void attend(int64_t first, int64_t count, int64_t head, int64_t blocks, Seen seen,
                int64_t own) const {
        copy(tensors.query, first, head, count, dim, width, rows.get());
        multiply({rows.get(), width, DEPTH}, {keys.get(), steps * ONE, ONE},
                 {scores.get(), BLOCK, SCORES}, BLOCK, blocks * BLOCK, steps, false);
        // one after the other: a row's exponentials would wait for its highest score
        const float factor = layout.scale * LOG2E;
        float highest[BLOCK], totals[BLOCK];
        for (int64_t r = 0; r < count; ++r) {
            highest[r] = most(&scores[r * BLOCK], factor, blocks, seen, own + r + 1);
        }
        for (int64_t r = 0; r < count; ++r) {
            totals[r] = exponentials(&scores[r * BLOCK], factor, highest[r], blocks, seen,
                                     own + r + 1, &probs[r * BLOCK]);
        }
        for (int64_t r = 0; r < count; ++r) {
            norm[(first + r) * layout.heads + head] = highest[r] * LN2 + std::log(totals[r]);
        }
        multiply({probs.get(), BLOCK, SQUARE}, {values.get(), ONE, 2 * steps * ONE},
                 {result.get(), width, BLOCK}, BLOCK, width, blocks, false);
        for (int64_t r = 0; r < count; ++r) {
            give(&result[r * width], 1 / totals[r], dim, tensors.out.at(first + r, head, dim));
        }
    }

    void unit(const int64_t* pack, int64_t key_head) const {
        for_sequences(layout, pack, [&](int64_t first, int64_t length, int64_t prompt) {
            const Seen seen{prompt, up_to(prompt, BLOCK) / BLOCK};
            for (int64_t start = 0; start < length; start += BLOCK) {
                const int64_t count = std::min(BLOCK, length - start);
                const int64_t last = seen.prompt_blocks + start / BLOCK;
                load_keys(first + start, count, key_head, last);
                for (int64_t h = key_head * group; h < (key_head + 1) * group; ++h) {
                    attend(first + start, count, h, last + 1, seen, start);
                }
            }
        });
    }
};

// All units of work, by threads with memory of their own.
template <typename Thread, typename Norm, typename... Given>
void run(const Layout& layout, int64_t threads, Norm* norm, const Given&... tensors) {
    const int64_t room = most_blocks(layout);
#pragma omp parallel num_threads(threads)
    {
        const TileRegisters held;
        const Thread thread{tensors..., norm, layout, room};
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t p = 0; p < layout.count; ++p) {
            for (int64_t k = 0; k < layout.key_heads; ++k) {
                thread.unit(layout.packs + 4 * p, k);
            }
        }
    }
}

inline void forward(const Tensors<bfloat16>& tensors, float* norm, const Layout& layout,
                    int64_t threads) {
    run<Forward>(layout, threads, norm, tensors);
}

// Where two rows of a block of keys go: probabilities and gradients of scores as pairs, for sums
// over queries, and the latter as they lie too, for sums over keys.
struct Pulled {
    bfloat16 *probs, *of_scores, *lying;
    int64_t next;  // to the pairs of 16 more keys
};

// With P = 2^(score * factor - norm), and delta the sum of of_out * out of a query, the gradient of
// a score is P (of_prob - delta).
inline void pull_back(const float* scores, const float* of_probs, float factor, const float* norm,
                      const float* delta, const uint32_t* masks, Pulled to) {
    const __m512 times = _mm512_set1_ps(factor);
    __m512 of_scores[2][2];
#pragma GCC unroll 2
    for (int64_t half = 0; half < 2; ++half) {
        __m512 probs[2];
#pragma GCC unroll 2
        for (int64_t r = 0; r < 2; ++r) {
            const int64_t place = r * BLOCK + half * TILE;
            const __mmask16 mask = half_of(masks[r], half);
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
    for (int64_t r = 0; r < 2; ++r) {
        _mm512_store_si512(to.lying + r * BLOCK, narrow(of_scores[r][0], of_scores[r][1]));
    }
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
            delta[row + r] =
                real ? dot(&upstream[place + r * width], tensors.out.at(first + r, head, dim), dim)
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
        const int64_t depth = last - first;
        multiply({&queries_turned[first * laid], BLOCK, laid},
                 {&of_scores[pairs], stack * ONE, ONE}, {&of_keys[place], BLOCK, 0}, width, BLOCK,
                 depth, true);
        multiply({&upstream_turned[first * laid], BLOCK, laid}, {&probs[pairs], stack * ONE, ONE},
                 {&of_values[place], BLOCK, 0}, width, BLOCK, depth, true);
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
                if (blocks > 0) {
                    pull_back_block(i, chunk, blocks, seen, own * BLOCK);
                }
            }
            for (int64_t block = chunk; block < stop; ++block) {
                const int64_t later = std::max(int64_t{0}, block - seen.prompt_blocks - begin);
                add_up(block, chunk, later * group, all);
            }
        }
        for (int64_t i = 0; i < all; ++i) {
            const int64_t own = start + i / group * BLOCK;
            for (int64_t r = 0; r < std::min(BLOCK, length - own); ++r) {
                give(&of_queries[i * laid + r * width], layout.scale, dim,
                     gradients.query.at(first + own + r, head * group + i % group, dim));
            }
        }
    }

    void unit(const int64_t* pack, int64_t head) const {
        for_sequences(layout, pack, [&](int64_t first, int64_t length, int64_t prompt) {
            const Seen seen{prompt, up_to(prompt, BLOCK) / BLOCK};
            load_keys(first, length, head, seen.prompt_blocks);
            for (int64_t start = 0; start < length; start += height * BLOCK) {
                stack_of_queries(first, length, start, head, seen);
            }
            // the prompt's own gradients go on adding up over its completions
            if (prompt || !pack[1]) {
                give_keys(first, length, head, seen.prompt_blocks);
            }
        });
        give_keys(pack[0], pack[1], head, 0);
    }
};

inline void backward(const Tensors<bfloat16>& tensors, const Tensors<bfloat16>& gradients,
                     const float* norm, const Layout& layout, int64_t threads) {
    run<Backward>(layout, threads, norm, tensors, gradients);
}

}  // namespace tiled

#endif
