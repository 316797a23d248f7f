"""Every test marked `gpu`, with its outcome, its seconds and the reason of a failure."""

from __future__ import annotations

from collections.abc import Mapping

from gpu import marked
from gpu.section import Result, Section, Setup, Step
from gpu.tested import steps_of, table_of


def _steps(setup: Setup) -> list[Step]:
    """A step a file. tiny: the first test of each."""
    files = marked.files()
    session = marked.Session(
        files,
        setup.folder / "tests.jsonl",
        on_cpu=setup.device == "cpu",
        again=setup.again,
        first_only=setup.tiny,
    )
    return steps_of(session, files)


def _table(results: Mapping[str, Result]) -> str:
    return table_of(results, marked.files())


SECTION = Section(name="tests", title="Tests on the card", minutes=4.0, steps=_steps, table=_table)
