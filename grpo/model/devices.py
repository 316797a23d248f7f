"""What depends on the kind of device. No other file of the learner asks what kind it is.

The learner gets a record of choices when it is made, and passes it to layers and attention. Of a
large intermediate result only a piece exists at a time: on a CPU a constant number of elements,
which fits the processor's cache; on a GPU, where each piece costs some kernel launches, as many as
its memory allows.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import shutil
from dataclasses import dataclass

import torch

# PyTorch's own switches: with one of them at 1, `torch.compile` hands a function back as it is.
NO_COMPILER = ("TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE")


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Which implementations a learner uses on a device."""

    fused_layers: bool  # `grpo/learner/layers.py`, whose passes over memory are for a CPU
    sparse_embedding: bool  # an embedding's gradient by rows; see `policy.add_up_embedding`
    compiled_attention: bool  # `kernels/attention.cpp`
    flash_attention: bool  # PyTorch's flash kernel that gives the normalizers, a CPU's alone
    flex_attention: bool  # compiled FlexAttention
    fused_optimizer: bool  # one kernel updates all weights
    widest: torch.dtype  # floating type for sums


@functools.cache
def choices(device: torch.device) -> Choices:
    """The choices for a device. FlexAttention is off where it cannot be compiled."""
    kind = device.type
    on_cpu = kind == "cpu"
    return Choices(
        fused_layers=on_cpu,
        sparse_embedding=on_cpu,
        compiled_attention=on_cpu,
        flash_attention=on_cpu,
        flex_attention=kind == "cuda" and can_compile(device),
        fused_optimizer=kind in ("cpu", "cuda"),
        widest=torch.float32 if kind == "mps" else torch.float64,
    )


def can_compile(device: torch.device) -> bool:
    """Whether PyTorch can compile FlexAttention here, on a kind of GPU that it is tested on.

    Without compilation it would hold a score for each pair of tokens; attention in parts does not.
    """
    return (
        not any(os.environ.get(name) == "1" for name in NO_COMPILER)
        and torch.__version__ >= "2.7"  # in 2.6 compiled training fails (pytorch #146260)
        and importlib.util.find_spec("triton") is not None
        and any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang"))
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def free_memory(device: torch.device) -> float:
    """Free bytes on a device: infinite on a CPU, 0 where nothing says."""
    if device.type == "cpu":
        return math.inf
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


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
