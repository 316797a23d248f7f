"""What the embedded engine does in another way on another device, decided once, when it is made."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
_TOKENS = 4096  # padded tokens of a pass over prompts: bounds its activations
_LOGITS = 64  # rows of logits of such a pass (ragged prompts ask for several each)
_MORE = 4  # times as much elsewhere than on a CPU: a pass has many launches, however small it is


@dataclass(frozen=True, kw_only=True)
class Ways:
    """How one engine works.

    forward: what every forward pass of the model's own code runs in. tokens, logits: how many of
    them one pass over prompts may hold. fused: whether layers of our own are faster.
    """

    forward: Callable[[], AbstractContextManager[Any]]
    tokens: int
    logits: int
    fused: bool


def ways_on(device: torch.device) -> Ways:
    """Those of a device.

    On a GPU `scaled_dot_product_attention` leaves cuDNN alone. Since torch 2.11 that is the first
    choice on an H100 or H200; it makes a plan for every new shape, reported at 0.4 s each, and an
    engine's rows and slots change with almost every token. Not run on a GPU.
    """
    if device.type == "cpu":
        return Ways(forward=nullcontext, tokens=_TOKENS, logits=_LOGITS, fused=True)
    forward = functools.partial(sdpa_kernel, _KERNELS)
    return Ways(forward=forward, tokens=_MORE * _TOKENS, logits=_MORE * _LOGITS, fused=False)
