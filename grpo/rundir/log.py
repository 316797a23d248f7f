"""What a run writes and shows: metrics.jsonl, trackers, and a live view in the terminal.

`metrics.jsonl` has one line a step. The live view is drawn on a terminal, or by the console's own
view, as in a notebook; elsewhere each step is one plain line, so that logs of batch jobs stay
readable.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from grpo.errors import RunError
from grpo.errors.printable import printable, redacted
from grpo.outside.terminal.console import Console, Said, TextColumn
from grpo.outside.terminal.view import SampledText, StepDone
from grpo.rewards.sentinel import warnings
from grpo.rundir.health import Health
from grpo.types import Metrics

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 60  # of a sparkline, in characters
SHOWN = {  # metric -> heading in the live view and in plain lines
    "reward": "reward",
    "accuracy": "accuracy",
    "completions/mean_length": "length",
    "entropy": "entropy",
    "frac_reward_zero_std": "dead groups",
    "tokens_per_second": "tokens/s",
}
SHOWN_WITHOUT_REWARD = {  # supervised stages
    "loss": "loss",
    "mean_token_accuracy": "token accuracy",
    "learning_rate": "learning rate",
}


def sparkline(values: Sequence[float]) -> str:
    """The last `WIDTH` values as one line of block characters, scaled to their own range."""
    tail = list(values)[-WIDTH:]
    if not tail:
        return ""
    low, high = min(tail), max(tail)
    span = (high - low) or 1.0
    return "".join(BARS[int((v - low) / span * (len(BARS) - 1))] for v in tail)


class RunLog:
    """One stage's metrics file, trackers and view. Use as a context manager."""

    def __init__(
        self,
        folder: Path,
        *,
        title: str,
        max_steps: int,
        done: int = 0,
        trackers: Sequence[str] = (),
        config: dict[str, Any] | None = None,
        console: Console | None = None,
    ) -> None:
        self.path = folder / "metrics.jsonl"
        self.console = console or Console(file=sys.stderr, highlight=False)
        self.title, self.max_steps, self._done = title, max_steps, done
        self.history: dict[str, list[float]] = {}
        self.current: set[str] = set()  # the headings that the last step has a figure for
        self.samples: Sequence[SampledText] = ()
        self.tripped: dict[str, str] = {}  # metric of the hack sentinel -> its warning
        self._accelerator = _trackers(folder, trackers, config or {}) if trackers else None
        self._health = Health()
        for line in _lines(self.path):  # of a run that goes on
            self._health.observe(line)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - closed in __exit__
        self._progress = Progress(
            TextColumn("{task.description}", style="bold"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._bar = self._progress.add_task(title, total=max_steps, completed=done)
        self._live = (
            Live(console=self.console, refresh_per_second=4, get_renderable=self._view)
            if self.console.is_terminal
            else None
        )

    def __enter__(self) -> RunLog:
        if self.console.view is not None:
            self.console.view.begin(self.title, self._done, self.max_steps)
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()
        self._file.close()
        if self._accelerator is not None:
            self._accelerator.end_training()

    def say(self, text: str) -> None:
        """One line above the live view."""
        self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def task(self, description: str) -> Iterator[Callable[[int, int], None]]:
        """A second bar for something that is not a step; call what it yields with (done, total)."""
        view = self.console.view
        if view is not None:
            try:
                yield lambda done, total: view.progress(description, done, total)
            finally:
                view.over(description)
            return
        bar = self._progress.add_task(description, total=None)
        try:
            yield lambda done, total: self._progress.update(bar, completed=done, total=total)
        finally:
            self._progress.remove_task(bar)

    def step(self, step: int, metrics: Metrics, samples: Sequence[SampledText] = ()) -> None:
        """Write and show one step."""
        rounded = {name: round(float(value), 6) for name, value in metrics.items()}
        line = {"step": step, "time": round(time.time(), 3), **rounded}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._accelerator is not None:
            self._accelerator.log(metrics, step=step)
        sampled = "reward" in metrics or "frac_unscored" in metrics
        shown = _with_verifiers(metrics) if sampled else SHOWN_WITHOUT_REWARD
        shown = {name: heading for name, heading in shown.items() if name in metrics}
        for name, heading in shown.items():
            self.history.setdefault(heading, []).append(metrics[name])
        self.current = set(shown.values())
        self.samples = samples
        self._progress.update(self._bar, completed=step)
        tripped = {
            warning.partition(" ")[0]: f"look at some completions: {warning}"
            for warning in warnings(metrics)
        }
        tripped |= self._health.observe(metrics)
        news, self.tripped = [w for n, w in tripped.items() if n not in self.tripped], tripped
        view = self.console.view
        if view is not None:
            figures = {heading: metrics[name] for name, heading in shown.items()}
            view.step(
                StepDone(
                    stage=self.title,
                    step=step,
                    of=self.max_steps,
                    figures=figures,
                    warnings=tripped,
                    samples=samples,
                )
            )
        elif self._live is None:
            for warning in news:  # once, until it has cleared
                self.say(f"{self.title} step {step}: {warning}")
            said = [f"{heading} {metrics[name]:.3g}" for name, heading in shown.items()]
            if sampled and "reward" not in metrics:
                said = ["no completion was scored", *said]
            self.say(f"{self.title} step {step}/{self.max_steps}  {'  '.join(said)}")

    def position(self) -> int:
        """Bytes of metrics.jsonl that are safely on disk now."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def _view(self) -> Group:
        table = Table.grid(padding=(0, 2))
        for heading, values in self.history.items():
            last = f"{values[-1]:.4g}" if heading in self.current else "-"
            table.add_row(heading, last, Text(sparkline(values), style="cyan"))
        parts: list[Any] = [self._progress, table]
        parts += [Text(warning, style="yellow") for warning in self.tripped.values()]
        if self.samples:
            lines = [f"[{s.label}] {s.prompt} {s.completion}" for s in self.samples]
            said = "\n".join(map(printable, lines))
            text = Said(said, overflow="ellipsis", no_wrap=True)
            parts.append(Panel(text, title="samples of this step", title_align="left"))
        return Group(*parts)


def _lines(path: Path) -> Iterator[Metrics]:
    """What an earlier process wrote of this stage, step by step."""
    if path.exists():
        with open(path, encoding="utf-8", newline="\n") as stream:
            yield from (json.loads(line) for line in stream)


def _with_verifiers(metrics: Metrics) -> dict[str, str]:
    """`SHOWN`, and after "accuracy" that of each verifier by its metric, if there are several."""
    each = {key: key for key in metrics if key.startswith("accuracy/")}
    first = {name: SHOWN[name] for name in ("reward", "accuracy")}
    return first | each | SHOWN


def _trackers(folder: Path, names: Sequence[str], config: dict[str, Any]) -> Any:
    from accelerate import Accelerator  # lazy: pulls torch
    from accelerate.tracking import get_available_trackers

    usable = {str(tracker) for tracker in get_available_trackers()}
    for name in names:
        if name not in usable:  # accelerate would leave it out without a word
            raise RunError(
                f"run.trackers names {name!r}, whose package is not installed: pip install {name}"
            )
    accelerator = Accelerator(log_with=list(names), project_dir=str(folder))
    accelerator.init_trackers("grpo", config=_flat(redacted(config)))
    return accelerator


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"section.key": value}, of types that every tracker takes."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            plain = isinstance(value, int | float | str | bool)
            flat[prefix + key] = value if plain else json.dumps(value)
    return flat
