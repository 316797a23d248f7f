"""`grpo show RUN`: the results and metrics of a run, from its files alone."""

from __future__ import annotations

import itertools
import json
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.table import Column, Table
from rich.text import Text

from grpo.commands.options import check_folder
from grpo.commands.summary import print_heldout, print_models, print_stages
from grpo.errors import RunError
from grpo.outside.files.durable import read_json
from grpo.outside.files.lines import split_lines
from grpo.outside.terminal.console import Console
from grpo.rundir.log import BARS

FIRST = (
    "reward",
    "accuracy",
    "completions/mean_length",
    "entropy",
    "frac_reward_zero_std",
    "loss",
    "kl",
)
WIDTH = 40
LARGEST = 1e300  # larger values are not drawn: their sums would be infinite


def main(arguments: Namespace) -> int:
    """Show the run that the command line names; 0. Raises GrpoError."""
    print_run(Path(check_folder(arguments.run, "RUN")))
    return 0


def print_run(folder: Path, console: Console | None = None) -> None:
    """Print the summary and one sparkline per metric of every stage. Raises RunError."""
    console = console or Console()
    files = sorted(folder.rglob("metrics.jsonl"))
    summary = folder / "summary.json"
    started = folder / "resolved.json"
    if not started.is_file() and not summary.is_file() and folder / "metrics.jsonl" not in files:
        inside = ", ".join(str(path.parent) for path in sorted(folder.rglob("resolved.json")))
        hint = f" Runs inside it: {inside}." if inside else ""
        raise RunError(f"{str(folder)!r} holds no run: there is no resolved.json in it.{hint}")
    console.print(str(folder), style="bold", highlight=False)
    stages = _stages(started) if started.is_file() else []
    if len(stages) > 1:
        kinds = {stage["name"]: stage["kind"] for stage in stages}
        done = {name: folder / name / "summary.json" for name in kinds}
        found = {name: read_json(at) for name, at in done.items() if at.is_file()}
        with _read(", ".join(str(done[name]) for name in found)):
            print_stages(kinds, found, console)
    if summary.is_file():
        with _read(str(summary)):
            _print_summary(read_json(summary), folder, console)
    else:
        console.print(f"not finished; continue with: grpo train --resume {folder}")
    for file in files:
        steps = read_metrics(file)
        if steps:
            title = str(file.parent.relative_to(folder)).replace(".", "metrics", 1)
            console.print(metrics_table(steps, f"{title}: {len(steps)} steps"))


@contextmanager
def _read(said: str) -> Iterator[None]:
    """Raise RunError where a file is JSON, but not what a run writes."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        if isinstance(error, RunError | UnicodeEncodeError):  # said already, or of the terminal
            raise
        reason = f"{type(error).__name__}: {error}"
        raise RunError(
            f"{said} is damaged: it does not hold what a run writes ({reason})"
        ) from error


def _stages(resolved: Path) -> list[dict[str, Any]]:
    """The stages of a run, by its resolved.json. Raises RunError."""
    stages = read_json(resolved).get("stages")
    if not isinstance(stages, list) or not all(isinstance(s, dict) for s in stages):
        raise RunError(f"{resolved} is damaged: it has no list of stages")
    for stage in stages:
        name = stage.get("name")
        if not isinstance(name, str) or not isinstance(stage.get("kind"), str) or "/" in name:
            raise RunError(f"{resolved} is damaged: {name!r} is the name of no stage")
    return stages


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, without a last line that a crash cut off."""
    try:
        lines = split_lines(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise RunError(f"{str(file)!r} is not UTF-8 text: {error}") from error
    steps: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            step = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number < len(lines):
                raise RunError(f"{str(file)!r} line {number} is not JSON.") from error
            continue
        if not isinstance(step, dict):
            raise RunError(f"{str(file)!r} line {number} is no object with metrics.")
        steps.append(step)
    return steps


def metrics_table(steps: list[dict[str, Any]], title: str) -> Table:
    """A table of each metric's first, last, least and greatest value, and its curve."""
    names = {name for step in steps for name, value in step.items() if _is_number(value)}
    names -= {"step", "time"}
    ordered = [n for n in FIRST if n in names] + sorted(names - set(FIRST))
    table = Table(
        Column("metric", overflow="fold"), "first", "last", "min", "max", "curve", title=title
    )
    for name in ordered:
        values = [float(step[name]) for step in steps if _is_number(step.get(name))]
        numbers = (values[0], values[-1], min(values), max(values))
        table.add_row(name, *(f"{v:.4g}" for v in numbers), Text(curve(values), style="cyan"))
    return table


def curve(values: list[float]) -> str:
    """All values as at most WIDTH block characters, each the mean of its share of the steps."""
    cells = min(WIDTH, len(values))
    cuts = [i * len(values) // cells for i in range(cells + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(cuts)]
    low, span = min(means), (max(means) - min(means)) or 1.0
    top = len(BARS) - 1
    return "".join(BARS[min(top, int((v - low) / span * len(BARS)))] for v in means)


def _print_summary(summary: dict[str, Any], folder: Path, console: Console) -> None:
    if "models" in summary:
        print_models(summary, console)
    print_heldout(summary, folder, console)
    before, after = summary.get("before") or {}, summary.get("after") or {}
    if before or after:
        found = {"before": _by_reward(before), "after": _by_reward(after)}
        found = {when: figures for when, figures in found.items() if figures}
        table = Table("held-out", *found, title="summary")
        for name in dict.fromkeys(name for figures in found.values() for name in figures):
            shown = [figures.get(name) for figures in found.values()]
            if not any(isinstance(value, dict) for value in shown):
                # details by k and by behavior: in summary.json
                table.add_row(name, *map(_shown, shown))
        console.print(table)
    for name, value in summary.items():
        if name not in ("before", "after") and isinstance(value, str | int | float):
            console.print(f"{name}: {_shown(value)}", highlight=False)


def _by_reward(evaluation: dict[str, Any]) -> dict[str, Any]:
    """The figures of an evaluation, followed by those of each reward under its name."""
    named = {
        f"{name}: {figure}": value
        for name, figures in evaluation.get("rewards", {}).items()
        for figure, value in figures.items()
    }
    return evaluation | named


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " to ".join(_shown(v) for v in value)
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) < LARGEST  # so is no NaN, and no infinity
