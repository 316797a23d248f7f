"""The pairs read from test files in math-verify's shapes, and how they are put to `math`."""

from __future__ import annotations

from pathlib import Path

import pytest
from math_suite import completion_of, measured, summary
from suite_pairs import Pair, pairs_of

from grpo.errors import DataError

ROWS = r"""
raise RuntimeError("a suite is read, not run")


@pytest.mark.parametrize(
    "gold,pred,expected",
    [
        ("4", r"$\frac{8}{2}$", 1),
        ("4", "five", 0),
        (f"{math.sqrt(2):.3f}", f"$\\sqrt{{2}}$", 1),
        ("9", "Answer $\n 9\n $", 0),
        ("9", "Answer $\n 8\n $", 0),
    ],
)
def test_values(gold, pred, expected):
    assert compare_strings(gold, pred) == expected


@pytest.mark.parametrize("gold, pred, result, strict", [("x", "y", 1, False), ("x", "z", 0, True)])
def test_names(gold, pred, result, strict):
    assert compare_strings(gold, pred, strict=strict) == result


def test_precision():
    assert compare_strings("1/3", "0.33", precision=2)
    assert compare_strings("1/3", "2/6")


@pytest.mark.parametrize(
    ("prediction", "finite_candidates"), [pytest.param("3 1/0", ("3", "1"), id="zero")]
)
def test_unequal(prediction, finite_candidates):
    pass


def test_parsed():
    gold = parse("7/2", CONFIG)
    prediction = parse("It is 3 1/2.", CONFIG)
    expected = True
    assert verify(gold, prediction) is expected


def test_parse_alone():
    prediction = "28%"
    assert parse(prediction)[0] == 1
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "test_rows.py").write_text(ROWS, encoding="utf-8")
    (tmp_path / "conftest.py").write_text("1 / 0\n", encoding="utf-8")
    return tmp_path


def test_every_shape_of_pair_is_read_without_running_the_file(folder: Path) -> None:
    pairs, left_out = pairs_of(folder)
    assert [(pair.gold, pair.prediction, pair.expected) for pair in pairs] == [
        ("4", r"$\frac{8}{2}$", True),
        ("4", "five", False),
        ("1.414", r"$\sqrt{2}$", True),
        ("9", "Answer $\n 8\n $", False),
        ("x", "z", False),
        ("1/3", "2/6", True),
        ("3", "3 1/0", False),
        ("1", "3 1/0", False),
        ("7/2", "It is 3 1/2.", True),
    ]
    assert {pair.file for pair in pairs} == {"test_rows.py"}
    line = ROWS.splitlines().index('        ("4", "five", 0),') + 1
    assert pairs[1].place == f"test_rows.py:{line}"
    assert sorted(left_out.values()) == [
        "needs an option",
        "needs an option",
        "the same value, refused for its line breaks",
    ]


def test_a_folder_without_pairs_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no test file with pairs"):
        measured(tmp_path)


@pytest.mark.parametrize(
    ("prediction", "longest", "after"),
    [
        ("5", 9, "<answer>5</answer>"),
        ("so it is 5", 9, "so it is 5"),
        (r"so $\boxed{5}$", 99, r"so $\boxed{5}$"),
    ],
)
def test_a_prediction_stands_after_a_closed_thought(
    prediction: str, longest: int, after: str
) -> None:
    thought, _, said = completion_of(prediction, longest).partition("</think>\n")
    assert thought.startswith("<think>")
    assert said == after


def test_a_prediction_with_a_thought_of_its_own_stays() -> None:
    assert completion_of("<think>5?</think> 6", 99) == "<think>5?</think> 6"


def test_recall_is_over_right_pairs_and_false_positives_over_wrong_ones() -> None:
    pairs = [
        Pair(place="f:1", gold="1", prediction="1", expected=expected)
        for expected in (True, True, True, True, False, False)
    ]
    assert summary(pairs, [True, True, True, False, True, False]) == {
        "right": 4,
        "wrong": 2,
        "recall": 0.75,
        "false_positives": 1,
    }
