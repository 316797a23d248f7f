"""What a section of the GPU measurements is: steps, each on disk the moment it ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Result = dict[str, Any]  # plain JSON


@dataclass(frozen=True, kw_only=True)
class Setup:
    """On what and how large everything is measured.

    device: "cuda" or "cpu". tiny: the smallest model and shapes, once; shows that a section runs to
    its table and nothing else. assets: folder in which models are made once, and where
    the kit puts what it brought. folder: what this run leaves (state, logs, traces).
    again: what failed before is tried again.
    """

    device: str
    tiny: bool
    assets: Path
    folder: Path
    threads: int
    again: bool = False


@dataclass(frozen=True, kw_only=True)
class Step:
    """One measurement; what `run` returns is on disk before the next begins.

    name: [a-z0-9.-]+, unique in its section. needs: names of `gpu.needs`; a step of which one is
    missing is "not run", with the reason. A step that raises is recorded as failed, with the error;
    one that has figures all the same returns them with the reason under "failed". After an error
    the steps that follow get a new process.
    """

    name: str
    run: Callable[[Setup], Result]
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the measurements that takes `minutes` on an H200 (an estimate until it was run).

    steps: all of them, in order, cheap to make (nothing is imported or loaded yet).
    table: Markdown from {step: result} of a finished or unfinished section. A failed step has its
    reason under "failed", beside the figures there are; one that was skipped has it under
    "not run"; one that was never come to is missing. `gpu.table` has words for all of them.
    """

    name: str
    title: str
    minutes: float
    steps: Callable[[Setup], Sequence[Step]]
    table: Callable[[Mapping[str, Result]], str]
