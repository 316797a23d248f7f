"""A run at a glance: lines of text, a table for a terminal, a card for a notebook.

The card is one piece of HTML without scripts, with nothing from the network, in the colors of the
page. What a model wrote may hold anything, so all text is escaped, and no library of the page reads
it as mathematics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from grpo.commands.api import html
from grpo.config.config import resolved
from grpo.evaluation import figures, paired
from grpo.rundir.run_folder import objects_in

if TYPE_CHECKING:
    from grpo.commands.api.run import Run

_DIFFERENCE = "difference [95% interval]"


def text(run: Run) -> str:
    """Three lines: state and result, folder, what to do next."""
    where = f"grpo.load_run({str(run.folder)!r})"
    return (
        f"Run {run.recipe.name!r}: {'; '.join([run.state, *result(run)])}\n"
        f"  folder  {run.folder}\n"
        f"  next    {where if run.state != 'finished' else 'run'}{_next(run)}"
    )


def terminal(run: Run) -> Any:
    """The same for rich, with a table of figures."""
    from rich.console import Group
    from rich.table import Column, Table
    from rich.text import Text

    headings, rows = table(run)
    shown = Table(*(Column(h, justify="right" if h else "left") for h in headings))
    for row in rows:
        shown.add_row(*map(Text, row))
    first, *others = text(run).split("\n")
    return Group(Text(first, style="bold"), *([shown] if rows else []), Text("\n".join(others)))


def card(run: Run) -> str:
    """A card: state, figures, the curve of the reward, three completions with their scores."""
    headings, rows = table(run)
    first = "; ".join([run.state, *result(run)])
    where = f"<code>{html.safe(str(run.folder))}</code>"
    return html.box(
        "grpo-run",
        [
            f"<b>{html.safe(run.recipe.name)}</b>: {html.safe(first)}",
            html.table(headings, rows) if rows else "",
            _curve(run),
            _samples(run),
            f'<span style="opacity:.75">{where}<br><code>run{html.safe(_next(run))}</code></span>',
        ],
    )


# -- figures --------------------------------------------------------------------------------


def result(run: Run) -> list[str]:
    """The result of the last finished stage in words; [] where none is finished."""
    found = list(run.summaries.values())
    if not found:
        return []
    summary = found[-1]
    if summary.get("after"):
        said = figures.change(summary.get("before"), summary["after"])
        return [said, f"{summary['steps']} steps in {summary['seconds']:.0f} s"]
    if "result" in summary:
        return [str(summary["result"])]
    return [f"models: {', '.join(summary['models'])}"] if "models" in summary else []


def table(run: Run) -> tuple[list[str], list[Sequence[str]]]:
    """(headings, rows) of the last finished stage's figures; no rows where it has none."""
    found = list(run.summaries.values())
    summary = found[-1] if found else {}
    models: dict[str, dict[str, Any]] = summary.get("models", {})
    compared: Any = summary.get("paired")
    if len(models) == 2 and compared:  # of an eval stage: model -> its rows beside the baseline
        ((name, compared),) = compared.items()
        return ["", summary["baseline"], name, _DIFFERENCE], [_paired(row) for row in compared]
    if models:
        names = list(dict.fromkeys(name for of in models.values() for name in of))
        cells = [[title, *(_cell(of.get(name)) for name in names)] for title, of in models.items()]
        return ["", *(name.replace("_", " ") for name in names)], list(cells)
    if compared:
        return ["", "before", "after", _DIFFERENCE], [_paired(row) for row in compared]
    if summary.get("after"):
        return ["", "after", "95% interval"], list(figures.rows(summary["after"]))
    return [], []


def _paired(row: dict[str, Any]) -> list[str]:
    name, gap = row["figure"], "-"
    if row["ci"] is not None:
        digits = 1 if name == figures.LENGTH else 3
        rise, low, high = (f"{x:+.{digits}f}" for x in (row["difference"], *row["ci"]))
        gap = f"{rise} [{low}, {high}]{' *' if paired.excludes_zero(row) else ''}"
    return [name, *(figures.shown_as(name, row[when]) for when in ("before", "after")), gap]


def _cell(value: Any) -> str:
    if isinstance(value, list | tuple):
        middle, low, high = (f"{x:.3f}" for x in value)
        return f"{middle} [{low}, {high}]"
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def _next(run: Run) -> str:
    """What can be called now."""
    if run.state.startswith("stopped"):
        given = objects_in(resolved(run.recipe))
        return ".resume(rewards=[…], dataset=…)" if given else ".resume()"
    kinds = {stage.kind for stage in run.recipe.stages}
    looks = [".metrics", ".plot()"] if kinds != {"eval"} else [".summary"]
    looks += [".completions()"] if "rl" in kinds else []
    leaves = run.state == "finished" and kinds != {"eval"}
    return "  ".join(looks + ([".generate([...])", ".save(folder)"] if leaves else []))


# -- pieces of the card ---------------------------------------------------------------------


def _curve(run: Run) -> str:
    """The reward of every step, or the loss; "" for fewer than two steps."""
    metrics = run.metrics
    name = next((n for n in ("reward", "loss") if n in metrics.columns), "")
    return html.curve(name, [float(v) for v in metrics[name] if v is not None]) if name else ""


def _samples(run: Run) -> str:
    """The best, the middle and the worst completion of the last step that has any."""
    stages = [stage for stage in run.recipe.stages if stage.kind == "rl"]
    began = [stage for stage in stages if any((run.place(stage) / "ledger").glob("step_*.gz"))]
    if not began:
        return ""
    rows: Any = run.completions(stage=began[-1].name)
    ordered = rows[rows["reward"].notna()].sort_values("reward", ascending=False, kind="stable")
    count = len(ordered)
    places = dict.fromkeys([0, count // 2, count - 1]) if count else {}
    shown = "".join(_sample(ordered.iloc[place]) for place in places)
    return html.small("completions of the last step: best, middle, worst") + shown if shown else ""


def _sample(row: Any) -> str:
    names = list(row.index)
    parts = names[names.index("reward") + 1 : names.index("advantage")]
    names = ["reward", *(parts if len(parts) > 1 else [])]
    scores = [f"{name} {row[name]:.4g}" for name in names if row[name] == row[name]]  # no NaN
    return html.sample(", ".join(scores), str(row["prompt"]), str(row["completion"]))
