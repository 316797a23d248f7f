"""Curves of runs: a panel for each metric, with the held-out evaluations as points.

No state of pyplot is touched: a figure is the caller's alone and goes when the caller drops it.
"""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import pandas
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.spines import Spine
from matplotlib.text import Text

from grpo.errors import RunError, did_you_mean
from grpo.evaluation import heldout, tally

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from grpo.commands.api.run import Run

_ACROSS = 3  # panels in a row
_DPI = 110
_GRAY = "#808080"
_COLORS = {
    Text: ("color",),
    Spine: ("edgecolor",),
    Line2D: ("color", "markeredgecolor", "markerfacecolor"),  # a tick is a marker
}
_LENGTH = "completions/mean_length"
_BEFORE, _AFTER = "before", "after"  # evaluations of the first and the last model
_DURING = "step_"


class Picture(Figure):
    """A figure that a notebook shows by itself, without `%matplotlib`.

    The notebook's picture is clear, with lines in a gray that is read on light and dark pages;
    `savefig` writes what matplotlib does, on white.
    """

    def _ipython_display_(self) -> None:
        """IPython asks this first, before the formats that `%matplotlib inline` registers."""
        from IPython.display import display

        png = b64encode(self._repr_png_()).decode()
        display({"image/png": png, "text/plain": repr(self)}, raw=True)

    def _repr_png_(self) -> bytes:
        data = io.BytesIO()
        with _clear(self):
            self.savefig(data, format="png", dpi=_DPI, transparent=True)
        return data.getvalue()


@contextmanager
def _clear(figure: Figure) -> Iterator[None]:
    """Black, white and gray texts and lines of a figure are of one gray inside."""
    figure.draw_without_rendering()  # makes the ticks
    with ExitStack() as undo:
        found: Any = figure.findobj(lambda one: isinstance(one, (Legend, *_COLORS)))
        for one in found:
            if isinstance(one, Legend):
                box = one.get_frame()
                undo.callback(box.set, alpha=box.get_alpha(), edgecolor=box.get_edgecolor())
                box.set(alpha=0.1, edgecolor=_GRAY)
                continue
            for name in next(names for kind, names in _COLORS.items() if isinstance(one, kind)):
                color = getattr(one, f"get_{name}")()
                if color != _GRAY and to_rgba(color)[3] and len(set(to_rgba(color)[:3])) == 1:
                    undo.callback(one.set, **{name: color})
                    one.set(**{name: _GRAY})
        yield


@dataclass(frozen=True, kw_only=True)
class Curves:
    """A run, drawn over the steps of all its stages.

    metrics: a row a step; its index counts through the stages. begins: stage -> the step before its
    first one. points: metric -> (step, value, low, high) of evaluations; low is None without an
    interval.
    """

    title: str
    metrics: pandas.DataFrame
    begins: Mapping[str, int]
    points: Mapping[str, Sequence[tuple[int, float, float | None, float | None]]]


