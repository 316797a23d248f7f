"""The compiled attention over a shared prompt; called by `grpo/attention/shared.py`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from grpo.kernels.door import Kernels, Source, at, at_rows

SOURCE = Source(Path(__file__).with_name("attention.cpp"), attend="PPP", attend_backward="PPPP")


def call(
    kernels: Kernels,
    name: str,
    tensors: Sequence[Sequence[Tensor]],
    norm: Tensor,
    layout: tuple[Tensor, Tensor, int],
    scale: float,
) -> None:
    """`tensors`: queries, keys, values and outputs, and likewise their gradients.

    `layout`: packs [P, 4] and completions [C, 2] of `grpo.attention.layout.Layout`, and its end.
    """
    query, key = tensors[0][:2]
    N, H, D = query.shape
    K = key.shape[1]
    sizes = [(N, H, D), (N, K, D), (N, K, D), (N, H, D)]
    if any([tuple(t.shape) for t in group] != sizes for group in tensors) or H % K:
        shapes = [tuple(t.shape) for group in tensors for t in group]
        raise ValueError(f"queries, keys, values and outputs do not belong together: {shapes}")
    packs, completions, end = layout
    if end > N:
        raise ValueError(f"a layout of {end} tokens is not one of {N}")
    wide = at("normalizers", norm, torch.float32, (N, H))
    how = _Layout(
        packs=at("packs", packs, torch.int64, (len(packs), 4)),
        completions=at("completions", completions, torch.int64, (len(completions), 2)),
        count=len(packs),
        heads=query.shape[1],
        key_heads=key.shape[1],
        dim=query.shape[2],
        scale=scale,
    )
    heads = [_heads(group, query.dtype) for group in tensors]
    kernels(name, *map(ctypes.addressof, heads), wide, ctypes.addressof(how))


class _Heads(ctypes.Structure):
    """`Heads` of attention.h."""

    _fields_ = (("data", ctypes.c_void_p), ("stride", ctypes.c_int64))


class _Layout(ctypes.Structure):
    """`Layout` of attention.h."""

    _fields_ = (
        ("packs", ctypes.c_void_p),
        ("completions", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("count", "heads", "key_heads", "dim")),
        ("scale", ctypes.c_float),
    )


def _heads(tensors: Sequence[Tensor], dtype: torch.dtype) -> ctypes.Array[_Heads]:
    """`Tensors` of attention.h."""
    return (_Heads * len(tensors))(*(at_rows("heads", t, dtype, t.shape) for t in tensors))
