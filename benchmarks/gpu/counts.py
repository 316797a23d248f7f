"""A repetition under the profiler, its memory on the card, and its share of the matrix rate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from gpu import trace
from gpu.section import Setup
from gpu.state import matrix_rate

T = TypeVar("T")


def profiled(run: Callable[[], T], file: Path, *, on_card: bool, with_stack: bool = False) -> T:
    """Run under torch.profiler, with the annotation around it, and leave the trace in `file`.

    Times in it are longer than without; `gpu.trace.counts` are not changed by that.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_card else [])]
    if on_card:
        torch.cuda.synchronize()
    with profile(activities=activities, with_stack=with_stack) as profiler:
        with record_function(trace.SPAN):
            found = run()
        if on_card:  # outside the annotation: not a wait of what is measured
            torch.cuda.synchronize()
    profiler.export_chrome_trace(str(file))
    return found


def peak_gb(setup: Setup) -> float | None:
    """Most memory of the card (10^9 bytes) that this process had in tensors in this step.

    The runner resets it between steps. None on a CPU.
    """
    if setup.device != "cuda":
        return None
    import torch

    return torch.cuda.max_memory_allocated() / 1e9


def mfu(setup: Setup, flops: float, seconds: float, dtype: str = "bfloat16") -> float | None:
    """Share of the measured matrix rate that `flops` in `seconds` are.

    flops: operations that the work needs. None where the card section has not measured the rate.
    """
    rate = matrix_rate(setup, dtype)
    return None if rate is None else flops / seconds / rate
