"""How much of a large intermediate result exists at a time.

On a CPU a piece fits the processor's cache: a constant number of elements. On a GPU each piece
costs some kernel launches, so pieces are as large as its memory allows.
"""

from __future__ import annotations

import functools

import torch


def piece(device: torch.device, on_cpu: int, bytes_each: int) -> int:
    """Elements of a piece: `on_cpu`, or on a GPU one for each `bytes_each` bytes of its memory."""
    memory = card_memory(device)
    return on_cpu if memory is None else max(on_cpu, memory // bytes_each)


@functools.cache
def card_memory(device: torch.device) -> int | None:
    """Bytes of memory on a GPU, used or not; None elsewhere.

    Free memory changes from moment to moment. With it the pieces would change, and with them the
    last bits of sums.
    """
    if device.type != "cuda":
        return None
    return torch.cuda.get_device_properties(device).total_memory
