"""Ratios of two commits, worked out by hand; each commit is measured by its own scripts."""

from __future__ import annotations

from pathlib import Path

import pytest
from perf.contest import FOLDER
from two_commits import ROOT, chosen, contenders, is_slower, ratios, workloads


def test_ratio_and_noise_are_medians_over_rounds() -> None:
    found = ratios(
        {
            "this": [2.0, 3.0, 2.0],
            "base": [1.0, 2.0, 4.0],
            "base again": [1.0, 2.0, 2.0],
            "this again": [2.0, 3.0, 1.0],
        }
    )
    assert found["this over base"] == 1.5  # of 2, 1.5 and 0.5
    assert found["noise"] == [1.0, 1.0]  # of 1, 1, 0.5 and of 1, 1, 0.5


@pytest.mark.parametrize(
    ("ratio", "noise", "slower"),
    [
        (1.04, [1.0, 1.0], False),
        (1.06, [1.0, 1.0], True),
        (1.06, [1.0, 1.1], False),  # within what a commit differs from itself
        (1.06, [0.9, 1.0], False),
        (1.2, [0.9, 1.0], True),
        (0.5, [1.0, 1.0], False),
    ],
)
def test_slower_is_more_than_a_twentieth_and_more_than_noise(
    ratio: float, noise: list[float], slower: bool
) -> None:
    assert is_slower({"this over base": ratio, "noise": noise}) is slower


def test_each_tree_is_measured_by_its_own_scripts() -> None:
    other = Path("/other")
    found = contenders(workloads("models/any")["engine, tiny"], other)
    assert [c.folder for c in found] == [
        ROOT / "benchmarks",
        other / "benchmarks",
        other / "benchmarks",
        ROOT / "benchmarks",
    ]
    assert [c.env["PYTHONPATH"] for c in found] == [str(ROOT), "/other", "/other", str(ROOT)]


def test_a_command_is_timed_by_this_trees_script_with_the_code_of_each() -> None:
    found = contenders(workloads("models/any")["start of plan"], Path("/other"))
    assert {c.folder for c in found} == {FOLDER}
    assert [c.settings["tree"] for c in found] == [str(ROOT), "/other", "/other", str(ROOT)]


def test_words_choose_workloads() -> None:
    known = workloads("models/any")
    assert list(chosen(known, [])) == list(known)
    assert list(chosen(known, ["tiny"])) == ["learner, tiny", "engine, tiny", "whole step, tiny"]
    assert list(chosen(known, ["plan", "hash"])) == ["hash of weights", "start of plan"]
    with pytest.raises(SystemExit, match="no workload has nothing"):
        chosen(known, ["nothing"])


def test_every_script_is_there() -> None:
    for work in workloads("models/any").values():
        assert (FOLDER / "perf" / f"{work.script}.py").exists()
