"""`draw.cpp` for torch tensors."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from grpo.kernels import native
from grpo.kernels.door import SUFFIXES, at, at_array

_P, _N = ctypes.c_void_p, ctypes.c_int64
_FUNCTIONS = {f"draw_{name}": [_P, _P, _P, _N, _N, _P, _P, _N] for name in SUFFIXES.values()}


def draw_library() -> ctypes.CDLL | None:
    """`draw.cpp`; None where this machine cannot have it."""
    return native.bound(Path(__file__).with_name("draw.cpp"), _FUNCTIONS)


def draw(logits: Tensor, uniform: np.ndarray, factor: np.ndarray) -> tuple[Tensor, Tensor] | None:
    """Tokens int64 [R] and log-probs float32 [R] from the softmax of factor * logits.

    logits [R, V] on the CPU; factor float32 [R] > 0; uniform float64 [R] in [0, 1), or < 0 for the
    largest logit. None where there is no kernel for these logits.
    """
    known = logits.dtype in SUFFIXES and logits.is_contiguous()
    compiled = draw_library() if known else None
    if compiled is None:
        return None
    rows, vocab = logits.shape
    tokens = torch.empty(rows, dtype=torch.int64, device="cpu")
    logprobs = torch.empty(rows, dtype=torch.float32, device="cpu")
    getattr(compiled, f"draw_{SUFFIXES[logits.dtype]}")(
        at("logits", logits, logits.dtype, (rows, vocab)),
        at_array("uniform numbers", uniform, np.float64, rows),
        at_array("factors", factor, np.float32, rows),
        *(rows, vocab),
        tokens.data_ptr(),
        logprobs.data_ptr(),
        torch.get_num_threads(),
    )
    return tokens, logprobs
