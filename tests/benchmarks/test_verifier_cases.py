"""The adversarial rows are well formed, and misses are counted by what was expected."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from verifier_cases import BARS, FOLDER, as_expected, reached, rows_of, summary, task_of

from grpo.types import Score

STATUSES = {"unparseable_gold", "unparseable_answer", "timeout", "limit", "grader_error"}
FILES = sorted(FOLDER.glob("*.jsonl"))


def score(value: float | None, status: str) -> Score:
    return Score(value=value, status=status)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_row_has_what_its_reward_reads_and_is_there_once(path: Path) -> None:
    seen: set[str] = set()
    for row in rows_of(path):
        key = json.dumps([row["completion"], row.get("answer"), row.get("tests")])
        assert key not in seen, row["place"]
        seen.add(key)
        assert row["kind"]
        assert row["expected"] in {0, 1} | STATUSES, row["place"]
        assert ("tests" in row) == (row["reward"] == "code"), row["place"]
        assert ("answer" in row) == (row["reward"] == "math"), row["place"]
        assert row["completion"].count("<think>") == row["completion"].count("</think>")


def test_every_file_has_a_bar_and_rows_of_both_verdicts() -> None:
    assert {path.stem for path in FILES} == set(BARS)
    for path in FILES:
        assert {0, 1} <= {row["expected"] for row in rows_of(path)}


def test_a_row_becomes_the_task_of_its_reward() -> None:
    assert task_of({"place": "hedges:3", "answer": "5"}).answer == "5"
    task = task_of({"place": "code:1", "tests": {"asserts": []}})
    assert (task.answer, task.columns["tests"]) == (None, {"asserts": []})


@pytest.mark.parametrize(
    ("expected", "found", "right"),
    [
        (1, score(1.0, "correct"), True),
        (0, score(0.0, "unparseable_answer"), True),
        (0, score(None, "unparseable_gold"), False),
        (1, score(None, "grader_error"), False),
        ("unparseable_gold", score(None, "unparseable_gold"), True),
        ("unparseable_gold", score(0.0, "wrong"), False),
    ],
)
def test_a_value_counts_or_a_status(expected: int | str, found: Score, right: bool) -> None:
    assert as_expected({"expected": expected}, found) is right


def test_the_summary_counts_what_became_of_each_row() -> None:
    wrong = [({"expected": 0}, score(1.0, "correct")), ({"expected": 0}, score(None, "timeout"))]
    right = [({"expected": 1}, score(value, "")) for value in (1.0, 1.0, 0.0, None)]
    kept = [({"expected": "unparseable_gold"}, score(None, "unparseable_gold"))]
    assert summary(wrong + right + kept) == {
        "wrong": 2,
        "wrong_paid": 1,
        "wrong_unscored": 1,
        "right": 4,
        "recall": 0.5,
        "right_unscored": 1,
        "unscored": 1,
        "unscored_kept": 1,
    }


def test_a_bar_is_a_share_of_the_rows_there_are() -> None:
    figures = {"wrong": 332, "wrong_paid": 16, "recall": 0.92}
    assert reached({"hedges": figures}) == {
        "hedges: at most 16 wrong paid": True,
        "hedges: recall >= 0.92": True,
    }
    worse = {"wrong": 332, "wrong_paid": 17, "recall": 0.919}
    assert not any(reached({"hedges": worse}).values())
