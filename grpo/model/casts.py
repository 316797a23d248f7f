"""Weights in the type that products are computed in, cast once and not in every forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

import torch
from torch import Tensor

_kept: ContextVar[dict[tuple[int, ...], Tensor] | None] = ContextVar("kept", default=None)


@contextlib.contextmanager
def casts_kept(autocast: contextlib.AbstractContextManager[object]) -> Iterator[None]:
    """Within `autocast`, `joined` casts each weight once, so nothing inside may change the weights.

    PyTorch does the same for its own layers.
    """
    token = _kept.set({})
    try:
        with autocast:
            yield
    finally:
        _kept.reset(token)


def autocast_off(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Products in the tensors' own types, on the device of `tensor`."""
    return torch.autocast(tensor.device.type, enabled=False)


def compute_type(tensor: Tensor) -> torch.dtype:
    """The type of autocast where it is on, otherwise the tensor's own."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def joined(weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The weights concatenated along their first dimension, in `dtype` and without gradient."""
    kept = _kept.get()
    key = (*map(id, weights),)
    if kept is not None and key in kept:
        return kept[key]
    with torch.no_grad():
        first = weights[0]
        if len(weights) == 1:
            found = first.detach().to(dtype)
        else:
            shape = (sum(map(len, weights)), *first.shape[1:])
            found = torch.empty(shape, dtype=dtype, device=first.device)
            for part, weight in zip(found.split([*map(len, weights)]), weights, strict=True):
                part.copy_(weight)
    if kept is not None:
        kept[key] = found
    return found
