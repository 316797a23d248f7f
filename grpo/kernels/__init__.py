"""C++ for CPUs: what PyTorch does in many passes over memory, or not at all.

    native      compiles a source file on the machine that runs it, once
    door        the one way to call its functions, and what every address passes on its way there
    matmul      products of rows with weights laid out for matrix tiles (the engine's)
    layers      norms, rotation, gated activation, gradients of weights (learner and engine)
    head        the softmax over the vocabulary (the learner's head)
    attention   called by `grpo/attention/shared.py`
    fingerprint sums over the bytes of weights

Headers: every source needs `numbers.h`. `intrinsics.h` has the processor's own instructions,
`layers.h` norm and gated activation of a row, `tiles.h` the processor's matrix tiles and their
product, `tile_blocks.h` blocks of heads in them.
`rollout/embedded/cpu/compiled_attention.cpp` and `draw.cpp` are the engine's own.
"""
