// What attention kernels are given: heads in rows of tensors, and which tokens attend to which.
//
// With a query's scores times `scale`, `norm` [N, heads] is the logarithm of the sum of their
// exponentials; the forward pass gives it, and the backward pass has the probabilities from it.

#pragma once

#include "numbers.h"

// A matrix of T for every token: its rows are `stride` numbers apart, the heads within a row `dim`.
template <typename T>
struct Heads {
    T* data;
    int64_t stride;
    T* at(int64_t row, int64_t head, int64_t dim) const { return data + row * stride + head * dim; }
};

// Queries and outputs [N, heads, dim], keys and values [N, key_heads, dim]; or their gradients.
template <typename T>
struct Tensors {
    Heads<T> query, key, value, out;
};

// Packs [count, 4]: start and length of the prompt, number of the first completion, how many;
// completions [.., 2]: start and length. `Layout` of grpo/attention/layout.py has the same.
struct Layout {
    const int64_t *packs, *completions;
    int64_t count, heads, key_heads, dim;
    float scale;
    int64_t group() const { return heads / key_heads; }
};

// Calls `act(first, length, prompt)` for the prompt (`prompt` = 0 earlier keys) and completions.
template <typename Act>
void for_sequences(const Layout& layout, const int64_t* pack, Act act) {
    act(pack[0], pack[1], int64_t{0});
    for (int64_t i = pack[2]; i < pack[2] + pack[3]; ++i) {
        act(layout.completions[2 * i], layout.completions[2 * i + 1], pack[1]);
    }
}
