"""Print the end of a run: the result of its last stage, and a table of all stages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from grpo.evaluation import figures
from grpo.outside.terminal.console import Console


def print_summary(summary: dict[str, Any], folder: Path, console: Console) -> None:
    """Print the result table of a stage and the paths of model and run."""
    if "before" in summary:
        title = f"{summary['recipe']} (seed {summary['seed']}): held-out tasks"
        table = Table("", *_right("before", "after"), title=title)
        for row in figures.rows(summary["before"], summary["after"]):
            table.add_row(*row)
        console.print(table)
        console.print(
            f"{summary['steps']} steps of reinforcement learning in {summary['seconds']:.0f} s",
            markup=False,
        )
    if "models" in summary:
        print_models(summary, console)
    if "model" in summary:
        console.print(f"model: {summary['model']}", markup=False, soft_wrap=True)
    console.print(f"run:   {folder}", markup=False, soft_wrap=True)


def print_stages(kinds: Mapping[str, str], summaries: Mapping[str, Any], console: Console) -> None:
    """Print a line for each stage, then the tables of all eval stages except the last stage.

    A line has the summary's `result`; for an rl stage it is made from the figures.
    """
    table = Table("stage", "kind", "result", *_right("seconds"), title="stages")
    for name, kind in kinds.items():
        summary = summaries.get(name)
        if summary is None:
            table.add_row(name, kind, "not done", "")
        else:
            table.add_row(name, kind, _result(summary), f"{summary.get('seconds', 0):.0f}")
    console.print(table)
    for name, kind in list(kinds.items())[:-1]:  # the last one is for print_summary
        if kind == "eval" and name in summaries:
            print_models(summaries[name], console)


def print_models(summary: dict[str, Any], console: Console) -> None:
    """Print the models of an eval stage side by side, each figure with its 95% interval.

    `summary["models"]` maps a model's name to {heading: [value, low, high], a number or None}.
    """
    title = f"{summary['recipe']} (seed {summary['seed']}): {summary['stage']}"
    anything = console.options.update(max_width=10_000)
    for models_are_rows, between in ((True, " "), (False, " "), (False, "\n")):
        table = models_table(summary, title, models_are_rows, between)
        if console.measure(table, options=anything).maximum <= console.width:
            break
    console.print(table)
    for name, counts in summary.get("not_applicable", {}).items():
        total = summary["details"][name]["samples"]
        said = ", ".join(f"{title} to {count}" for title, count in counts.items())
        console.print(f"{name}: does not apply, of {total} completions: {said}", markup=False)
    if len(summary["models"]) > 1:
        figure = summary.get("figure", "accuracy")  # runs of earlier versions knew no other
        said = f"difference: {figure} on the same tasks minus that of {summary['baseline']}"
        console.print(said, markup=False)


def models_table(summary: dict[str, Any], title: str, models_are_rows: bool, between: str) -> Table:
    """The table of `print_models`; `between` stands between a figure and its interval."""
    models: dict[str, dict[str, Any]] = summary["models"]
    headings = list(dict.fromkeys(heading for row in models.values() for heading in row))
    cells = [
        [name, *(_cell(row.get(h), between) for h in headings)] for name, row in models.items()
    ]
    rows = [["model", *(heading.replace("_", " ") for heading in headings)], *cells]
    if not models_are_rows:
        rows = [list(row) for row in zip(*rows, strict=True)]
    table = Table(rows[0][0], *_right(*rows[0][1:]), title=title)
    for row in rows[1:]:
        table.add_row(*row)
    return table


def _right(*headings: str) -> list[Column]:
    return [Column(heading, justify="right") for heading in headings]


def _cell(value: Any, between: str) -> str:
    if value is None:
        return "-"
    if isinstance(value, list | tuple):
        digits = 1 if max(map(abs, value)) > 2 else 3  # lengths need no thousandths
        middle, low, high = (f"{number:.{digits}f}" for number in value)
        return f"{middle}{between}[{low}, {high}]"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _result(summary: dict[str, Any]) -> str:
    if "result" in summary:
        return str(summary["result"])
    if "headline" in summary.get("after", {}):
        before, after = summary["before"], summary["after"]
        lengths = f"length {before['mean_length']:.0f} -> {after['mean_length']:.0f}"
        return f"{figures.change(before, after)}, {lengths}"
    return ""
