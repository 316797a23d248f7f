// Products of rows in bfloat16 with the weights of linear layers, on matrix tiles (matmul.py).
//
// Weights [N, K] lie in panels of 32 outputs: [N / 32][K / 32] pieces of two tiles, in the order in
// which they are read. Sums are in float, and what is stored is rounded once.

#include "layers.h"
#include "tiles.h"

#if TILES

#include <vector>

namespace {

constexpr int64_t PANEL = 2 * TILE;              // outputs of a panel, and rows multiplied at once
constexpr int64_t PIECE = PANEL * DEPTH;         // numbers of a panel for one product of tiles
constexpr int64_t ROWS_KEPT = int64_t{3} << 18;  // bytes of rows that stay in the cache meanwhile
constexpr int64_t LINE = 64;

// What becomes of a sum: y + bias, y + bias + term, or silu(y) of a panel's first half times its
// second half.
enum Ending : int64_t { PLAIN, SUM, GATED };

// A thread's own memory for `count` numbers, used again and again: fresh memory is slow.
bfloat16* kept(int64_t count) {
    struct alignas(LINE) Line {
        char bytes[LINE];
    };
    thread_local std::vector<Line> memory;
    const size_t lines = (count * sizeof(bfloat16) + LINE - 1) / LINE;
    if (memory.size() < lines) {
        memory.resize(lines);
    }
    return reinterpret_cast<bfloat16*>(memory.data());
}

struct Norm {
    const bfloat16* weight;  // [K], or null: rows are taken as they are
    float epsilon;
};

// Rows [count, K], K whole lines, as tiles [rows / 16][K / 32][16][32]; filled up with zeros.
void lay_rows(const bfloat16* x, int64_t count, int64_t size, Norm norm, bfloat16* tiles) {
    for (int64_t row = 0; row < up_to(count, TILE); ++row) {
        const bfloat16* from = x + row * size;
        bfloat16* to = tiles + row / TILE * TILE * size + row % TILE * DEPTH;
        const bool has_norm = norm.weight && row < count;
        const float scale = has_norm ? norm_scale(from, size, norm.epsilon) : 1.0f;
        for (int64_t k = 0; k < size; k += DEPTH, to += TILE * DEPTH) {
            for (int64_t half = 0; half < DEPTH; half += LANES) {
                const int64_t at = k + half;
                Floats values = row < count ? load(from + at) : Floats{};
                if (has_norm) {
                    values = normed(values, scale, load(norm.weight + at));
                }
                store(to + half, values);
            }
        }
    }
}

// sums [32][32] = 32 rows times a panel. Meanwhile `ahead` bytes from `next` come into the cache.
void block(const bfloat16* rows, const bfloat16* panel, int64_t size, float* sums, const char* next,
           int64_t ahead) {
    const int64_t steps = size / DEPTH, each = ahead / steps;
    const TilePair left{rows, DEPTH, TILE * size, TILE * DEPTH},
        right{panel, DEPTH, PIECE / 2, PIECE};
    multiply_block(left, right, steps, sums, PANEL, false, [=](int64_t k) {
        for (int64_t i = 0; i < each; i += LINE) {
            _mm_prefetch(next + k * each + i, _MM_HINT_T1);
        }
    });
}

struct Product {
    const bfloat16 *x, *weight, *bias, *term;  // [R, K], panels, [N] or null, [R, N] or null
    Norm norm;                                 // of the rows, before
    bfloat16* out;                             // [R, N], or [R, N / 2] where GATED
    int64_t rows, size, outputs, ending;       // R, K, N

    void end(const float* sums, int64_t first, int64_t count, int64_t panel) const {
        const int64_t pitch = ending == GATED ? outputs / 2 : outputs;
        const int64_t column = ending == GATED ? panel * TILE : panel * PANEL;
        for (int64_t r = 0; r < count; r++, sums += PANEL) {
            Floats low = load(sums), high = load(sums + TILE);
            if (bias) {
                low += load(bias + panel * PANEL);
                high += load(bias + panel * PANEL + TILE);
            }
            const int64_t place = (first + r) * pitch + column;
            if (ending == GATED) {
                store(out + place, gated(low, high));
                continue;
            }
            if (ending == SUM) {
                low += load(term + place);
                high += load(term + place + TILE);
            }
            store(out + place, low);
            store(out + place + TILE, high);
        }
    }

    void all(int64_t threads) const {
        const int64_t panels = outputs / PANEL, bytes = PANEL * size * sizeof(bfloat16);
        const int64_t fit = ROWS_KEPT / (size * int64_t(sizeof(bfloat16))) / PANEL * PANEL;
        const int64_t most = std::max(fit, PANEL);
#pragma omp parallel num_threads(threads)
        {
            TileRegisters registers;
            alignas(64) float sums[PANEL * PANEL];
            bfloat16* laid = kept((std::min(most, rows) + PANEL) * size);
            for (int64_t from = 0; from < rows; from += most) {
                const int64_t here = std::min(most, rows - from);
                lay_rows(x + from * size, here, size, norm, laid);
#pragma omp for schedule(static) nowait
                for (int64_t p = 0; p < panels; ++p) {
                    const bfloat16* panel = weight + p * PANEL * size;
                    const char* next = reinterpret_cast<const char*>(panel) + bytes;
                    // While the first two blocks are multiplied, half of it each.
                    const int64_t parts = here > PANEL ? 2 : 1;
                    for (int64_t r = 0; r < here; r += PANEL) {
                        const bool early = p + 1 < panels && r / PANEL < parts;
                        const int64_t ahead = early ? bytes / parts : 0;
                        block(laid + r * size, panel, size, sums, next + r / PANEL * ahead, ahead);
                        end(sums, from + r, std::min(PANEL, here - r), p);
                    }
                }
            }
        }
    }
};

// The two tiles of a panel's outputs, of which `weight` is the first. Pairs stay together.
void lay_piece(const bfloat16* weight, int64_t size, bfloat16* piece) {
    for (int64_t j = 0; j < PANEL; ++j) {
        const bfloat16* from = weight + j * size;
        bfloat16* to = piece + j / TILE * (PIECE / 2) + j % TILE * 2;
        for (int64_t k = 0; k < DEPTH; k += 2) {
            std::memcpy(to + k * TILE, from + k, 4);
        }
    }
}

}  // namespace

extern "C" int has_tiles() { return tiles_allowed(); }

extern "C" void lay_weight(const bfloat16* weight, bfloat16* panels, int64_t outputs, int64_t size,
                           int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t p = 0; p < outputs / PANEL; ++p) {
        for (int64_t k = 0; k < size / DEPTH; ++k) {
            lay_piece(weight + p * PANEL * size + k * DEPTH, size,
                      panels + (p * (size / DEPTH) + k) * PIECE);
        }
    }
}

extern "C" void multiply(const bfloat16* x, const bfloat16* weight, const bfloat16* bias,
                         const bfloat16* term, const bfloat16* norm, float epsilon, bfloat16* out,
                         int64_t rows, int64_t size, int64_t outputs, int64_t ending,
                         int64_t threads) {
    Product{x, weight, bias, term, {norm, epsilon}, out, rows, size, outputs, ending}.all(threads);
}

#else

extern "C" int has_tiles() { return 0; }

#endif
