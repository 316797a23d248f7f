"""Print the end of a run: the result of its last stage, and a table of all stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from grpo.evaluation import figures, paired
from grpo.outside.files.durable import read_json
from grpo.outside.terminal.console import Console
from grpo.rundir.run_folder import SETTINGS, objects_in


def print_summary(summary: dict[str, Any], folder: Path, console: Console) -> None:
    """Print the result table of a stage and the paths of model and run."""
    print_heldout(summary, folder, console)
    if "before" in summary:
        console.print(
            f"{_steps(summary['steps'])} of reinforcement learning in {summary['seconds']:.0f} s",
            markup=False,
        )
    if "models" in summary:
        print_models(summary, console)
    if "model" in summary:
        console.print(f"model: {summary['model']}", markup=False, soft_wrap=True)
    console.print(f"run:   {folder}", markup=False, soft_wrap=True)


def print_heldout(summary: Mapping[str, Any], folder: Path, console: Console) -> None:
    """Print the held-out figures of an rl stage, and how to measure later what was not."""
    if not {"before", "paired"} <= summary.keys():  # of another stage, or of an earlier version
        return
    title = f"{summary['recipe']} (seed {summary['seed']}): held-out tasks"
    of_python = _has_objects(folder)
    later = f"grpo.load_run({str(folder)!r}).evaluate(…)" if of_python else f"grpo eval {folder}"
    if summary["after"] is None:
        said = "no held-out tasks were asked (eval.num_tasks = 0); to measure before and after: "
        later += "" if of_python else f" --baseline {summary['stage']}.eval.num_tasks=200"
    elif summary["before"] is None:
        table = Table("", *_right("after", "95% interval"), title=title)
        for row in figures.rows(summary["after"]):
            table.add_row(*row)
        console.print(table)
        said = "not measured before training (eval.before = false), so no gain; to measure it: "
        later += "" if of_python else " --baseline"
    else:
        print_paired(summary["paired"], ("before", "after"), title, console)
        return
    console.print(f"{said}{later}", markup=False, soft_wrap=True)


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"


def _has_objects(folder: Path) -> bool:
    """Whether the run in a folder was started with Python objects, which a shell does not have."""
    settings = folder / SETTINGS
    return settings.is_file() and bool(objects_in(read_json(settings)))


def print_paired(
    rows: Sequence[Mapping[str, Any]], models: tuple[str, str], title: str, console: Console
) -> None:
    """Print `paired.compared` as a table; models: the headings of its first and second value.

    Where the terminal is too narrow, intervals stand below their differences.
    """
    anything = console.options.update(max_width=10_000)
    table = _paired_table(rows, models, title, " ")
    if console.measure(table, options=anything).maximum > console.width:
        table = _paired_table(rows, models, title, "\n")
    console.print(table)
    apart = any(paired.excludes_zero(row) for row in rows)
    said = "* the interval excludes 0" if apart else "no interval excludes 0"
    some = [row for row in rows if row["pairs"] < row["of"]]
    of = "".join(f"; {row['figure']}: {row['pairs']} of {row['of']} pairs scored" for row in some)
    console.print(f"pairs: the same task and sampling noise; {said}{of}", markup=False)


def _paired_table(
    rows: Sequence[Mapping[str, Any]], models: tuple[str, str], title: str, between: str
) -> Table:
    heading = f"difference{between}[95% interval]"
    gaps = Column(heading, justify="right", no_wrap=True)
    table = Table("", *_right(*models), gaps, title=title)
    for row in rows:
        name, gap, mark = row["figure"], "-", ""
        values = [figures.shown_as(name, row[when]) for when in ("before", "after")]
        if row["ci"] is not None:
            digits = 1 if name == figures.LENGTH else 3
            rise, low, high = (f"{x:+.{digits}f}" for x in (row["difference"], *row["ci"]))
            mark = " *" if paired.excludes_zero(row) else "  "
            gap = f"{rise}{between}[{low}, {high}]{mark}"
            if between != " ":
                gap = f"{rise}{mark}{between}[{low}, {high}]"
        table.add_row(name, *values, gap)
    return table


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

    `summary["models"]` maps a model's name to {heading: [value, low, high], a number or None}. The
    last model is compared with the baseline in a paired table; summary.json has those of all.
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
    if rows := summary.get("paired"):  # runs of earlier versions have none
        name, baseline = list(rows)[-1], summary["baseline"]
        title = f"{title}: {name} beside {baseline}"
        print_paired(rows[name], (str(baseline), name), title, console)


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
    if "after" not in summary:
        return ""
    before, after = summary["before"], summary["after"]
    if after is None:
        return f"{summary['steps']} steps, not evaluated"
    first = "" if before is None else f"{before['mean_length']:.0f} -> "
    return f"{figures.change(before, after)}, length {first}{after['mean_length']:.0f}"
