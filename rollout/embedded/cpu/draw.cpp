// Softmax over the vocabulary and a draw from it, a row at a time (draw.py). Logits are
// read where they lie; sums over the vocabulary are kept in double.

#include <vector>

#include "numbers.h"

namespace {

constexpr int64_t BLOCK = 256;  // entries of the vocabulary summed together first

// One row of logits [V]: the token where the running sum of probabilities passes `uniform` in
// [0, 1), or for `uniform` < 0 the first of the largest; and its log-prob. logits are multiplied by
// `factor` > 0. A token of probability 0 is never drawn.
template <typename T>
void draw_row(const T* logits, double uniform, float factor, int64_t vocab, float* sums,
              int64_t* token, float* logprob) {
    float top = -INFINITY;
#pragma omp simd reduction(max : top)
    for (int64_t i = 0; i < vocab; ++i) {
        top = std::max(top, wide(logits[i]));
    }
    auto probability = [&](int64_t i) { return exponential((wide(logits[i]) - top) * factor); };
    double total = 0;
    const int64_t blocks = up_to(vocab, BLOCK) / BLOCK;
    for (int64_t b = 0; b < blocks; ++b) {
        float sum = 0;
        int64_t end = std::min(vocab, (b + 1) * BLOCK);
#pragma omp simd reduction(+ : sum)
        for (int64_t i = b * BLOCK; i < end; ++i) {
            sum += probability(i);
        }
        sums[b] = sum;
        total += sum;
    }
    int64_t found = 0;
    if (uniform < 0) {
        while (found + 1 < vocab && wide(logits[found]) != top) {
            ++found;
        }
    } else {
        double rest = uniform * total, passed = 0;
        int64_t b = 0;
        while (b + 1 < blocks && rest >= sums[b]) {
            rest -= sums[b];
            ++b;
        }
        found = b * BLOCK;
        // The rounding of sums may leave more than the block has: then its last possible token.
        for (int64_t i = found; i < std::min(vocab, (b + 1) * BLOCK) && passed <= rest; ++i) {
            float p = probability(i);
            if (p > 0) {
                found = i;
                passed += p;
            }
        }
    }
    *token = found;
    *logprob = static_cast<float>(static_cast<double>((wide(logits[found]) - top) * factor) -
                                  std::log(total));
}

template <typename T>
void draw(const T* logits, const double* uniform, const float* factor, int64_t rows, int64_t vocab,
          int64_t* tokens, float* logprobs, int64_t threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> sums(up_to(vocab, BLOCK) / BLOCK);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; ++row) {
            draw_row(logits + row * vocab, uniform[row], factor[row], vocab, sums.data(),
                     tokens + row, logprobs + row);
        }
    }
}

}  // namespace

#define FOR_TYPE(T, NAME)                                                                      \
    extern "C" void draw_##NAME(const T* logits, const double* uniform, const float* factor,   \
                                int64_t rows, int64_t vocab, int64_t* tokens, float* logprobs, \
                                int64_t threads) {                                             \
        draw(logits, uniform, factor, rows, vocab, tokens, logprobs, threads);                 \
    }

FOR_TYPE(float, f32)
FOR_TYPE(bfloat16, bf16)
