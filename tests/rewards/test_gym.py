"""reasoning-gym's nine executing scorers, written anew: only right answers pass, none is run."""

from __future__ import annotations

import pytest

from grpo.errors import RewardError
from grpo.rewards.gym import SCORERS, ReasoningGym, is_antiderivative, parse, same_formula, value
from grpo.rewards.sandbox.workers import WorkerDied, WorkerFault, WorkerTimeout
from grpo.types import Task

QUEENS = "_ Q _ _\n_ _ _ Q\nQ _ _ _\n_ _ Q _"
EMPTY = [["_"] * 4 for _ in range(4)]
CASES = {
    "countdown": ({"numbers": [6, 61, 94, 4], "target": 309}, "94*4 - 61 - 6", "309"),
    "puzzle24": ({"numbers": [8, 5, 10, 6]}, "10*(8 - 5) - 6", "8*3"),
    "n_queens": ({"puzzle": EMPTY}, QUEENS, QUEENS.replace("Q _ _ _", "_ _ _ Q")),
    "spiral_matrix": ({"solution": [1, 2, 4, 3]}, "1 2 4 3", "1 2 3 4"),
    "binary_matrix": ({"solution": [[0, 1], [1, 2]]}, "0 1\n1 2", "0 1\n1 1"),
    "string_insertion": ({"solution": "ABCD"}, "ABCD", "ABC"),
    "polynomial_multiplication": (
        {"polynomial_expr": "x**2 - y**2", "variables": ["x", "y"]},
        "(x - y)*(x + y)",
        "(x - y)*(x - y)",
    ),
    "simple_integration": (
        {"integrand": "-272*x**7/15 - 5/4", "variable": "x"},
        "-34*x**8/15 - 5*x/4 + C",
        "-34*x**8/15 - 5*x/4 + x*C",
    ),
    "intermediate_integration": (
        {"integrand": "4*sqrt(-2*x - 8)", "variable": "x"},
        "-4*(-2*x - 8)**(3/2)/3 + C",
        "4*(-2*x - 8)**(3/2)/3 + C",
    ),
}


def verdict(name, answer, meta):
    task = Task(uid="t", prompt="q", columns={"metadata": {"source_dataset": name, **meta}})
    score = ReasoningGym().verify(f"<think>t</think><answer>{answer}</answer>", task)
    return score.value, score.status


@pytest.mark.parametrize("name", SCORERS)
def test_golds_pass_and_wrong_answers_do_not(name):
    meta, gold, wrong = CASES[name]
    assert verdict(name, gold, meta) == (1.0, "correct")
    assert verdict(name, wrong, meta) == (0.0, "wrong")
    assert verdict(name, gold, {})[0] in (None, 1.0 if name == "puzzle24" else None)


@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize(
    "answer",
    ["__import__('os')._exit(0)", "9**9**9**9", "(" * 1000, "x.y", "[1][0]", "lambda: 1", "\u0664"],
)
def test_hostile_answers_are_wrong_and_run_nothing(name, answer):
    assert verdict(name, answer, CASES[name][0])[0] == 0.0


def test_formulas():
    assert same_formula("sin(x)**2 + cos(x)**2", "1", ["x"])
    assert same_formula("2*X", "x + x", ["x"])
    assert not same_formula("2*x", "2*x + 0.001", ["x"])
    assert is_antiderivative("log(x) + 5", "1/x", "x")
    assert is_antiderivative("x*exp(x) - exp(x) + C", "x*exp(x)", "x")
    assert not is_antiderivative("x*exp(x) + C", "x*exp(x)", "x")
    assert value(parse("2^3"), {}) == 8
    for bad in ("open(x)", "x if x else 1", "x == 1", "True", "1j", "10**400", "1/0", "f(x, y)"):
        with pytest.raises(ValueError, match=r"formula|name|function|value"):
            value(parse(bad), {"x": 1})


def test_other_data_sets_run_in_the_sandbox_or_say_what_is_missing():
    pytest.importorskip("reasoning_gym")
    reward = ReasoningGym(workers=1)
    task = Task(uid="t", prompt="q", answer="7", columns={"metadata": '{"source_dataset": "gcd"}'})
    try:
        assert reward.verify("<answer>7</answer>", task).value == 1.0
        assert reward.verify("<answer>8</answer>", task).value == 0.0
    except RewardError as error:
        pytest.skip(str(error))
    finally:
        reward.close()


