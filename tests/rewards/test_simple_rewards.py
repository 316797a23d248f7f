"""accuracy, format, countdown, random: verdicts that a wrong implementation gets wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.rewards import REWARDS
from grpo.rewards.accuracy import Accuracy
from grpo.rewards.control import Random
from grpo.rewards.extract import boxes, final_answer
from grpo.rewards.form import Format
from grpo.rewards.math.exact import evaluate, same
from grpo.rewards.puzzles import Countdown
from grpo.types import Task


def verdict(reward, completion, answer=None, **columns):
    task = Task(uid="t", prompt="q", answer=answer, columns=columns)
    score = reward.verify(completion, task)
    return score.value, score.status


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (r"<think>\boxed{1}</think> \boxed{2}", "2"),
        (r"<think>\boxed{1}", None),  # the thought never ended
        (r"<think>a</think><think>\boxed{1}", None),
        (r"<think>a</think><answer>7</answer>", "7"),
        (r"\boxed{\frac{1}{2}} then \boxed{ {3} } ", "{3}"),
        (r"\boxed{a \boxed{b} c}", r"a \boxed{b} c"),
        (r"\boxed{5} and \boxed{unbalanced", "5"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        ("<answer>1</answer><answer>2", "1"),
        (r"\boxedin{5}", None),
        ("42", None),
        ("", None),
    ],
)
def test_the_answer_is_found_where_the_policy_says(completion, expected):
    assert final_answer(completion) == expected


def test_lenient_extraction_falls_back_to_the_last_number():
    assert final_answer("so 3 * 4 = 12.", lenient=True) == "12"
    assert final_answer("costs 1,234.50 dollars", lenient=True) == "1,234.50"
    assert final_answer(r"\boxed{3} not 4", lenient=True) == "3"
    for number in ("1e-5", "2.5E+3", r"3 \times 10^{-5}", "1.5*10^4", "-10^5", "3 \u00d7 10^8"):
        assert final_answer(f"so x = {number}.", lenient=True) == number
    assert final_answer("3em", lenient=True) == "3"


def test_many_unbalanced_boxes_take_linear_time():
    assert boxes(r"\boxed{" * 200_000) == []


@pytest.mark.parametrize(
    ("answer", "gold", "equal"),
    [
        ("42", "42.0", True),
        ("0.5", r"\frac{1}{2}", True),
        (r"-\dfrac{1}{2}", "-0.50", True),
        ("1,234", "1234", True),
        ("1{,}234", "1234", True),
        ("$12$", "12", True),
        (r"\$12", "12", True),
        ("12,34", "1234", False),
        ("1 2", "12", False),
        ("0.0000004", "0.0000001", False),
        ("1/0", "0", False),
        ("9" * 5000, "9" * 4999 + "8", False),
        ("9" * 5000, "9" * 5000, True),
        ("\u0664\u0662", "42", False),  # not ASCII digits: no claim
        ("42.", "42", True),
        ("yes", "no", False),
        ("**42**", "42", True),
        ("42\u200b", "42", True),
        ("True", "true", True),
        ("A", "a", False),  # a letter is a name, and names differ by case
        ("1e-5", "0.00001", True),
        ("1e-05", "1e-5", True),
        ("1E5", "100000", True),
        ("1.5e3", "1,500", True),
        ("-2.5e-1.", r"-\frac{1}{4}", True),
        (r"1 \times 10^{-5}", "0.00001", True),
        (r"$1\cdot 10^{5}$", "100000", True),
        ("3 \u00d7 10^5", "300000", True),
        ("3\u00d710\u207b\u2075", "0.00003", True),
        ("10^{3}", "1000", True),
        ("1e16", "1" + "0" * 16, True),
        ("1e300", "1" + "0" * 300, True),
        ("1e-5", "0.000011", False),
        ("1e5", "1e6", False),
        ("2 e - 5", "0.00002", False),  # Euler's number less five
        (r"1 \times 10^5 0", "1000000", False),
        ("1e999999999", "1e999999998", False),  # not worked out
        ("12e", "12", False),
    ],
)
def test_exact_comparison(answer, gold, equal):
    assert same(answer, gold) is equal


@given(st.integers(-(10**12), 10**12), st.integers(0, 3))
def test_spellings_of_a_number_never_change_the_verdict(value, zeros):
    decimals = f"{value}." + "0" * (zeros + 1)
    assert same(f"{value:,}", str(value))
    assert same(f"  ${decimals}$ ", str(value))
    assert same(rf"\left {value} \right", str(value))
    assert not same(f"{value + 1:,}", str(value))


def test_accuracy_statuses():
    reward = Accuracy()
    assert verdict(reward, r"\boxed{4}", "4") == (1.0, "correct")
    assert verdict(reward, r"\boxed{5}", "4") == (0.0, "wrong")
    assert verdict(reward, "4", "4") == (0.0, "unparseable_answer")
    assert verdict(reward, r"\boxed{4}", " ") == (None, "unparseable_gold")
    assert verdict(Accuracy("lenient"), "it is 4", "4") == (1.0, "correct")


@given(st.text(max_size=300))
def test_no_text_makes_a_verifier_raise(text):
    task = Task(uid="t", prompt="q", answer="4", columns={"numbers": [1, 3], "target": 4})
    for name in ("accuracy", "format", "countdown"):
        reward = REWARDS[name]()
        for completion in (text, f"<answer>{text}</answer>", rf"\boxed{{{text}}}"):
            assert reward.verify(completion, task).value in (0.0, 1.0)


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        ("<think>\na\nb\n</think>\n<answer>4</answer>\n", 1.0),
        ("<think>a</think><answer>4</answer> bye", 0.0),
        ("hi <think>a</think><answer>4</answer>", 0.0),
        ("<think>a</think> so <answer>4</answer>", 0.0),
        ("<think> </think><answer>4</answer>", 0.0),
        ("<think>a</think><answer> </answer>", 0.0),
        ("<answer>4</answer><think>a</think>", 0.0),
        ("<think>a</think><answer>4</answer><answer>5</answer>", 0.0),
        ("<think><think>a</think><answer>4</answer>", 0.0),
        ("<think>a<answer>4</think></answer>", 0.0),
        ("<think>a</think><answer>4", 0.0),
        ("<think>\u200b</think><answer>4</answer>", 0.0),
        ("<think>a</think><answer>\u2060\ufeff</answer>", 0.0),
        ("", 0.0),
    ],
)
def test_format(completion, value):
    assert verdict(Format(), completion)[0] == value


@pytest.mark.parametrize(
    ("expression", "value", "status"),
    [
        ("(1 + 2) * 3", 1.0, "correct"),
        ("3 \u00d7 (2+1) = 9", 1.0, "correct"),
        (r"\(3*(2+1)\)", 1.0, "correct"),
        (r"3\cdot\left(2+1\right).", 1.0, "correct"),
        ("3*(2+1) = 3*3 = 9.0", 1.0, "correct"),
        ("3*(2+1) = 3*3 = 10", 0.0, "wrong"),
        ("9 = 3*(2+1)", 0.0, "wrong"),
        ("3*(2+1) = 10", 0.0, "wrong"),
        ("3*3", 0.0, "wrong"),
        ("1+2*3", 0.0, "wrong"),
        ("9", 0.0, "wrong"),
        ("1.5*6", 0.0, "unparseable_answer"),
        ("9**9**9", 0.0, "unparseable_answer"),
        ("3//2+1", 0.0, "unparseable_answer"),
        ("3/(2-2*1)", 0.0, "unparseable_answer"),
        ("(" * 300 + "1", 0.0, "unparseable_answer"),
        ("-" * 500 + "1", 0.0, "wrong"),
        ("__import__('os')", 0.0, "unparseable_answer"),
        ("1_2*3", 0.0, "unparseable_answer"),
        ("", 0.0, "unparseable_answer"),
    ],
)
def test_countdown(expression, value, status):
    found = verdict(Countdown(), f"<answer>{expression}</answer>", numbers=[1, 2, 3], target=9)
    assert found == (value, status)


def test_countdown_at_most_once_and_exact_fractions():
    assert verdict(Countdown("at_most"), r"\boxed{3*3}", numbers=[3, 3, 5], target=9)[0] == 1.0
    assert verdict(Countdown("at_most"), r"\boxed{3*3}", numbers=[3, 5], target=9)[0] == 0.0
    value, used = evaluate("1/3 + 1/3 + 1/3")
    assert (value, used) == (1, [1, 3] * 3)
    assert verdict(Countdown(), r"\boxed{5/2 = 2.5}", numbers="[5, 2]", target=2.5)[0] == 1.0
    for numbers in ([2.5, 3], "23", [True, 2], "[" * 99999):
        found = verdict(Countdown(), r"\boxed{2*3}", numbers=numbers, target=6)
        assert found == (None, "unparseable_gold")
    assert verdict(Countdown(), r"\boxed{1}", target=9, numbers=[]) == (None, "unparseable_gold")


def test_random_is_fair_reproducible_and_never_a_function_of_the_text():
    prompts = [f"p{i % 50}" for i in range(2000)]
    call = {"prompts": prompts, "completions": ["same"] * 2000, "completion_ids": [[1]] * 2000}
    first, again = Random(seed=1), Random(seed=1)
    flips = first(**call)
    assert flips == again(**call)
    assert 900 < sum(flips) < 1100  # 4.5 standard errors
    assert flips != first(**call)  # the next visit
    assert flips != Random(seed=2)(**call)
    assert {sum(flips[i::50]) for i in range(50)} != {0.0, 40.0}  # equal text, different flips


def test_random_with_a_trainer_state_does_not_depend_on_history():
    class State:
        global_step = 7

    call = {"prompts": ["p"] * 64, "completions": ["c"] * 64, "trainer_state": State()}
    fresh, used = Random(), Random()
    used(prompts=["p"] * 3, completions=["c"] * 3)
    assert fresh(**call) == used(**call)
