// Blocks of heads in bfloat16 for products with the processor's matrix tiles (attention_tiles.h).
//
// A product takes its first operand by rows, and its second as tiles of pairs (tiles.h). Both come
// from two steps in registers, `pair` and `transpose`:
//
//     X [32, 16] as second operand              pair(X)
//     X^T [32, 16], from X [16, 32]             transpose(X), in which a pair counts as one number
//     X^T [16, 32] as first operand             transpose(pair(X)), from X [32, 16]

#pragma once

#include "attention.h"
#include "tiles.h"

#if TILES

#include <cstdlib>
#include <memory>

namespace tiled {

constexpr int64_t BLOCK = 32;  // rows or columns: two tiles, or the depth of one product
constexpr int64_t SQUARE = BLOCK * BLOCK;
constexpr int64_t ONE = TILE * DEPTH;  // numbers in a tile

struct Free {
    void operator()(void* place) const { std::free(place); }
};
template <typename T>
using Buffer = std::unique_ptr<T[], Free>;

// Aligned as tiles want it: loads across cache lines take twice as long.
template <typename T>
Buffer<T> buffer(int64_t count) {
    const std::size_t bytes = up_to(count * sizeof(T) + 64, 64);
    return Buffer<T>(static_cast<T*>(std::aligned_alloc(64, bytes)));
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
    for (int64_t j = 0; j < columns / BLOCK; ++j) {
        const TilePair right{b.data + 2 * j * b.column, DEPTH, b.column, b.step};
        for (int64_t i = 0; i < rows; i += BLOCK) {
            const TilePair left{a.data + i * a.row, a.row, TILE * a.row, a.step};
            multiply_block(left, right, steps, c.data + i * c.row + j * c.block, c.row, add,
                           [](int64_t) {});
        }
    }
}

// 16 x 16 words of 32 bits (floats, or pairs), transposed; strides in words.
inline void transpose(const void* from, int64_t from_row, void* to, int64_t to_row) {
    __m512i a[16], b[16];
#pragma GCC unroll 16
    for (int64_t i = 0; i < 16; ++i) {
        a[i] = _mm512_loadu_si512(static_cast<const uint32_t*>(from) + i * from_row);
    }
#pragma GCC unroll 8
    for (int64_t i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
#pragma GCC unroll 4
    for (int64_t i = 0; i < 16; i += 4) {
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    // a[4 r + c] holds column c + 4 * lane of rows 4 r to 4 r + 3, in lanes of four words
#pragma GCC unroll 4
    for (int64_t c = 0; c < 4; ++c) {
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
    alignas(64) static constexpr uint16_t ORDER[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                       21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                       11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return _mm512_permutexvar_epi16(_mm512_load_si512(ORDER), both);
}

// Rows [32, 16], `row` apart, as a tile of pairs.
inline void pair(const bfloat16* from, int64_t row, bfloat16* tile) {
    for (int64_t p = 0; p < TILE; ++p, from += 2 * row, tile += DEPTH) {
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

// Sixteen of a mask's 32 bits: the first (`which` 0) or the last (1).
inline __mmask16 half_of(uint32_t mask, int64_t which) {
    return static_cast<__mmask16>(mask >> which * TILE);
}

// 2^x where the mask is set and 0 elsewhere, relative error 1e-7.
inline __m512 power_of_two(__mmask16 mask, __m512 x) {
    const __m512 r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512 p = _mm512_set1_ps(1.87757661e-3f);
    for (float coefficient :
         {8.98934025e-3f, 5.58263179e-2f, 2.40153617e-1f, 6.93153073e-1f, 9.99999925e-1f}) {
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(coefficient));
    }
    return _mm512_maskz_scalef_ps(mask, p, x);
}

// 32 numbers of a row of `count`, from the d-th; 0 beyond its end.
inline __m512i row_part(const bfloat16* row, int64_t d, int64_t count) {
    return _mm512_maskz_loadu_epi16(count - d >= DEPTH ? ~0u : (1u << (count - d)) - 1, row + d);
}

// One head of `count` tokens in whole blocks [.., width], filled up with zeros.
inline void copy(Heads<bfloat16> from, int64_t first, int64_t head, int64_t count, int64_t dim,
                 int64_t width, bfloat16* to) {
    for (int64_t i = 0; i < count; ++i) {
        for (int64_t d = 0; d < width; d += DEPTH, to += DEPTH) {
            _mm512_store_si512(to, row_part(from.at(first + i, head, dim), d, dim));
        }
    }
    std::fill_n(to, (up_to(count, BLOCK) - count) * width, bfloat16{0});
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
    for (int64_t i = 0; i < BLOCK; i += TILE) {
        for (int64_t d = 0; d < width; d += DEPTH, to += ONE) {
            transpose(from + i * width + d, width / 2, to, TILE);
        }
    }
}

// A block [32, width] as second operand.
inline void along(const bfloat16* from, int64_t width, bfloat16* to) {
    for (int64_t d = 0; d < width; d += TILE, to += ONE) {
        pair(from + d, width, to);
    }
}

// Numbers of one row, times a factor, rounded.
inline void give(const float* from, float factor, int64_t dim, bfloat16* to) {
    for (int64_t d = 0; d < dim; d += TILE) {
        const __mmask16 mask = half_of(dim - d >= TILE ? 0xffff : (1u << (dim - d)) - 1, 0);
        const __m512 x = _mm512_mul_ps(_mm512_loadu_ps(from + d), _mm512_set1_ps(factor));
        _mm256_mask_storeu_epi16(to + d, mask, (__m256i)_mm512_cvtneps_pbh(x));
    }
}

// The gradients of keys or values of a block, summed as [width, 32], to rows of a head.
inline void give_turned(const float* from, float factor, int64_t count, int64_t dim,
                        Heads<bfloat16> to, int64_t first, int64_t head) {
    alignas(64) float rows[TILE * TILE];
    for (int64_t i = 0; i < count; i += TILE) {
        for (int64_t d = 0; d < dim; d += TILE) {
            transpose(from + d * BLOCK + i, BLOCK, rows, TILE);
            for (int64_t r = 0; r < std::min(TILE, count - i); ++r) {
                give(rows + r * TILE, factor, std::min(TILE, dim - d),
                     to.at(first + i + r, head, dim) + d);
            }
        }
    }
}

// The sum of the products of two rows.
inline float dot(const bfloat16* a, const bfloat16* b, int64_t count) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t d = 0; d < count; d += DEPTH) {
        sum =
            _mm512_dpbf16_ps(sum, (__m512bh)row_part(a, d, count), (__m512bh)row_part(b, d, count));
    }
    return _mm512_reduce_add_ps(sum);
}

}  // namespace tiled

#endif
