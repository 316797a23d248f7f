"""A run at a glance: lines of text, a table for a terminal, a card for a notebook.

The card is one piece of HTML without scripts, with nothing from the network, in the colors of the
page. What a model wrote may hold anything, so all text is escaped, and no library of the page reads
it as mathematics.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from grpo.config.config import resolved
from grpo.evaluation import figures, paired
from grpo.rundir.run_folder import objects_in

if TYPE_CHECKING:
    from grpo.commands.api.run import Run

SHOWN = 600  # characters of a text in the card
_DIFFERENCE = "difference [95% interval]"
_WIDTH, _HEIGHT = 440, 90  # of the curve
_LINE = "1px solid rgba(128,128,128,.4)"
_CELL = "padding:.15em .8em .15em 0;text-align:{};white-space:nowrap"
_PART = '<div style="margin-top:.7em">{}</div>'


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


def html(run: Run) -> str:
    """A card: state, figures, the curve of the reward, three completions with their scores."""
    headings, rows = table(run)
    first = "; ".join([run.state, *result(run)])
    parts = [f"<b>{_safe(run.recipe.name)}</b>: {_safe(first)}"]
    if rows:
        parts.append(_table(headings, rows))
    parts += [_curve(run), _samples(run)]
    where = f"<code>{_safe(str(run.folder))}</code>"
    parts.append(f'<span style="opacity:.75">{where}<br><code>run{_safe(_next(run))}</code></span>')
    inside = "".join(_PART.format(part) for part in parts if part)
    ignored = "tex2jax_ignore mathjax_ignore"  # or dollar signs would become formulas
    return (
        f'<div class="grpo-run {ignored}" style="border:{_LINE};border-radius:6px;'
        f'padding:.1em 1em .8em;max-width:60em;overflow-x:auto">{inside}</div>'
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


def _safe(value: Any) -> str:
    from grpo.commands.api.frames import clean

    return escape(clean(value), quote=True)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str, rule: str) -> str:
        sides = ["left", *["right"] * (len(cells) - 1)]
        each = "".join(
            f'<{tag} style="{_CELL.format(side)};{rule}">{_safe(cell)}</{tag}>'
            for side, cell in zip(sides, cells, strict=True)
        )
        return f'<tr style="background:none">{each}</tr>'

    body = "".join(line(row, "td", "border:none") for row in rows)
    head = line(headings, "th", f"border:none;border-bottom:{_LINE}")
    return f'<table style="border-collapse:collapse;border:none">{head}{body}</table>'


def _curve(run: Run) -> str:
    """The reward of every step, or the loss, as an SVG; "" for fewer than two steps."""
    metrics = run.metrics
    name = next((n for n in ("reward", "loss") if n in metrics.columns), "")
    if not name:
        return ""
    values = [float(v) for v in metrics[name] if v is not None and abs(float(v)) < 1e300]
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    points = " ".join(
        f"{i * (_WIDTH - 8) / (len(values) - 1) + 4:.1f},"
        f"{_HEIGHT - 4 - (value - low) / span * (_HEIGHT - 8):.1f}"
        for i, value in enumerate(values)
    )
    said = f"{name} of {len(values)} steps: {values[0]:.4g} to {values[-1]:.4g}"
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img" '
        f'aria-label="{_safe(said)}" style="max-width:100%;border-bottom:{_LINE}">'
        f'<polyline points="{points}" fill="none" stroke="#4a90d9" stroke-width="2"/></svg>'
        f'<div style="font-size:85%;opacity:.75">{_safe(said)} '
        f"(lowest {low:.4g}, highest {high:.4g})</div>"
    )


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
    heading = "completions of the last step: best, middle, worst"
    return f'<div style="font-size:85%;opacity:.75">{heading}</div>{shown}' if shown else ""


def _sample(row: Any) -> str:
    names = list(row.index)
    parts = names[names.index("reward") + 1 : names.index("advantage")]
    names = ["reward", *(parts if len(parts) > 1 else [])]
    scores = [f"{name} {row[name]:.4g}" for name in names if row[name] == row[name]]  # no NaN
    prompt, completion = (_cut(str(row[name])) for name in ("prompt", "completion"))
    return (
        f'<div style="border-top:{_LINE};padding:.3em 0">'
        f'<span style="font-size:85%">{_safe(", ".join(scores))}</span>'
        '<div style="font-family:monospace;white-space:pre-wrap;overflow-wrap:anywhere;'
        f'text-align:left"><bdi style="opacity:.65">{_safe(prompt)}</bdi>'
        f"<bdi>{_safe(completion)}</bdi></div></div>"
    )


def _cut(said: str) -> str:
    return said if len(said) <= SHOWN else f"{said[: SHOWN // 2]} […] {said[-SHOWN // 2 :]}"
