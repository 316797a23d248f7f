"""The card itself: matrix rates, memory, transfers, launches; measured, not looked up.

Random data throughout: products of zeros run faster. Sizes fill a large card; `tiny` ones do not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from gpu.section import Result, Section, Setup, Step
from gpu.table import markdown, number, step_rows
from gpu.timing import repetitions, synchronize

# name -> type, and how much float32 products may round
MATRICES = {
    "float32": ("float32", "highest"),
    "tf32": ("float32", "high"),
    "bfloat16": ("bfloat16", "highest"),
    "float16": ("float16", "highest"),
}
LAUNCHES = 1000
WAIT, WAITED, READ = "a wait for nothing", "a kernel, waited for", "a kernel, read by the host"


def _matrix(name: str) -> Callable[[Setup], Result]:
    def measure(setup: Setup) -> Result:
        import torch

        size = 256 if setup.tiny else 8192
        kind, precision = MATRICES[name]
        dtype = getattr(torch, kind)
        a, b = (torch.randn(size, size, device=setup.device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        try:
            found = repetitions(setup, lambda: torch.mm(a, b, out=out), count=_count(setup, 20))
        finally:
            torch.set_float32_matmul_precision(before)
        return {**found, "size": size, "flops_per_second": 2 * size**3 / found["median"]}

    return measure


def _bandwidth(setup: Setup) -> Result:
    """A copy within the card's memory; what is read and what is written count."""
    import torch

    size = 2**20
    if not setup.tiny:
        size = min(2**32, torch.cuda.get_device_properties(0).total_memory // 8)
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=setup.device)
    target = torch.empty_like(source)
    found = repetitions(setup, lambda: target.copy_(source), count=_count(setup, 20))
    return {**found, "bytes": size, "bytes_per_second": 2 * size / found["median"]}


def _transfers(setup: Setup) -> Result:
    """Between host and card, ordinary and pinned memory; wall clock, until it is there."""
    import torch

    size = 2**16 if setup.tiny else 2**28
    found: Result = {"bytes": size}
    on_card = torch.randint(0, 255, (size,), dtype=torch.uint8, device=setup.device)
    for kind in ("pageable", "pinned"):
        pinned = kind == "pinned" and setup.device == "cuda"
        on_host = torch.randint(0, 255, (size,), dtype=torch.uint8)
        on_host = on_host.pin_memory() if pinned else on_host
        pairs = {"to the card": (on_card, on_host), "to the host": (on_host, on_card)}
        for way, (target, source) in pairs.items():
            seconds = [
                _wall(setup, lambda to, of: to.copy_(of, non_blocking=True), target, source)
                for _ in range(_count(setup, 10) + 2)
            ][2:]
            middle = sorted(seconds)[len(seconds) // 2]
            rate = {"seconds": seconds, "bytes_per_second": size / middle}
            found[f"{kind} {way}"] = rate
    return found


def _launches(setup: Setup) -> Result:
    """Kernels on one element, one after the other; and as one CUDA graph."""
    import torch

    one = torch.zeros(1, device=setup.device)
    calls = 10 if setup.tiny else LAUNCHES

    def in_a_row() -> None:
        for _ in range(calls):
            one.add_(1)

    count = _count(setup, 20)
    for _ in range(2):
        in_a_row()
    walls = [_wall(setup, in_a_row) for _ in range(count)]
    found: Result = {"launches": calls, "in a row": walls, "graph": None}
    found["microseconds"] = sorted(walls)[count // 2] / calls * 1e6
    if setup.device == "cuda":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            in_a_row()
        graph.replay()
        walls = [_wall(setup, graph.replay) for _ in range(count)]
        found["graph"] = walls
        found["graph_microseconds"] = sorted(walls)[count // 2] / calls * 1e6
    return found


def _waits(setup: Setup) -> Result:
    """A wait for nothing; a kernel on one element that is waited for, or read by the host."""
    import torch

    one = torch.zeros(1, device=setup.device)

    def waited() -> None:
        one.add_(1)
        synchronize(setup)

    def read() -> None:
        one.add_(1)
        one.item()

    def many(run: Callable[[], None]) -> None:
        for _ in range(calls):
            run()

    calls, count = 10 if setup.tiny else 200, _count(setup, 10)
    found: Result = {"calls": calls}
    named = {WAIT: lambda: synchronize(setup), WAITED: waited, READ: read}
    for name, run in named.items():
        walls = [_wall(setup, many, run) for _ in range(count)]
        middle = sorted(walls)[count // 2]
        found[name] = {"seconds": walls, "microseconds": middle / calls * 1e6}
    return found


def _wall(setup: Setup, run: Callable[..., Any], *given: Any) -> float:
    synchronize(setup)
    began = time.perf_counter()
    run(*given)
    synchronize(setup)
    return time.perf_counter() - began


def _count(setup: Setup, count: int) -> int:
    return 3 if setup.tiny else count


def _steps(setup: Setup) -> list[Step]:
    return [
        *(Step(name=f"matrix-{name}", run=_matrix(name)) for name in MATRICES),
        Step(name="bandwidth", run=_bandwidth),
        Step(name="transfers", run=_transfers),
        Step(name="launches", run=_launches),
        Step(name="waits", run=_waits),
    ]


def _table(results: Mapping[str, Result]) -> str:
    def rate(name: str) -> Callable[[Result], str]:
        return lambda r: number(r[name]["bytes_per_second"] / 1e9, ",.2f", " GB/s")

    rows = step_rows(
        results,
        {f"matrix-{name}": f"matrix product, {name}" for name in MATRICES},
        lambda r: number(r["flops_per_second"] / 1e12, ",.1f", " TFLOP/s"),
    )
    rows += step_rows(
        results,
        {"bandwidth": "memory, read and written"},
        lambda r: number(r["bytes_per_second"] / 1e9, ",.0f", " GB/s"),
    )
    for kind in ("pageable", "pinned"):
        for way in ("to the card", "to the host"):
            label = f"{way}, {kind} memory"
            rows += step_rows(results, {"transfers": label}, rate(f"{kind} {way}"))
    rows += step_rows(
        results,
        {"launches": "a launch, of many in a row"},
        lambda r: number(r["microseconds"], ".2f", " us"),
    )
    rows += step_rows(
        results,
        {"launches": "the same in a CUDA graph"},
        lambda r: number(r.get("graph_microseconds"), ".2f", " us"),
    )
    for name in (WAIT, WAITED, READ):
        rows += step_rows(
            results,
            {"waits": name},
            lambda r, name=name: number(r[name]["microseconds"], ".1f", " us"),
        )
    return markdown(("", "measured (median)"), rows)


SECTION = Section(name="card", title="The card", minutes=1.0, steps=_steps, table=_table)
