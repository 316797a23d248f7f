"""Attention over tokens laid flat: which token sees which, and who computes it.

    layout      what lies in a flat row: prompts, and the completions that share them; the masks
                and places that every layer reads, made once for a micro-batch
    shared      the computation in parts, each prompt once for its group; flex is a GPU's way
    interface   how models of transformers come to call either of them

The learner's only. An engine reads keys and values from a cache: `rollout/embedded/`.
"""
