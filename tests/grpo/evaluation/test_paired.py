"""The paired table: differences and intervals worked out by hand, names made of the rewards'."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from grpo.commands.summary import print_paired, print_summary
from grpo.evaluation import tally
from grpo.evaluation.paired import compared, excludes_zero
from grpo.outside.terminal.console import Console


def line(task: str, sample: int = 0, mode: str = "sample", **of: Any) -> dict[str, Any]:
    """A completion; of: its tokens, finish, cluster, and the value of each reward.

    A reward called `judge` is a verifier that pays 1.0 and 0.0.
    """
    known = {name: of.pop(name) for name in ("tokens", "finish", "cluster") if name in of}
    values = [value for value in of.values() if value is not None]
    return {
        "mode": mode,
        "task": task,
        "cluster": task,
        "sample": sample,
        "tokens": 3,
        "finish": "stop",
        "status": "scored",
        "completion": "",
        "parts": of,
        "value": sum(values) if values else None,
        "right": {"judge": None if of["judge"] is None else of["judge"] == 1.0}
        if "judge" in of
        else {},
    } | known


def table(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    names = list(old[0]["parts"])
    pair = tally.figures(old, names, 0), tally.figures(new, names, 0)
    return {row["figure"]: row for row in compared(*pair, old, new, seed=0)}


def both(judged: tuple[float, ...], short: tuple[float, ...], **of: Any) -> list[dict[str, Any]]:
    """A sample and a greedy completion of each task."""
    return [
        line(f"t{place}", mode=mode, judge=j, short=s, **of)
        for mode in ("greedy", "sample")
        for place, (j, s) in enumerate(zip(judged, short, strict=True))
    ]


def test_differences_and_intervals_are_those_of_a_hand() -> None:
    old = both((0, 0, 0, 0), (-3, -3, -3, -3), tokens=10)
    new = both((1, 0, 0, 0), (-1, -1, -1, -1), tokens=14, finish="length")
    rows = table(old, new[::-1])
    # the draws of the one task that rose, of 4 with replacement, are binomial(4, 1/4):
    # P(none) = 0.32 and P(<= 2) = 0.949 < 0.975 <= P(<= 3) = 0.996
    for name in ("judge: pass@1", "judge: greedy accuracy"):
        row = rows[name]
        assert (row["before"], row["after"]) == (0.0, 0.25)
        assert (row["difference"], row["ci"], row["pairs"]) == (0.25, [0.0, 0.75], 4)
        assert not excludes_zero(row)
    short = rows["mean short"]
    assert (short["before"], short["after"], short["difference"]) == (-3.0, -1.0, 2.0)
    assert (short["ci"], short["tasks"]) == ([2.0, 2.0], 4)
    assert not excludes_zero(short)  # four of one sign come by chance, P = 2 / 2**4
    assert excludes_zero(short | {"tasks": 6})
    assert rows["reward (weighted sum)"]["difference"] == 2.25
    assert rows["reward (weighted sum)"]["ci"] == [2.0, 2.75]
    assert rows["mean length (tokens)"]["difference"] == 4.0
    assert rows["cut by the length limit"]["after"] == 1.0
    assert list(rows)[:2] == ["judge: greedy accuracy", "judge: pass@1"]


def test_tasks_of_one_cluster_are_drawn_together() -> None:
    def lines(values: tuple[float, ...]) -> list[dict[str, Any]]:
        clusters = ("a", "a", "b", "b")
        pairs = enumerate(zip(values, clusters, strict=True))
        return [line(f"t{n}", short=v, cluster=c) for n, (v, c) in pairs]

    # cluster a rose by 1 on average, b by 3; of two clusters, both draws are a with P = 1/4
    row = table(lines((0, 0, 0, 0)), lines((0, 2, 3, 3)))["mean short"]
    assert (row["difference"], row["ci"]) == (2.0, [1.0, 3.0])


def test_only_completions_that_both_scored_are_pairs() -> None:
    old = [line("t", 0, short=None), line("t", 1, short=2.0)]
    new = [line("t", 1, short=3.0), line("t", 0, short=10.0)]
    row = table(old, new)["mean short"]
    assert (row["before"], row["after"]) == (2.0, 6.5)
    assert (row["difference"], row["pairs"], row["of"]) == (1.0, 1, 2)
    out = io.StringIO()
    print_paired([row], ("before", "after"), "t", Console(file=out, width=100))
    assert "mean short: 1 of 2 pairs scored" in out.getvalue()


def test_nothing_to_pair_is_no_difference() -> None:
    row = table([line("t", short=None)], [line("t", short=1.0)])["mean short"]
    assert (row["before"], row["after"], row["difference"], row["ci"]) == (None, 1.0, None, None)
    assert not excludes_zero(row)


def test_a_function_has_no_accuracy_and_a_verifier_no_mean() -> None:
    rows = table([line("t", short=1.0, other=0.0)], [line("t", short=0.0, other=1.0)])
    assert list(rows) == [
        "greedy mean short",
        "mean short",
        "greedy mean other",
        "mean other",
        "reward (weighted sum)",
        "mean length (tokens)",
        "cut by the length limit",
    ]
    rows = table([line("t", judge=1.0)], [line("t", judge=0.0)])
    assert "reward (weighted sum)" not in rows  # it is pass@1
    assert not [name for name in rows if name.startswith("mean judge")]


@pytest.mark.parametrize("width", [120, 50])
def test_the_table_marks_what_excludes_0(width: int) -> None:
    old, new = both((0,) * 6, (0,) * 6), both((1, 0, 0, 0, 0, 0), (1,) * 6)
    out = io.StringIO()
    rows = list(table(old, new).values())
    print_paired(rows, ("before", "after"), "t", Console(file=out, width=width))
    text = out.getvalue()
    marked = [row for row in text.splitlines() if row.startswith("│") and "*" in row]
    assert len(marked) == 3  # short, greedy and sampled, and the sum
    assert all("+1." in row for row in marked)
    assert ("+1.000 [+1.000, +1.000] *" in text) == (width == 120)
    assert "[+1.000, +1.000]" in text
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (False, True, "(eval.before = false), so no gain; to measure it: grpo eval runs/a --base"),
        (False, False, "(eval.num_tasks = 0); to measure before and after: grpo eval runs/a --ba"),
    ],
)
def test_a_summary_says_what_was_not_measured_and_how_to(
    before: bool, after: bool, says: str
) -> None:
    found = tally.figures([line("t", short=1.5), line("t", mode="greedy", short=1.0)], ["short"], 0)
    summary = {
        "recipe": "mine",
        "seed": 0,
        "stage": "rl",
        "before": found if before else None,
        "after": found if after else None,
        "gain": None,
        "paired": None,
        "steps": 3,
        "seconds": 1.0,
    }
    out = io.StringIO()
    print_summary(summary, Path("runs/a"), Console(file=out, width=200))
    assert says in out.getvalue()
    assert ("mean short" in out.getvalue()) == after
    assert ("1.500" in out.getvalue()) == after
