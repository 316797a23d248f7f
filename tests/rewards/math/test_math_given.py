"""math: of the numbers in a sentence the one that it asserts is claimed, and no other."""

from __future__ import annotations

import pytest

from grpo.rewards.math.latex import compare
from grpo.rewards.math.reward import Math
from grpo.rewards.math.ruling import rule
from grpo.rewards.math.spelling import respell, undress
from grpo.rewards.math.statement import conclusion
from grpo.types import Task


def paid(answer, gold):
    answer = conclusion(answer)
    found = rule(respell(undress(answer)), respell(undress(gold)), compare)
    return "algebra" if found.pair else found.same


@pytest.mark.parametrize(
    ("sentence", "gold", "other"),
    [
        ("After 3 days she has 12 marbles", "12", "3"),
        ("The 16 glasses cost $64", "64", "16"),
        ("16 glasses cost $64", "64", "16"),
        ("Maria paid $50 for the 10 books", "50", "10"),
        ("12 of the 20 students passed", "12", "20"),
        ("It would take 15 hours to clean 45 rooms.", "15", "45"),
        ("There were 10 birds and 4 flew away, so 6 are left.", "6", "4"),
        ("The train travels 120 km in 2 hours, so its speed is 60 km/h", "60", "120"),
        ("7, not 8", "7", "8"),
        ("It is not 6, it is 5.", "5", "6"),
        ("5 \u2713", "5", "6"),
        ("The minimum value is 5", "5", "6"),
        ("The maximum is 5", "5", "6"),
        ("The function has a minimum of -4", "-4", "4"),
        ("Including tax, the price is 5", "5", "6"),
        ("\u0031\u0030\u9664\u4ee52\u662f5", "5", "2"),
        ("at least 3", "\\text{at least } 3", "3"),
    ],
)
def test_the_asserted_number_is_paid_and_the_given_one_is_not(sentence, gold, other):
    assert paid(sentence, gold) is True
    assert paid(sentence, other) is False


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("we ruled out 5", "5"),
        ("5 is ruled out", "5"),
        ("\u9664\u4e865\u4ee5\u5916\u7684\u6240\u6709\u5b9e\u6570", "5"),
        ("minimum 5", "5"),
        ("a maximum of 5 people", "5"),
        ("5 at a minimum", "5"),
        ("bounded by 5", "5"),
        ("a number such as 5", "5"),
        ("values including 5", "5"),
        ("Let x = 5 and continue", "5"),
        ("I solved it in 5 minutes", "5"),
        ("I am 10 percent sure", "10"),
        ("I give up after 2 attempts", "2"),
        ("(3,4) or (4,3)", "(3,4)"),
        ("either 5", "5"),
        ("five or 5", "5"),
        ("choose 5", "5"),
        ("5th", "5"),
        ("at 5 minutes past 6", "6"),
        ("She has 5 apples, Tom has 6", "6"),
        ("the 5 or 6 apples", "6"),
        ("after 5 days or 6 days", "6"),
    ],
)
def test_a_number_that_nobody_asserts_is_not_paid(answer, gold):
    assert paid(answer, gold) is False


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("It is either \\boxed{3}, or else \\boxed{5}.", 0.0),
        ("So 14{,}940 > 14{,}916.", 1.0),
        ("Final Answer: The final answer is $14{,}916$. I hope it is correct.", 1.0),
        ("The final answer is $14916$. Checked on 3 sides.", 1.0),
    ],
)
def test_texts_without_an_answer_block(text, value):
    reward = Math(extraction="lenient", sandbox="none")
    try:
        gold = "5" if "boxed" in text else "14916"
        task = Task(uid="0", prompt="", answer=gold)
        assert reward.verify(f"<think>t</think>{text}", task).value == value
    finally:
        reward.close()
