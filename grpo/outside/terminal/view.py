"""What a run tells a page that is drawn anew, where a log gets lines.

A `Console` with a view prints nothing: what it is given goes to the view. `RunLog` and the bars
tell it what a live terminal would draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class SampledText:
    """A completion of a step. label: its verdict and reward, as people read them."""

    label: str
    prompt: str
    completion: str


@dataclass(frozen=True, kw_only=True)
class StepDone:
    """A training step that is done.

    figures: heading -> value. warnings: metric -> a sentence, of those that hold now.
    """

    stage: str
    step: int
    of: int
    figures: Mapping[str, float]
    warnings: Mapping[str, str]
    samples: Sequence[SampledText]


class View(Protocol):
    """A page on which a run is looked at while it works."""

    def doing(self, what: str) -> None:
        """What begins now, until the next thing does."""
        ...

    def begin(self, stage: str, done: int, of: int) -> None:
        """A stage begins, of which `done` steps were done before."""
        ...

    def progress(self, what: str, done: int, total: int | None) -> None:
        """How far a long piece of work is; total is None where nobody knows."""
        ...

    def over(self, what: str) -> None:
        """A long piece of work has ended."""
        ...

    def step(self, step: StepDone) -> None:
        """A training step is done."""
        ...

    def say(self, text: str) -> None:
        """A message, whole lines."""
        ...

    def table(self, title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table of texts."""
        ...
