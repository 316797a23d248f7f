"""How much of a large intermediate result exists at a time.

On a CPU that is for the processor's cache, and a constant beside what is cut. On a card it is for
its memory: a piece is some kernels to launch, and pieces for a cache would be mostly launches.
"""

from __future__ import annotations

import functools

import torch


def piece(device: torch.device, on_cpu: int, bytes_each: int) -> int:
    """Elements of a piece: `on_cpu`, or on a card one for each `bytes_each` of its memory."""
    memory = card_memory(device)
    return on_cpu if memory is None else max(on_cpu, memory // bytes_each)


@functools.cache
def card_memory(device: torch.device) -> int | None:
    """Bytes on a card, used or not; None elsewhere.

    Not what is free: that differs from one moment to the next, with it the pieces would, and with
    them the last bits of sums.
    """
    if device.type != "cuda":
        return None
    return torch.cuda.get_device_properties(device).total_memory
