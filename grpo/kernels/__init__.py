"""C++ for CPUs: what PyTorch does in many passes over memory, or not at all.

    native      compiles a source file on the machine that runs it, once
    matmul      products of rows with weights laid out for matrix tiles (the engine's)
    layers      norms, rotation, gated activation, gradients of weights (the learner's layers)
    head        the softmax over the vocabulary (the learner's head)
    attention   called by `grpo/shared.py`

Headers: `numbers.h` is what every source needs, `tiles.h` the processor's matrix tiles,
`tile_blocks.h` blocks of heads in them. `rollout/decode.cpp` and `draw.cpp` are the engine's own.
"""
