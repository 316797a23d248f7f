"""Seconds of a repetition, by the card's own clock where there is a card."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from gpu.section import Setup

RAMP = 0.5  # seconds of work after which an idle card has its clocks up


def repetitions(
    setup: Setup, run: Callable[[], Any], *, count: int, warm_up: int = 3
) -> dict[str, Any]:
    """`seconds` of each of `count` repetitions after `warm_up`, and their `median`.

    On a card the time between two CUDA events around the call, everything before it done, after at
    least `RAMP` seconds: a few products of a millisecond each would be timed at the idle clocks.
    """
    began, calls = time.perf_counter(), 0
    ramp = RAMP if setup.device == "cuda" else 0.0
    while calls < warm_up or time.perf_counter() - began < ramp:
        run()
        synchronize(setup)
        calls += 1
    once = _on_card if setup.device == "cuda" else _on_host
    seconds = [once(run) for _ in range(count)]
    return {"seconds": seconds, "median": statistics.median(seconds)}


def synchronize(setup: Setup) -> None:
    """Wait for the card; nothing on a CPU."""
    if setup.device == "cuda":
        import torch

        torch.cuda.synchronize()


def _on_card(run: Callable[[], Any]) -> float:
    import torch

    begin, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    run()
    stop.record()
    stop.synchronize()
    return begin.elapsed_time(stop) / 1e3


def _on_host(run: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin
