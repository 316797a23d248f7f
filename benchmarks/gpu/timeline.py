"""Where the card waited, and for what: gaps of its timeline, named by what the host did in them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from gpu.trace import DEVICE, RUNTIME, SPAN, Event, counts, end, span

GAPS, KERNELS = 10, 10
OWN = re.compile(r"(?:^|/)(?:grpo|rollout|rewards|data)/[\w/]+\.py\(\d+\)")
SOURCE = re.compile(r"\.py\(\d+\)")

Interval = tuple[float, float]


def analyze(events: Sequence[Event]) -> dict[str, Any]:
    """Times, gaps, longest kernels and counts of what the annotation holds.

    Without events of a card the timeline is that of operations on the annotation's own thread,
    and the counts are None.
    """
    measured = span(events)
    on_card = [e for e in events if e.get("cat") in DEVICE and e["ts"] >= measured["ts"]]
    work = on_card or [
        e
        for e in events
        if e.get("cat") == "cpu_op" and e["tid"] == measured["tid"] and _within(e, measured)
    ]
    begin, stop = measured["ts"], max([end(measured), *map(end, work)])
    busy = merged((e["ts"], end(e)) for e in work)
    total = sum(b - a for a, b in busy)
    idle = sorted(between(busy, begin, stop), key=lambda gap: gap[0] - gap[1])[:GAPS]
    return {
        "seconds": (stop - begin) / 1e6,
        "busy_seconds": total / 1e6,
        "idle_seconds": (stop - begin - total) / 1e6,
        "timeline": "the card" if on_card else "operations of the main thread",
        "gaps": [_named(gap, events, work, measured) for gap in idle],
        "kernels": longest(work, total),
        "counts": counts(events),
    }


def merged(intervals: Iterable[Interval]) -> list[Interval]:
    """Intervals that overlap or touch as one, in order."""
    found: list[Interval] = []
    for begin, stop in sorted(intervals):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(stop, found[-1][1]))
        else:
            found.append((begin, stop))
    return found


def between(busy: Sequence[Interval], begin: float, stop: float) -> list[Interval]:
    """What `busy` (merged) leaves of [begin, stop]."""
    edges = [begin, *(edge for interval in busy for edge in interval), stop]
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return [(a, b) for a, b in pairs if b > a]


def longest(work: Sequence[Event], total: float) -> list[dict[str, Any]]:
    """The kernels (or operations) that take most time, by name."""
    durations: dict[str, list[float]] = {}
    for event in work:
        durations.setdefault(event["name"], []).append(event.get("dur", 0))
    times = {name: sum(each) for name, each in durations.items()}
    return [
        {"name": name, "ms": times[name] / 1e3, "count": len(each), "share": times[name] / total}
        for name, each in sorted(durations.items(), key=lambda item: -times[item[0]])[:KERNELS]
    ]


def _named(
    gap: Interval, events: Sequence[Event], work: Sequence[Event], measured: Event
) -> dict[str, Any]:
    """A gap with the innermost operation that took most of it, its CUDA call and Python line."""
    thread = _thread_after(gap[1], events, work, measured)
    inside = [e for e in events if e.get("tid") == thread and e["ts"] < gap[1] and end(e) > gap[0]]
    kinds = ("cpu_op", "user_annotation")
    operations = [e for e in inside if e.get("cat") in kinds and e["name"] != SPAN]
    calls = [e for e in inside if e.get("cat") in RUNTIME]
    functions = [e for e in inside if e.get("cat") == "python_function"]
    operation, moment = innermost(operations, gap)
    call, _ = innermost(calls, gap)
    return {
        "ms": (gap[1] - gap[0]) / 1e3,
        "at_ms": (gap[0] - measured["ts"]) / 1e3,
        "operation": operation or "no operation",
        "call": call,
        "where": source(functions, moment),
    }


def innermost(nested: Sequence[Event], gap: Interval) -> tuple[str, float]:
    """The name that is innermost for the longest time of a gap, and a moment when it is.

    "" where for longer than any of them none is running.
    """
    times: dict[str, float] = {}
    slices: dict[str, Interval] = {}

    def note(name: str, a: float, b: float) -> None:
        a, b = max(a, gap[0]), min(b, gap[1])
        if b > a:
            times[name] = times.get(name, 0.0) + b - a
            before = slices.get(name, (0.0, 0.0))
            slices[name] = max((before, (a, b)), key=lambda part: part[1] - part[0])

    stack: list[Event] = []
    at = gap[0]
    for event in sorted(nested, key=lambda e: (e["ts"], -e.get("dur", 0))):
        at = _leave(stack, at, event["ts"], note)
        note(stack[-1]["name"] if stack else "", at, event["ts"])
        at = max(at, event["ts"])
        stack.append(event)
    at = _leave(stack, at, gap[1], note)
    note(stack[-1]["name"] if stack else "", at, gap[1])
    name = max(times, key=times.__getitem__)
    return name, sum(slices[name]) / 2


def source(functions: Sequence[Event], moment: float) -> str:
    """The innermost Python function of this project that runs at a moment, else of any file."""
    running = [
        e["name"]
        for e in sorted(functions, key=lambda e: (e["ts"], -e.get("dur", 0)))
        if e["ts"] <= moment < end(e) and SOURCE.search(e["name"])
    ]
    own = [name for name in running if OWN.search(name)]
    return (own or running or [""])[-1]


def _leave(stack: list[Event], at: float, until: float, note: Any) -> float:
    """Take off the stack what has ended by `until`, noting how long each was innermost."""
    while stack and end(stack[-1]) <= until:
        event = stack.pop()
        note(event["name"], at, end(event))
        at = max(at, end(event))
    return at


def _thread_after(
    moment: float, events: Sequence[Event], work: Sequence[Event], measured: Event
) -> Any:
    """The thread that started what ended a gap; the annotation's where nothing did."""
    for event in work:
        correlation = event.get("args", {}).get("correlation")
        if event["ts"] == moment and correlation is not None:
            for call in events:
                same = call.get("args", {}).get("correlation") == correlation
                if same and call.get("cat") in RUNTIME:
                    return call["tid"]
    return measured["tid"]


def _within(event: Event, measured: Event) -> bool:
    return measured["ts"] <= event["ts"] and end(event) <= end(measured)
