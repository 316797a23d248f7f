"""What a trace of torch.profiler says of launches, copies and waits. Pure functions over events.

An event is one of "traceEvents" in Chrome's format: `cat` (kind), `name`, `tid`, `ts` and `dur` in
microseconds, `args`. What counts is what the host did within the annotation SPAN.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Event = dict[str, Any]

SPAN = "measured"  # the record_function around what is looked at
DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
RUNTIME = ("cuda_runtime", "cuda_driver")
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")  # and ...ExC, ...Ex
WAITS = (
    "cudaStreamSynchronize",
    "cudaDeviceSynchronize",
    "cudaEventSynchronize",
    "cuStreamSynchronize",
    "cuCtxSynchronize",
    "cuEventSynchronize",
    "cudaMemcpy",
)


def read(path: Path) -> list[Event]:
    """The events of a trace that have a beginning and an end, in order of time."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        events = json.load(file)["traceEvents"]
    return sorted((e for e in events if e.get("ph") == "X"), key=lambda event: event["ts"])


def end(event: Event) -> float:
    """When an event ended, in microseconds."""
    return event["ts"] + event.get("dur", 0)


def span(events: Iterable[Event]) -> Event:
    """The annotation around what was measured. Raises ValueError where there is none."""
    for event in events:
        if event.get("cat") == "user_annotation" and event["name"] == SPAN:
            return event
    raise ValueError(f"the trace has no annotation {SPAN!r}")


def counts(events: Sequence[Event]) -> dict[str, int] | None:
    """What the host asked of the card within the annotation; None where the profiler saw no card.

    launches: kernels, a replayed graph once. host_to_device: copies; blocking_host_to_device: of
    these, from pageable memory, or waited for at once. synchronizations: the host waits for the
    card for any other reason, also for a copy to the host.
    """
    measured = span(events)
    if not any(event.get("cat") in RUNTIME for event in events):
        return None
    begin, stop = measured["ts"], end(measured)
    # a call of the driver that the runtime makes for one of its own has the same correlation
    distinct: dict[Any, Event] = {}
    for event in events:
        if event.get("cat") in RUNTIME and begin <= event["ts"] < stop:
            distinct.setdefault(event.get("args", {}).get("correlation", id(event)), event)
    calls = list(distinct.values())
    copies = {
        e["args"]["correlation"]: e["name"]
        for e in events
        if e.get("cat") == "gpu_memcpy" and "correlation" in e.get("args", {})
    }
    following: dict[int, Event | None] = {}
    last: dict[Any, Event] = {}
    for call in calls:
        if call["tid"] in last:
            following[id(last[call["tid"]])] = call
        last[call["tid"]] = call
    found = dict.fromkeys(("launches", "synchronizations"), 0)
    found |= dict.fromkeys(("host_to_device", "blocking_host_to_device", "device_to_host"), 0)
    waited_for: set[int] = set()  # waits that belong to a copy to the device
    for call in calls:
        kind = copies.get(call.get("args", {}).get("correlation"), "")
        found["launches"] += call["name"].startswith(LAUNCHES)
        found["device_to_host"] += "DtoH" in kind
        if "HtoD" in kind:
            after = following.get(id(call))
            waits = after is not None and after["name"] in WAITS
            found["host_to_device"] += 1
            found["blocking_host_to_device"] += waits or "Pageable" in kind
            waited_for.update([id(after)] if waits else [], [id(call)])
        if call["name"] in WAITS and id(call) not in waited_for:
            found["synchronizations"] += 1
    return found


def write_small(events: Sequence[Event], path: Path, limit: int) -> str:
    """Put a trace of at most `limit` bytes into `path` (gzip). What was left out, else ""."""
    kept, left_out = list(events), ""
    while True:
        packed = gzip.compress(json.dumps({"traceEvents": kept}).encode(), 6, mtime=0)
        if len(packed) <= limit or len(kept) < 2:
            break
        if any(e.get("cat") == "python_function" for e in kept):
            kept = [e for e in kept if e.get("cat") != "python_function"]
            left_out = "Python's functions"
        else:
            kept = kept[: len(kept) // 2]
            left_out = (
                f"Python's functions, and what is after {end(kept[-1]) - kept[0]['ts']:.0f} us"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(packed)
    return left_out
