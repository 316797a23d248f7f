"""`draw.cpp` for torch tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from grpo.kernels.door import Source, at, at_array, made

SOURCE = Source(Path(__file__).with_name("draw.cpp"), draw="PPPNNPP")


def draw(logits: Tensor, uniform: np.ndarray, factor: np.ndarray) -> tuple[Tensor, Tensor] | None:
    """Tokens int64 [R] and log-probs float32 [R] from the softmax of factor * logits.

    logits [R, V] on the CPU; factor float32 [R] > 0; uniform float64 [R] in [0, 1), or < 0 for the
    largest logit. None where there is no kernel for these logits.
    """
    kernels = SOURCE.load(logits.dtype) if logits.is_contiguous() else None
    if kernels is None:
        return None
    rows, vocab = logits.shape
    (tokens, to_tokens), (logprobs, to_logprobs) = (
        made(torch.int64, rows),
        made(torch.float32, rows),
    )
    given = (
        at("logits", logits, logits.dtype, (rows, vocab)),
        at_array("uniform numbers", uniform, np.float64, rows),
        at_array("factors", factor, np.float32, rows),
    )
    kernels("draw", *given, rows, vocab, to_tokens, to_logprobs)
    return tokens, logprobs
