// The gradient of a linear layer's weight, Y^T X in bfloat16 with sums in float, on matrix tiles
// (layers.py): float out, added in place, and no transposed copy of the whole of Y.

#include <algorithm>

#include "tile_blocks.h"

#if TILES

namespace {

using tiled::BLOCK;
using tiled::ONE;

constexpr int64_t DEEP = 2560;  // rows that are summed before sums go to memory
constexpr int64_t VISIT = 128;  // outputs that one thread lays out at a time

struct Gradient {
    const bfloat16* y;  // [rows, outputs]
    const bfloat16* x;  // [rows, inputs]
    float* total;       // [outputs, inputs]
    int64_t rows, outputs, inputs;
    bool add;

    // Rows [32, 16] from the first of `count` as a tile of pairs; what is not there counts as 0.
    static void pairs(const bfloat16* from, int64_t row, int64_t count, bfloat16* tile) {
        if (count >= DEPTH) {
            return tiled::pair(from, row, tile);
        }
        alignas(64) bfloat16 whole[ONE] = {};
        for (int64_t i = 0; i < count; ++i) {
            std::copy_n(from + i * row, TILE, whole + i * TILE);
        }
        tiled::pair(whole, TILE, tile);
    }

    // From row to row of Y^T: a line more than it needs, as rows whole pages apart share few places
    // in the cache.
    static int64_t row(int64_t steps) { return (steps + 1) * DEPTH; }

    // total [32, 32] at (output, input), from Y's tiles by rows and X's in pairs.
    void block(const bfloat16* left, const bfloat16* right, int64_t steps, int64_t output,
               int64_t input, bool adds) const {
        float* place = total + output * inputs + input;
        tiled::multiply({left, row(steps), DEPTH}, {right, steps * ONE, ONE},
                        {place, inputs, BLOCK}, BLOCK, BLOCK, steps, adds);
    }

    void all(int64_t threads) const {
        const int64_t chunks = (rows + DEEP - 1) / DEEP;
        const int64_t depth = up_to((rows + chunks - 1) / chunks, DEPTH);
        const int64_t share = (outputs + threads - 1) / threads;
        const int64_t turns = (share + VISIT - 1) / VISIT;
        const int64_t visit = up_to((share + turns - 1) / turns, BLOCK);  // as many for each thread
        auto shared = tiled::buffer<bfloat16>(inputs * depth);
#pragma omp parallel num_threads(threads)
        {
            TileRegisters registers;
            auto own = tiled::buffer<bfloat16>(visit * (depth + DEPTH));
            for (int64_t from = 0; from < rows; from += depth) {
                const int64_t here = std::min(depth, rows - from);
                const int64_t steps = up_to(here, DEPTH) / DEPTH;
#pragma omp for schedule(static)
                for (int64_t i = 0; i < inputs / TILE; ++i) {
                    for (int64_t k = 0; k < steps; ++k) {
                        pairs(x + (from + k * DEPTH) * inputs + i * TILE, inputs, here - k * DEPTH,
                              &shared[(i * steps + k) * ONE]);
                    }
                }
#pragma omp for schedule(static)
                for (int64_t first = 0; first < outputs; first += visit) {
                    const int64_t wide = std::min(visit, outputs - first);
                    alignas(64) bfloat16 tile[ONE];
                    for (int64_t k = 0; k < steps; ++k) {
                        for (int64_t o = 0; o < wide; o += TILE) {
                            pairs(y + (from + k * DEPTH) * outputs + first + o, outputs,
                                  here - k * DEPTH, tile);
                            tiled::transpose(tile, TILE, &own[o * row(steps) + k * DEPTH],
                                             row(steps) / 2);
                        }
                    }
                    for (int64_t i = 0; i < inputs; i += BLOCK) {
                        for (int64_t o = 0; o < wide; o += BLOCK) {
                            block(&own[o * row(steps)], &shared[i * steps * DEPTH], steps,
                                  first + o, i, add || from);
                        }
                    }
                }
            }
        }
    }
};

}  // namespace

extern "C" int has_tiles() { return tiles_allowed(); }

extern "C" void weight_gradient(const bfloat16* y, const bfloat16* x, float* total, int64_t rows,
                                int64_t outputs, int64_t inputs, int64_t add, int64_t threads) {
    Gradient{y, x, total, rows, outputs, inputs, add != 0}.all(threads);
}

#else

extern "C" int has_tiles() { return 0; }

#endif
