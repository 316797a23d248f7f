"""`compiled_attention.cpp`: a step's attention over prompts and own tokens, for torch tensors."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grpo.kernels.door import Kernels, Source, at, at_array, made, within
from grpo.rollout.embedded.cpu.group_cache import CHUNK, GroupCache
from grpo.rollout.embedded.cpu.rotation import Rotation


class AttentionStep(ctypes.Structure):
    """The C++ file's `AttentionStep`; `make_step` fills it."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "heads", "kv_heads", "slots")),
        *((name, ctypes.c_int64) for name in ("chunk", "capacity")),
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
) -> AttentionStep:
    """What the layers share: rows at `positions` int64 [R] of their groups in `cache`.

    `tables`: cosine and sine of the positions, float32 [.., size]. Raises ValueError where a row is
    of no group, or its place is one that the cache has no room for.
    """
    rows, (chunks, _, capacity) = len(positions), cache.own[0].shape[:3]
    groups, room = len(cache.lengths), len(tables[0])
    group = at_array("groups of rows", cache.group, np.int64, rows)
    places = at_array("positions", positions, np.int64, rows)
    within("groups of rows", cache.group, min(groups, len(cache.prompts[0][0])))
    within("lengths of prompts", cache.lengths, cache.slots + 1)
    own = positions - cache.lengths[cache.group]
    within("positions beyond a prompt", own, chunks * CHUNK)
    within("positions", positions, room)
    if rows > capacity:
        raise ValueError(f"{rows} rows, and the cache has room for {capacity}")
    shape = (room, size)
    return AttentionStep(
        rows=rows,
        heads=heads,
        kv_heads=kv_heads,
        slots=cache.slots,
        chunk=CHUNK,
        capacity=capacity,
        group=group,
        lengths=at_array("lengths of prompts", cache.lengths, np.int64, groups),
        positions=places,
        cosine=at("cosines", tables[0], torch.float32, shape),
        sine=at("sines", tables[1], torch.float32, shape),
    )


@functools.cache
def _source(head_size: int) -> Source:
    file = Path(__file__).with_name("compiled_attention.cpp")
    return Source(file, f"HEAD_SIZE={head_size}", attend="PNPPPPPPFP")


def attention_kernels(head_size: int, dtype: torch.dtype) -> Kernels | None:
    """The C++ for heads of this size and type; None where this machine cannot have it."""
    return None if head_size % 16 else _source(head_size).load(dtype)


class CompiledAttention:
    """`GroupAttention` in one compiled pass: rotation, the place in the cache, attention."""

    def __init__(self, kernels: Kernels, rotation: Rotation, dtype: torch.dtype) -> None:
        self._kernels, self._rotation, self.dtype = kernels, rotation, dtype
        self.pair = 2 if dtype == torch.bfloat16 else 1

    def begin(
        self, cache: GroupCache, positions: np.ndarray, windows: set[int | None]
    ) -> AttentionStep:
        """What all layers of a step share: a token a row at `positions` int64 [R]."""
        return make_step(
            heads=cache.heads,
            kv_heads=cache.kv_heads,
            size=cache.size,
            cache=cache,
            positions=positions,
            tables=self._rotation.tables(int(positions.max()) + 1),
        )

    def __call__(
        self,
        step: AttentionStep,
        mixed: Tensor,
        cache: GroupCache,
        index: int,
        head_norms: tuple[Any, Any] | None,
        window: int | None,
    ) -> Tensor:
        """[R, H D] of one layer's mixed [R, (H + 2 KV) D].

        Raises ValueError for tensors that are not of its type, contiguous and of the right shape.
        """
        of_query, of_key = head_norms or (None, None)
        dtype, size = self.dtype, cache.size
        (keys, values), own = cache.prompts[index], cache.own[index]
        rows, heads, kv_heads = step.rows, step.heads, step.kv_heads
        chunks, capacity = own.shape[0], step.capacity
        pair = keys.shape[-1]  # 1 or 2 numbers of a head that lie together
        shape = (keys.shape[0], kv_heads)
        out, to = made(dtype, rows, heads * size)
        self._kernels(
            "attend",
            ctypes.addressof(step),
            window or 0,
            at("queries, keys and values", mixed, dtype, (rows, (heads + 2 * kv_heads) * size)),
            at("a prompt's keys", keys, dtype, (*shape, size // pair, step.slots, pair)),
            at("a prompt's values", values, dtype, (*shape, step.slots // pair, size, pair)),
            at("own tokens", own, dtype, (chunks, 2, capacity, kv_heads, step.chunk, size)),
            None if of_query is None else at("a norm", of_query.weight, dtype, (size,)),
            None if of_key is None else at("a norm", of_key.weight, dtype, (size,)),
            0.0 if of_query is None else of_query.variance_epsilon,
            to,
        )
        return out
