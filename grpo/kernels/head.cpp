// Softmax over the vocabulary and its derivative (head.py): a row of the head's
// product is read where it lies, in bfloat16 or float, and sums are kept in double.

#include "numbers.h"

namespace {

constexpr int64_t BLOCK = 1024;  // entries that are summed in float before double takes over

// Of each row, with l = factor * product: log of the sum of exp(l), the target's log-prob, and mean
// (the entropy) and variance of -log p. out is [4, rows].
template <typename T>
void normalize(const T* product, const int64_t* targets, float* out, int64_t rows, int64_t vocab,
               float factor, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
        const T* logits = product + row * vocab;
        float top = -INFINITY;
#pragma omp simd reduction(max : top)
        for (int64_t i = 0; i < vocab; ++i) {
            top = std::max(top, wide(logits[i]));
        }
        double total = 0, first = 0, second = 0;  // sums of e^d, e^d d and e^d d^2
        for (int64_t start = 0; start < vocab; start += BLOCK) {
            const int64_t stop = std::min(vocab, start + BLOCK);
            float sum = 0, sum_d = 0, sum_dd = 0;
#pragma omp simd reduction(+ : sum, sum_d, sum_dd)
            for (int64_t i = start; i < stop; ++i) {
                const float d = std::max((wide(logits[i]) - top) * factor, -100.0f);  // e^d is 0
                const float e = exponential(d);
                sum += e;
                sum_d += e * d;
                sum_dd += e * d * d;
            }
            total += sum;
            first += sum_d;
            second += sum_dd;
        }
        const double mean = first / total, log_total = std::log(total);
        const double highest = static_cast<double>(top) * factor;
        out[row] = static_cast<float>(highest + log_total);
        out[rows + row] = static_cast<float>(
            static_cast<double>((wide(logits[targets[row]]) - top) * factor) - log_total);
        out[2 * rows + row] = static_cast<float>(log_total - mean);
        out[3 * rows + row] = static_cast<float>(std::max(second / total - mean * mean, 0.0));
    }
}

// The product becomes the gradient by it, with p the distribution and h its entropy, and a and b
// the gradients of the target's log-prob and of the entropy: a (target - p) - b p (log p + h).
template <typename T>
void pull_back(T* product, const int64_t* targets, const float* scale, const float* entropy,
               const float* of_logp, const float* of_entropy, int64_t rows, int64_t vocab,
               float factor, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
        T* logits = product + row * vocab;
        const float s = scale[row], h = entropy[row], a = of_logp[row], b = of_entropy[row];
        const auto share = [=](float logit) {
            const float logp = std::max(factor * logit - s, -100.0f);
            return -exponential(logp) * (a + b * (logp + h)) * factor;
        };
        const float of_target = share(wide(logits[targets[row]])) + a * factor;
#pragma omp simd
        for (int64_t i = 0; i < vocab; ++i) {
            store(logits + i, share(wide(logits[i])));
        }
        store(logits + targets[row], of_target);
    }
}

}  // namespace

#define FOR_TYPE(T, NAME)                                                                          \
    extern "C" void normalize_##NAME(const T* product, const int64_t* targets, float* out,         \
                                     int64_t rows, int64_t vocab, float factor, int64_t threads) { \
        normalize(product, targets, out, rows, vocab, factor, threads);                            \
    }                                                                                              \
    extern "C" void pull_back_##NAME(T* product, const int64_t* targets, const float* scale,       \
                                     const float* entropy, const float* of_logp,                   \
                                     const float* of_entropy, int64_t rows, int64_t vocab,         \
                                     float factor, int64_t threads) {                              \
        pull_back(product, targets, scale, entropy, of_logp, of_entropy, rows, vocab, factor,      \
                  threads);                                                                        \
    }

FOR_TYPE(float, f32)
FOR_TYPE(bfloat16, bf16)