def plot(runs: Run | Iterable[Run], *names: str, smooth: int = 1) -> Figure:
    """Curves of one run or of several; a panel for each metric, in it a line for each run.

        grpo.plot([run, other], "reward", "completions/mean_length").savefig("both.png")

    names: metrics by their names in `run.metrics`; by default reward, parts and lengths. Points
    with bars are held-out evaluations with their 95% intervals; dotted lines are the beginnings of
    stages. smooth: steps of a running mean, drawn over the raw values; 1 for none. Raises RunError
    for a metric that no run has, and for runs without any.
    """
    listed = list(runs) if isinstance(runs, Iterable) else [runs]
    if not isinstance(cast(Any, smooth), int) or smooth < 1:
        raise RunError(f"smooth = {smooth!r} is the steps of a running mean: 1 (none), 2, 3, …")
    shown = [curves_of(run) for run in listed]
    have = list(dict.fromkeys(str(name) for one in shown for name in one.metrics.columns))
    if not have:
        raise RunError(f"{' and '.join(run.title for run in listed) or 'no run'}: no steps to plot")
    for name in names:
        if name not in have:
            hint = did_you_mean(name, have)
            raise RunError(
                f"unknown metric {name!r}.{hint} Valid: {', '.join(have[:8])} and the other names "
                "in run.metrics.columns"
            )
    chosen = list(names) or _usual(have)
    across = 2 if len(chosen) == 4 else min(_ACROSS, len(chosen))
    down = -(-len(chosen) // across)
    figure = Picture(figsize=(4.2 * across, 3.1 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).flatten()
    for panel, name in zip(panels, chosen, strict=False):
        _panel(panel, name, shown, smooth)
    for panel in panels[len(chosen) :]:
        panel.remove()
    if len(shown) == 1:
        figure.suptitle(shown[0].title)
    return figure


def curves_of(run: Run) -> Curves:
    """What is drawn of a run, finished or not."""
    metrics = run.metrics.drop(columns="time", errors="ignore")
    stages = run.recipe.stages
    found = {stages[0].name: metrics}
    if metrics.index.nlevels > 1:
        names = metrics.index.get_level_values(0)
        found = {s.name: metrics.xs(s.name) for s in stages if s.name in names}
    frames: list[pandas.DataFrame] = []
    begins: dict[str, int] = {}
    points: dict[str, list[Any]] = {}
    last = 0
    for stage in stages:
        steps = found.get(stage.name)
        if steps is None or steps.empty:
            continue
        begins[stage.name] = last
        end = int(steps.index[-1])
        for name, step, *value in _evaluations(run, stage, end):
            points.setdefault(name, []).append((last + step, *value))
        frames.append(steps.set_axis(steps.index + last))
        last += end
    joined = pandas.concat(frames) if frames else metrics
    return Curves(title=run.folder.name, metrics=joined, begins=begins, points=points)


def _usual(have: Sequence[str]) -> list[str]:
    parts = [name for name in have if name.startswith("rewards/") and name.endswith("/mean")]
    first = ["reward", *(parts if len(parts) > 1 else []), "accuracy", _LENGTH, "entropy"]
    return [name for name in [*first, "loss"] if name in have] or list(have[:1])


def _panel(axes: Axes, name: str, shown: Sequence[Curves], smooth: int) -> None:
    from matplotlib.ticker import MaxNLocator

    for number, one in enumerate(shown):
        color = f"C{number % 10}"
        if name in one.metrics:
            numbers: Any = pandas.to_numeric(one.metrics[name], errors="coerce")
            values: Any = numbers.dropna()
            label = one.title if len(shown) > 1 else None
            dot = "." if len(values) == 1 else ""
            if smooth > 1:
                axes.plot(values.index, values, color=color, alpha=0.25, linewidth=1)
                values = values.rolling(smooth, min_periods=1).mean()
            axes.plot(values.index, values, color=color, label=label, marker=dot)
        for step, value, low, high in one.points.get(name, []):
            bars = None if low is None or high is None else [[value - low], [high - value]]
            axes.errorbar([step], [value], yerr=bars, fmt="o", ms=4, capsize=3, color=color)
        if len(shown) == 1 and len(one.begins) > 1:
            for stage, step in one.begins.items():
                axes.axvline(step, color="0.6", linestyle=":", linewidth=1)
                at = axes.get_xaxis_transform()
                axes.text(step, 1, f" {stage}", transform=at, fontsize=7, va="top", color="0.4")
    axes.set_title(name, fontsize=10)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(shown) > 1:
        axes.legend(fontsize=7)


def _evaluations(run: Run, stage: Any, last: int) -> Iterable[tuple[Any, ...]]:
    """(metric, step, value, low, high) of the held-out evaluations of a stage so far."""
    for step, found in _found(run, stage, last) if stage.kind == "rl" else ():
        drawn = {"reward": (found, "mean_reward"), "accuracy": (found, "pass1")}
        drawn |= {f"rewards/{name}/mean": (of, "mean") for name, of in found["rewards"].items()}
        for metric, (of, key) in [*drawn.items(), (_LENGTH, (found, "mean_length"))]:
            if of.get(key) is not None:
                low, high = of.get(f"{key}_ci") or (None, None)
                yield metric, step, of[key], low, high


def _found(run: Run, stage: Any, last: int) -> Iterable[tuple[int, Mapping[str, Any]]]:
    """(step, figures): from the summary, or of a run that still trains from its files."""
    summary = run.summaries.get(stage.name)
    if summary is not None:
        ends = {0: summary.get(_BEFORE), last: summary.get(_AFTER)}
        yield from ((step, found) for step, found in ends.items() if found)
        yield from ((_step_of(name), found) for name, found in summary["during"].items())
        return
    for file in sorted((run.place(stage) / "eval").glob("*.jsonl")):
        if file.stem == _BEFORE or file.stem.startswith(_DURING):
            lines = heldout.read_lines(file)
            names = list(dict.fromkeys(part for line in lines for part in line["parts"]))
            yield _step_of(file.stem), tally.figures(lines, names, run.recipe.run.seed)


def _step_of(name: str) -> int:
    return 0 if name == _BEFORE else int(name.removeprefix(_DURING))
