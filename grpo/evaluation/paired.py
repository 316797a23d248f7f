"""Two evaluations of the same tasks, figure by figure: before, after, and the difference.

    figure        before    after   difference [95% interval]
    pass@1         0.500    0.750      +0.250 [+0.125, +0.375] *
    mean short    -3.000   -2.500      +0.500 [-0.250, +1.250]

Completions are paired by task and sample. Both evaluations drew them with the same noise, so what
makes a task hard cancels, and part of the luck. The interval resamples clusters of tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grpo.evaluation import tally
from grpo.evaluation.figures import Evaluation, Figure, listed
from grpo.evaluation.statistics import paired_difference
from grpo.evaluation.tally import Lines, Value

Row = dict[str, Any]
# Of fewer tasks even differences of one sign are no evidence: 2 * 0.5 ** 5 is above 0.05.
LEAST = 6
_OF_LINE: Mapping[str, Value] = {
    "mean_reward": lambda line: line.get("value"),
    "mean_length": lambda line: float(line["tokens"]),
    "clipped_ratio": lambda line: float(line["finish"] != "stop"),
}


def compared(before: Evaluation, after: Evaluation, old: Lines, new: Lines, seed: int) -> list[Row]:
    """The rows of the table: each figure before and after, and its difference.

    before, after: `tally.figures` of the completions old and new. A row is

        figure         its name, made of its reward's
        reward         the reward, None for lengths and the weighted sum
        before, after  its values, as everywhere else (None: nothing was scored)
        difference     after - before over the completions that both evaluations scored (None: none)
        ci             [low, high], the 95% interval of the difference (None: as above)
        pairs, of      how many completions those are, of how many
        tasks          of how many tasks (clusters of them) they are
    """
    first, second = tally.shared(old, new)
    pairs = list(zip(first, second, strict=True))
    figures = listed([before, after])
    verdicts = {figure.reward for figure in figures if figure.key == "pass1"}
    rows: list[Row] = []
    for figure in figures:
        of = _of_line(figure, [*old, *new], figure.reward in verdicts)
        both = [(of(a), of(b), a["cluster"]) for a, b in pairs if a["mode"] == figure.mode]
        rows.append(
            {
                "figure": figure.name,
                "reward": figure.reward,
                "before": figure.value(before),
                "after": figure.value(after),
                **_difference(both, seed),
            }
        )
    return rows


def excludes_zero(row: Mapping[str, Any]) -> bool:
    """Whether the interval of a row's difference excludes 0; never of fewer than LEAST tasks."""
    if row["ci"] is None or row.get("tasks", LEAST) < LEAST:
        return False
    return row["ci"][0] > 0 or row["ci"][1] < 0


def _of_line(figure: Figure, lines: Lines, in_verdicts: bool) -> Value:
    """What a figure is the mean of."""
    name = figure.reward
    if name is None:
        return _OF_LINE[figure.key]
    return tally.said(lines, name) if in_verdicts else lambda line: line["parts"][name]


def _difference(pairs: list[tuple[float | None, float | None, str]], seed: int) -> Row:
    whole = [pair for pair in pairs if None not in pair]
    counts = {"pairs": len(whole), "of": len(pairs), "tasks": len({c for *_, c in whole})}
    if not whole:
        return {"difference": None, "ci": None, **counts}
    before, after, clusters = zip(*whole, strict=True)
    gap, low, high = paired_difference(after, before, clusters, seed=seed)
    return {"difference": round(gap, 6), "ci": [round(low, 6), round(high, 6)], **counts}
