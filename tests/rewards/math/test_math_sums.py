"""math: arithmetic inside a sentence claims the right side of its last equation."""

from __future__ import annotations

import time

import pytest

from grpo.rewards.math.latex import compare
from grpo.rewards.math.ruling import rule
from grpo.rewards.math.spelling import respell, undress
from grpo.rewards.math.statement import conclusion
from grpo.rewards.math.sums import value_of


def paid(answer, gold):
    answer = conclusion(answer)
    return rule(respell(undress(answer)), respell(undress(gold)), compare).same


# (a sentence, what it claims, another of its numbers)
SENTENCES = (
    ("75 roses * 8 thorns/rose = 600 thorns", "600", "75"),
    ("The desk costs $200 opening bid + $300 added cost = $500.", "500", "300"),
    ("120+18 = $138", "138", "120"),
    ("Total = 5 + 7 = 12", "12", "7"),
    ("So he will be 5+3=8 in 3 years", "8", "3"),
    ("If she pays $20, she will get 20 - 10 = $10 of change.", "10", "20"),
    ("They each get 22 chips because 110 / 5 = 22", "22", "5"),
    ("She has 16 - 3 - 4 = 9 eggs and sells them for 9 * 2 = $18.", "18", "9"),
    ("So she makes 13 x $10 = $130 in two weeks.", "130", "13"),
    ("She earns $1150/week * 50 weeks/year = $57,500", "57500", "50"),
    ("1/2 of 10 = 5 apples", "5", "10"),
    ("10 / 3 = 3.33 apples", "3.33", "10"),
    ("The share is 90 / 450 * 100% = 20%", "20", "90"),
    ("We have 2+3=9, so the answer is 5.", "5", "9"),
)


@pytest.mark.parametrize(("sentence", "gold", "other"), SENTENCES)
def test_the_right_side_of_the_last_equation_is_claimed(sentence, gold, other):
    assert paid(sentence, gold)
    assert not paid(sentence, other)
    assert not paid(sentence, str(float(gold) + 1))


@pytest.mark.parametrize(
    ("sentence", "gold"),
    [
        ("4 = 5", "5"),
        ("2+2=5", "5"),
        ("2 apples + 2 apples = 5 apples", "5"),
        ("7 / 2 = 5", "5"),
        ("either 2+3=5 or 2+4=6", "6"),
        ("2+3=5 and 2+4=6", "6"),
        ("2+3=5, 6", "5"),
        ("6, 2+3=5", "5"),
        ("maybe 2+3=5", "5"),
        ("It is not 2+3=5", "5"),
        ("more than 2+3=5", "5"),
        ("2+3=5 is wrong", "5"),
        ("2+3=5 or so", "5"),
    ],
)
def test_what_does_not_hold_or_is_taken_back_claims_nothing(sentence, gold):
    assert not paid(sentence, gold)


def test_values_of_expressions_are_exact():
    assert value_of("$1,000.50 + 3(2) x 2") == 1012.5
    assert value_of("25% * \\$8") == 2
    assert value_of("1 / 0") is None
    assert value_of("2 y") is None


@pytest.mark.parametrize("piece", ["1+", "1 = ", "1 a = ", "(", "x 1 ", "$1=", "1.", "5 of "])
def test_hostile_sentences_take_linear_time(piece):
    started = time.perf_counter()
    paid(f"it costs {piece * (4000 // len(piece))}", "5")
    assert time.perf_counter() - started < 1
