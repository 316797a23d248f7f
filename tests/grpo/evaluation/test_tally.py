"""What the lines of an evaluation add up to, also where rewards score nothing."""

from __future__ import annotations

import pytest

from grpo.errors import DataError
from grpo.evaluation import tally


def line(mode, task, **parts):
    return {
        "mode": mode,
        "task": task,
        "cluster": task,
        "tokens": 3,
        "finish": "stop",
        "status": "not_applicable",
        "completion": "",
        "parts": parts,
    }


def test_a_second_reward_that_never_applies_leaves_its_figures_empty():
    lines = [
        line(m, t, main=float(t == "a"), other=None) for m in ("greedy", "sample") for t in "ab"
    ]
    summary = tally.summarize(lines, ["main", "other"], seed=0)
    assert summary["pass1"] == summary["rewards"]["main"]["pass1"] == 0.5
    assert set(summary["rewards"]["other"].values()) == {None}
    with pytest.raises(DataError, match="'other' scored no held-out completion"):
        tally.summarize(lines, ["other", "main"], seed=0)


def test_answers_that_say_the_same_vote_together():
    answers = ["0.5", r"\frac{1}{2}", "2", "2", "1/2", None]
    lines = [
        {**line("sample", "a", main=float(i in (0, 1, 4))), "vote": answer}
        for i, answer in enumerate(answers)
    ]
    lines.append({**line("greedy", "a", main=1.0), "vote": "2"})
    summary = tally.summarize(lines, ["main"], seed=0)
    assert summary["maj_at_k"] == 1.0  # a half three times against 2 twice
    assert summary["pass1"] == 0.5


def test_lengths_of_right_and_wrong_answers_and_what_cut_them():
    rows = [(1.0, 4, "stop"), (1.0, 8, "stop"), (0.0, 20, "length"), (None, 99, "stop")]
    lines = [
        {**line("sample", "a", main=score), "tokens": tokens, "finish": finish, "status": finish}
        for score, tokens, finish in rows
    ]
    summary = tally.summarize([*lines, line("greedy", "a", main=1.0)], ["main"], seed=0)
    assert (summary["length_right"], summary["length_wrong"]) == (6.0, 20.0)
    assert summary["clipped_ratio"] == 0.25
    assert summary["statuses"] == {"stop": 3, "length": 1}
    assert summary["unscored"] == 1


def test_a_difference_takes_the_tasks_that_both_were_asked():
    mine = [line("sample", task, main=score) for task, score in (("a", 1.0), ("b", 1.0))]
    theirs = [line("sample", task, main=score) for task, score in (("b", 0.0), ("c", 1.0))]
    assert tally.difference(mine, theirs, "main", seed=0) == (1.0, 1.0, 1.0)
    assert tally.difference(mine[:1], theirs, "main", seed=0) is None


def test_an_evaluation_that_nothing_was_scored_in_says_why():
    failed = {"status": "grader_error", "detail": "math: worker: ImportError: gone"}
    lines = [line(m, "a", math=None) | failed for m in ("greedy", "sample")]
    with pytest.raises(DataError, match=r"grader_error; most often: math: worker: ImportError"):
        tally.summarize(lines, ["math"], seed=0)
