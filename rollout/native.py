"""`decode.cpp` and `draw.cpp` for torch tensors."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from grpo.kernels import native
from grpo.kernels.door import at, at_array, within

if TYPE_CHECKING:
    from grpo.rollout.group_cache import GroupCache

CHUNK = 32  # slots of own tokens that one product reads

_TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_P, _N, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class Step(ctypes.Structure):
    """The C++ file's `Step`; `make_step` fills it."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "heads", "kv_heads", "slots")),
        *((name, ctypes.c_int64) for name in ("chunk", "capacity", "threads")),
        *((name, ctypes.c_void_p) for name in ("group", "lengths", "positions", "cosine", "sine")),
    ]


def make_step(
    *,
    heads: int,
    kv_heads: int,
    size: int,
    cache: GroupCache,
    positions: np.ndarray,
    tables: tuple[Tensor, Tensor],
) -> Step:
    """What the layers share: rows at `positions` int64 [R] of their groups in `cache`.

    `tables`: cosine and sine of the positions, float32 [.., size]. Raises ValueError where a row is
    of no group, or its place is one that the cache has no room for.
    """
    rows, (chunks, _, capacity) = len(positions), cache.own[0].shape[:3]
    groups, room = len(cache.lengths), len(tables[0])
    group = at_array("groups of rows", cache.group, np.int64, rows)
    at_array("positions", positions, np.int64, rows)
    within("groups of rows", cache.group, min(groups, len(cache.prompts[0][0])))
    within("lengths of prompts", cache.lengths, cache.slots + 1)
    own = positions - cache.lengths[cache.group]
    within("positions beyond a prompt", own, chunks * CHUNK)
    within("positions", positions, room)
    if rows > capacity:
        raise ValueError(f"{rows} rows, and the cache has room for {capacity}")
    shape = (room, size)
    return Step(
        rows=rows,
        heads=heads,
        kv_heads=kv_heads,
        slots=cache.slots,
        chunk=CHUNK,
        capacity=capacity,
        threads=torch.get_num_threads(),
        group=group,
        lengths=at_array("lengths of prompts", cache.lengths, np.int64, groups),
        positions=positions.ctypes.data,
        cosine=at("cosines", tables[0], torch.float32, shape),
        sine=at("sines", tables[1], torch.float32, shape),
    )


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
    """The functions for one type of numbers, float32 or bfloat16, and heads of `size`.

    They raise ValueError for tensors that are not of that type, contiguous and of the right shape.
    """

    def __init__(self, compiled: ctypes.CDLL, dtype: torch.dtype, size: int) -> None:
        name = _TYPES[dtype]
        self.dtype, self.size = dtype, size
        self._norm = getattr(compiled, f"norm_{name}")
        self._swiglu = getattr(compiled, f"swiglu_{name}")
        self._attend = getattr(compiled, f"attend_{name}")

    def norm(self, x: Tensor, norm: Any) -> Tensor:
        """RMS norm of x [R, D] with a module's weight and epsilon."""
        rows, width = x.shape
        given = at("rows", x, self.dtype, (rows, width))
        out = x.new_empty(rows, width)
        self._norm(
            given,
            at("a norm's weight", norm.weight, self.dtype, (width,)),
            out.data_ptr(),
            *(rows, width),
            norm.variance_epsilon,
            torch.get_num_threads(),
        )
        return out

    def swiglu(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up [R, F] of the two side by side [R, 2 F]."""
        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        given = at("gate and up", gate_up, self.dtype, (rows, 2 * width))
        out = gate_up.new_empty(rows, width)
        self._swiglu(given, out.data_ptr(), rows, width, torch.get_num_threads())
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
        dtype, size, (keys, values) = self.dtype, self.size, prompts
        rows, heads, kv_heads = step.rows, step.heads, step.kv_heads
        chunks, capacity = own.shape[0], step.capacity
        pair = keys.shape[-1]  # 1 or 2 numbers of a head that lie together
        shape = (keys.shape[0], kv_heads)
        self._attend(
            ctypes.addressof(step),
            window or 0,
            at("queries, keys and values", mixed, dtype, (rows, (heads + 2 * kv_heads) * size)),
            at("a prompt's keys", keys, dtype, (*shape, size // pair, step.slots, pair)),
            at("a prompt's values", values, dtype, (*shape, step.slots // pair, size, pair)),
            at("own tokens", own, dtype, (chunks, 2, capacity, kv_heads, step.chunk, size)),
            None if of_query is None else at("a norm", of_query.weight, dtype, (size,)),
            None if of_key is None else at("a norm", of_key.weight, dtype, (size,)),
            0.0 if of_query is None else of_query.variance_epsilon,
            at("room", out, dtype, (rows, heads * size)),
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
    rows, vocab = logits.shape
    tokens = torch.empty(rows, dtype=torch.int64, device="cpu")
    logprobs = torch.empty(rows, dtype=torch.float32, device="cpu")
    getattr(compiled, f"draw_{_TYPES[logits.dtype]}")(
        logits.data_ptr(),
        at_array("uniform numbers", uniform, np.float64, rows),
        at_array("factors", factor, np.float32, rows),
        *(rows, vocab),
        tokens.data_ptr(),
        logprobs.data_ptr(),
        torch.get_num_threads(),
    )
    return tokens, logprobs
