"""`decode.cpp` and `draw.cpp` for torch tensors."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grpo.kernels import native

_TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_P, _N, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class Step(ctypes.Structure):
    """The C++ file's `Step`."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "heads", "kv_heads", "slots")),
        *((name, ctypes.c_int64) for name in ("chunk", "capacity", "threads")),
        *((name, ctypes.c_void_p) for name in ("group", "lengths", "positions", "cosine", "sine")),
    ]


def decode_library(head_size: int) -> ctypes.CDLL | None:
    """`decode.cpp` for heads of this size; None where this machine cannot have it."""
    if head_size % 16:
        return None
    source = Path(__file__).with_name("decode.cpp")
    found = native.library(source, f"HEAD_SIZE={head_size}")
    if found is not None and found.norm_float32.argtypes is None:
        for name in _TYPES.values():
            getattr(found, f"norm_{name}").argtypes = [_P, _P, _P, _N, _N, _F, _N]
            getattr(found, f"swiglu_{name}").argtypes = [_P, _P, _N, _N, _N]
            getattr(found, f"attend_{name}").argtypes = [_P, _N, *[_P] * 6, _F, _P]
    return found


def draw_library() -> ctypes.CDLL | None:
    """`draw.cpp`; None where this machine cannot have it."""
    found = native.library(Path(__file__).with_name("draw.cpp"))
    if found is not None and found.draw_float32.argtypes is None:
        for name in _TYPES.values():
            getattr(found, f"draw_{name}").argtypes = [_P, _P, _P, _N, _N, _P, _P, _N]
    return found


class Kernels:
    """The functions for one type of numbers, float32 or bfloat16. Tensors must be contiguous."""

    def __init__(self, compiled: ctypes.CDLL, dtype: torch.dtype) -> None:
        name = _TYPES[dtype]
        self._norm = getattr(compiled, f"norm_{name}")
        self._swiglu = getattr(compiled, f"swiglu_{name}")
        self._attend = getattr(compiled, f"attend_{name}")

    def norm(self, x: Tensor, norm: Any) -> Tensor:
        """RMS norm of x [R, D] with a module's weight and epsilon."""
        out = torch.empty_like(x)
        self._norm(
            x.data_ptr(),
            norm.weight.data_ptr(),
            out.data_ptr(),
            *x.shape,
            norm.variance_epsilon,
            torch.get_num_threads(),
        )
        return out

    def swiglu(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up [R, F] of the two side by side [R, 2 F]."""
        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        out = gate_up.new_empty(rows, width)
        threads = torch.get_num_threads()
        self._swiglu(gate_up.data_ptr(), out.data_ptr(), rows, width, threads)
        return out

    def attend(
        self,
        step: Step,
        mixed: Tensor,
        prompts: tuple[Tensor, Tensor],
        own: Tensor,
        head_norms: tuple[Any, Any] | None,
        window: int | None,
        out: Tensor,
    ) -> Tensor:
        """Rotate, keep and attend in one layer: mixed [R, (H + 2 KV) D] -> `out` [R, H D].

        `prompts`, `own`: a `GroupCache`'s, in pairs. `head_norms`: of queries and keys.
        """
        of_query, of_key = head_norms or (None, None)
        self._attend(
            ctypes.addressof(step),
            window or 0,
            mixed.data_ptr(),
            prompts[0].data_ptr(),
            prompts[1].data_ptr(),
            own.data_ptr(),
            None if of_query is None else of_query.weight.data_ptr(),
            None if of_key is None else of_key.weight.data_ptr(),
            0.0 if of_query is None else of_query.variance_epsilon,
            out.data_ptr(),
        )
        return out


def draw(logits: Tensor, uniform: np.ndarray, factor: np.ndarray) -> tuple[Tensor, Tensor] | None:
    """Tokens int64 [R] and log-probs float32 [R] from the softmax of factor * logits.

    logits [R, V]; factor float32 [R] > 0; uniform float64 [R] in [0, 1), or < 0 for the largest
    logit. None where there is no kernel for these logits.
    """
    compiled = draw_library() if logits.device.type == "cpu" and logits.dtype in _TYPES else None
    if compiled is None or not logits.is_contiguous():
        return None
    tokens = torch.empty(len(logits), dtype=torch.int64)
    logprobs = torch.empty(len(logits), dtype=torch.float32)
    getattr(compiled, f"draw_{_TYPES[logits.dtype]}")(
        logits.data_ptr(),
        uniform.ctypes.data,
        factor.ctypes.data,
        *logits.shape,
        tokens.data_ptr(),
        logprobs.data_ptr(),
        torch.get_num_threads(),
    )
    return tokens, logprobs
