"""Which kernels for attention the engine's forward passes choose from on a GPU."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def attending(device: torch.device) -> AbstractContextManager[Any]:
    """Within it, `scaled_dot_product_attention` on a GPU leaves cuDNN alone.

    Since torch 2.11 it is the first choice on an H100 or H200. It makes a plan for every new shape,
    reported at 0.4 s each, and an engine's rows and slots change with almost every token. Not run
    on a GPU.
    """
    return sdpa_kernel(_KERNELS) if device.type == "cuda" else nullcontext()