def test_the_source_splits_by_question_and_drops_repeats(monkeypatch):
    import json
    import sys
    from types import SimpleNamespace

    from grpo.data.gym import ReasoningGym as Source
    from grpo.errors import DataError

    def create_dataset(name, size, seed):
        if name != "sums":
            raise ValueError(f"unknown {name}")
        # every question comes twice
        return [
            {"question": f"{i // 2} + {seed}?", "answer": str(i // 2 + seed), "metadata": {"i": i}}
            for i in range(size)
        ]

    monkeypatch.setitem(
        sys.modules, "reasoning_gym", SimpleNamespace(create_dataset=create_dataset)
    )
    source = Source("sums", size=200, seed=3, heldout=0.3)
    tasks = {
        split: [source.task(split, i) for i in range(source.size(split))]
        for split in ("train", "heldout")
    }
    questions = {split: {task.prompt for task in some} for split, some in tasks.items()}
    assert not questions["train"] & questions["heldout"]
    assert len(questions["train"] | questions["heldout"]) == 100
    assert 15 <= len(tasks["heldout"]) <= 45  # 30 expected, 3.3 standard errors
    assert json.loads(tasks["train"][0].columns["metadata"])["i"] % 2 == 0
    assert tasks["train"][0].answer == str(int(tasks["train"][0].prompt.split()[0]) + 3)
    with pytest.raises(IndexError):
        source.task("train", 100)
    with pytest.raises(DataError, match="unknown other"):
        Source("other").size("train")


@pytest.mark.parametrize(
    ("name", "meta", "answer"),
    [
        ("countdown", {"numbers": [1, 2], "target": "three"}, "1 + 2"),
        ("countdown", {"numbers": [1, 2], "target": "1/0"}, "1 + 2"),
        ("spiral_matrix", {"solution": ["a", "b"]}, "1 2"),
        ("binary_matrix", {"solution": [["a"], ["b"]]}, "1\n2"),
        ("polynomial_multiplication", {"polynomial_expr": "x[0]", "variables": ["x"]}, "x"),
        ("polynomial_multiplication", {"polynomial_expr": "Abs(x)", "variables": ["x"]}, "x"),
        ("simple_integration", {"integrand": "Heaviside(x)", "variable": "x"}, "x"),
        ("simple_integration", {"integrand": "f'(x)", "variable": "x"}, "x"),
    ],
)
def test_a_row_that_cannot_be_read_is_not_held_against_the_answer(name, meta, answer):
    assert verdict(name, answer, meta) == (None, "unparseable_gold")


class Scorers:
    """Stands for reasoning-gym: `score` is every data set's scorer."""

    def __init__(self, score):
        self.get_score_answer_fn = lambda name: score


def test_an_answer_that_breaks_a_scorer_is_wrong_and_a_broken_scorer_is_not(monkeypatch):
    pytest.importorskip("reasoning_gym")
    from grpo.rewards import gym_guest

    stages = []
    entry = {"answer": "7", "metadata": {}}

    def judge(score, answer):
        monkeypatch.setattr(gym_guest, "_gym", Scorers(score))
        return gym_guest.judge("x", answer, entry, lambda: stages.append("answer"))

    assert judge(lambda a, e: float(int(a) == 7), "7") == {"score": 1.0}
    assert judge(lambda a, e: float(int(a) == 7), "seven")["unreadable"].startswith("ValueError")
    assert stages == ["answer"] * 2
    with pytest.raises(KeyError):  # on the row's own answer too
        judge(lambda a, e: e["missing"], "7")
    for error in (ImportError, OSError, MemoryError):

        def failing(a, e, error=error):
            raise error("gone")

        with pytest.raises(error):
            judge(failing, "7")


@pytest.mark.parametrize(
    ("failure", "value", "status"),
    [
        (WorkerTimeout(""), None, "grader_error"),
        (WorkerTimeout("answer"), 0.0, "timeout"),
        (WorkerDied("", "EOFError"), None, "grader_error"),
        (WorkerDied("answer", "EOFError"), 0.0, "limit"),
        (WorkerFault("ImportError: gone"), None, "grader_error"),
    ],
)
def test_only_what_comes_after_the_answer_is_read_counts_against_it(failure, value, status):
    reward = ReasoningGym(workers=1)

    class Failing:
        def call(self, request, timeout):
            raise failure

    reward.pool = Failing()
    task = Task(uid="t", prompt="q", answer="7", columns={"metadata": {"source_dataset": "gcd"}})
    score = reward.verify("<answer>7</answer>", task)
    assert (score.value, score.status) == (value, status)
