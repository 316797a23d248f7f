// The two sums of `fingerprint.py` over bytes in memory. Sums are modulo 2^64, so that any order of
// blocks and threads gives the same bits.

#include <cstdint>
#include <cstring>

namespace {

constexpr int64_t BLOCK = 2048;  // lanes; as in fingerprint.py

struct Pair {
    uint64_t first, second;
};

using Lane = int32_t __attribute__((may_alias, aligned(1)));  // of bytes, wherever they begin

// Of `count` lanes, each times its factor.
inline Pair block(const Lane* lanes, int64_t count, const int32_t* factors) {
    uint64_t first = 0, second = 0;
#pragma omp simd reduction(+ : first, second)
    for (int64_t i = 0; i < count; ++i) {
        first += static_cast<int64_t>(lanes[i]) * factors[i];
        second += static_cast<int64_t>(lanes[i]) * factors[BLOCK + i];
    }
    return {first, second};
}

}  // namespace

// `factors` [2, BLOCK]; `multipliers` [blocks, 2], blocks = ceil(length / (4 BLOCK)); `out` [2].
extern "C" void fingerprint(const uint8_t* bytes, int64_t length, const int32_t* factors,
                            const uint64_t* multipliers, uint64_t* out, int64_t threads) {
    const int64_t whole = length / 4, blocks = (length + 4 * BLOCK - 1) / (4 * BLOCK);
    uint64_t first = 0, second = 0;
#pragma omp parallel for num_threads(threads) schedule(static) \
    reduction(+ : first, second) if (blocks >= 64)
    for (int64_t b = 0; b < blocks; ++b) {
        const int64_t begin = b * BLOCK, count = whole - begin < BLOCK ? whole - begin : BLOCK;
        Pair sums = block(reinterpret_cast<const Lane*>(bytes) + begin, count, factors);
        if (count < BLOCK && length % 4) {  // the last lane is filled up with zeros
            int32_t rest = 0;
            std::memcpy(&rest, bytes + 4 * whole, length % 4);
            sums.first += static_cast<int64_t>(rest) * factors[count];
            sums.second += static_cast<int64_t>(rest) * factors[BLOCK + count];
        }
        first += sums.first * multipliers[2 * b];
        second += sums.second * multipliers[2 * b + 1];
    }
    out[0] = first;
    out[1] = second;
}
