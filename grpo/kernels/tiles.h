// The processor's matrix tiles (Intel AMX), where the compiler and the machine have them.
//
// A tile is 16 rows of 64 bytes. A product of two adds to a 16 x 16 block in float the product of
// 16 x 32 and 32 x 16 numbers in bfloat16; the second lies in pairs, [16][16][2]: two
// consecutive rows of a matrix interleaved. Without tiles TILES is 0 and nothing else is defined.

#pragma once

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#define TILES 1

#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

#include "intrinsics.h"

constexpr int64_t TILE = 16, DEPTH = 32;  // rows and columns of a block; numbers that are summed

// Whether the system lets this process use them (it has to be asked once).
inline bool tiles_allowed() {
    constexpr int ask = 0x1023, data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    static const bool allowed = syscall(SYS_arch_prctl, ask, data) == 0;
    return allowed;
}

// To be called before tiles are loaded from memory that was just written: GCC 12 does not know that
// loading a tile reads memory, and might keep the stores for later.
inline void stores_done() { __asm__ volatile("" ::: "memory"); }

// A thread that multiplies tiles holds one of these meanwhile: registers 0 to 7 are whole tiles.
struct TileRegisters {
    TileRegisters() {
        struct alignas(64) {
            uint8_t palette = 1, start = 0, reserved[14] = {};
            uint16_t bytes[16] = {};
            uint8_t rows[16] = {};
        } shape;
        for (int64_t i = 0; i < 8; ++i) {
            shape.bytes[i] = 64;
            shape.rows[i] = TILE;
        }
        // GCC 12 takes _tile_loadconfig to read 8 bytes, and leaves out the other stores
        __asm__ volatile("ldtilecfg %0" ::"m"(shape));
    }
    ~TileRegisters() { _tile_release(); }
};

// Two tiles in each of `steps` places: the second is `other` numbers behind the first, the next
// place `step` numbers on; rows of a tile are `row` numbers apart.
struct TilePair {
    const uint16_t* data;
    int64_t row, other, step;
};

// A block of 32 x 32 sums, rows `row` numbers apart: the product of two tiles below each other with
// two side by side, summed over `steps`, or added to what is there. `meanwhile(k)` comes before
// each step.
template <typename Meanwhile>
inline void multiply_block(TilePair left, TilePair right, int64_t steps, float* sums, int64_t row,
                           bool add, Meanwhile meanwhile) {
    const int64_t pitch = row * sizeof(float);
    float* below = sums + TILE * row;
    stores_done();
    if (add) {
        _tile_loadd(0, sums, pitch);
        _tile_loadd(1, sums + TILE, pitch);
        _tile_loadd(2, below, pitch);
        _tile_loadd(3, below + TILE, pitch);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    const int64_t lines = left.row * sizeof(uint16_t), pairs = right.row * sizeof(uint16_t);
    for (int64_t k = 0; k < steps; ++k, left.data += left.step, right.data += right.step) {
        meanwhile(k);
        _tile_loadd(4, left.data, lines);
        _tile_loadd(5, left.data + left.other, lines);
        _tile_loadd(6, right.data, pairs);
        _tile_loadd(7, right.data + right.other, pairs);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums, pitch);
    _tile_stored(1, sums + TILE, pitch);
    _tile_stored(2, below, pitch);
    _tile_stored(3, below + TILE, pitch);
}

#else
#define TILES 0
#endif
