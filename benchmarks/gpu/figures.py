"""Cells of the contests' tables; what is not known says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gpu.section import Result
from gpu.table import absent, number


def measured(results: Mapping[str, Result], step: str) -> Iterator[tuple[str, Result]]:
    """(name, record) of a step's contenders; a record may be {"failed": why}."""
    yield from results.get(step, {}).get("contenders", {}).items()


def failed_rows(
    results: Mapping[str, Result], step: str, first: Sequence[Any], width: int
) -> Iterator[list[Any]]:
    """A row of `width` cells with why a step has no figures; none where it has them."""
    reason = absent(results, step)
    if reason is not None:
        yield [*first, reason, *[""] * (width - len(first) - 1)]


def contender_row(
    first: Sequence[Any], record: Result, width: int, cells: Callable[[Result], Sequence[Any]]
) -> list[Any]:
    """`first` and the cells of a contender's record, or why it has no figures."""
    if "failed" in record:
        return [*first, f"failed: {record['failed']}", *[""] * (width - len(first) - 1)]
    return [*first, *cells(record)]


def ratio(value: float | None, base: float | None) -> str:
    """`value` over `base`, "" where one of them is missing."""
    return f"{value / base:.2f}" if value and base else ""


def share(value: float | None) -> str:
    """A part of one in percent."""
    return number(None if value is None else 100 * value, ".1f", "%")


def gib(record: Result) -> str:
    """The peak of the card's memory in tensors."""
    return number(record.get("peak_gpu_gib"), ".1f")


def counted(record: Result) -> str:
    """What `gpu.trace.counts` found in one repetition."""
    found = record.get("counts")
    if found is None:
        return "not known"
    return ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in found.items())
