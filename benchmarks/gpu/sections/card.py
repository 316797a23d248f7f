"""The card itself: matrix rates, memory, transfers, launches; measured, not looked up."""

from __future__ import annotations

from collections.abc import Mapping

from gpu.section import Result, Section, Setup, Step
from gpu.table import markdown, step_rows


def _steps(setup: Setup) -> list[Step]:
    return []


def _table(results: Mapping[str, Result]) -> str:
    return markdown(("",), step_rows(results, {}))


SECTION = Section(name="card", title="The card", minutes=1.0, steps=_steps, table=_table)
