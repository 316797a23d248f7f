"""Dresses keep a gold's value and changes do not; what could keep it is left out."""

from __future__ import annotations

from math_dress import OTHER, SAME, changed, last_lines, reached


def test_a_change_is_left_out_where_it_could_keep_the_value() -> None:
    golds = ["0", "-3", "12", r"\frac{1}{2}", "1, 2", r"\text{red}"]
    assert changed(golds, OTHER["sign"]) == [("12", "-12"), (r"\frac{1}{2}", r"-\frac{1}{2}")]
    assert [gold for gold, _ in changed(golds, OTHER["7 times"])] == ["-3", "12", r"\frac{1}{2}"]
    assert changed(golds, OTHER["million"]) == [("-3", "-3 million"), ("12", "12 million")]


def test_one_digit_becomes_another_that_is_not_zero() -> None:
    change = OTHER["one digit"]
    assert change("9") == "1"
    assert change("0") == "1"
    assert change(r"\text{red}") is None
    assert change("44") in {"54", "45"}
    assert change("44") == change("44")


def test_a_dress_holds_the_gold() -> None:
    assert SAME["spaced"]("x=1,y<2") == "x = 1 , y < 2"
    assert SAME["equation"]("x+1") is None
    assert SAME["counted"]("12") == "There are 12 of them."


def test_the_last_line_of_a_solution_has_no_notes() -> None:
    row = {"answer": "She has 2+3=<<2+3=5>>5 pens.\nShe sells 5*2=$<<5*2=10>>10 worth.\n#### 10"}
    assert last_lines([row]) == [("10", "She sells 5*2=$10 worth.")]


def test_one_dress_or_change_over_its_bar_is_enough_to_miss_it() -> None:
    good = {
        "same": {"a": {"paid": 495, "of": 500}, "b": {"paid": 10, "of": 10}},
        "other": {"a": {"paid": 5, "of": 500}},
        "gsm8k_last_lines": {"paid": 92, "of": 100},
    }
    assert all(reached(good).values())
    bad = {
        "same": {"a": {"paid": 494, "of": 500}, "b": {"paid": 10, "of": 10}},
        "other": {"a": {"paid": 6, "of": 500}},
        "gsm8k_last_lines": {"paid": 91, "of": 100},
    }
    assert not any(reached(bad).values())
