"""The verifier of knights and knaves: all roles or nothing, and no hedging."""

from __future__ import annotations

import json

import pytest

from grpo.data.knights import Knights as Puzzles
from grpo.rewards.puzzles import Knights
from grpo.types import Task

ROLES = {"Ada": "knight", "Bruno": "knave", "Clara": "knave"}
TASK = Task(uid="k", prompt="?", columns={"roles": json.dumps(ROLES)})
RIGHT = "(1) Ada is a knight\n(2) Bruno is a knave\n(3) Clara is a knave"


def verdict(answer: str, thought: str = "Ada says so.") -> tuple[str, float | None]:
    score = Knights().verify(f"<think>{thought}</think><answer>{answer}</answer>", TASK)
    return score.status, score.value


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (RIGHT, "correct"),
        ("Ada is a knight, bruno is a Knave and Clara is knave.", "correct"),
        ("\\boxed{Clara is a knave, Bruno is a knave, Ada is a knight}", "correct"),
        (RIGHT.replace("Clara is a knave", "Clara is a knight"), "wrong"),
        ("Ada is a knave, Bruno is a knight, Clara is a knight", "wrong"),
        ("Ada is a knight, Bruno is a knave", "unparseable_answer"),
        (RIGHT + "\nor Clara is a knight", "unparseable_answer"),
        (RIGHT + "\nClara is a knave", "unparseable_answer"),
        ("Ada and Bruno are knaves", "unparseable_answer"),
        ("Dora is a knight", "unparseable_answer"),
        ("Ada is a knightess, Bruno is a knave, Clara is a knave", "unparseable_answer"),
        ("", "unparseable_answer"),
        ("Ada is a knight " * 10_000, "unparseable_answer"),
    ],
)
def test_verdicts(answer: str, status: str) -> None:
    assert verdict(answer) == (status, 1.0 if status == "correct" else 0.0)


def test_the_thought_does_not_count() -> None:
    assert verdict("I do not know", thought=RIGHT)[0] == "unparseable_answer"
    open_thought = Knights().verify(f"<think>{RIGHT}", TASK)
    assert open_thought.status == "unparseable_answer"


def test_logic_rl_pays_by_verdict() -> None:
    reward = Knights(correct=2.0, wrong=-1.5, no_answer=-2.0)
    right = f"<answer>{RIGHT}</answer>"
    completions = [right, right.replace("knight", "knave"), "nothing"]
    values = reward(completions=completions, roles=[TASK.columns["roles"]] * 3)
    assert values == [2.0, -1.5, -2.0]


@pytest.mark.parametrize("roles", ["{", "[]", "{}", '{"Ada": "spy"}', 7])
def test_unusable_gold_is_unscored(roles: object) -> None:
    task = Task(uid="k", prompt="?", columns={"roles": roles})
    score = Knights().verify(f"<answer>{RIGHT}</answer>", task)
    assert (score.value, score.status) == (None, "unparseable_gold")
    assert not Knights().applies(Task(uid="k", prompt="?"))


def test_every_puzzle_accepts_its_own_answer() -> None:
    reward = Knights()
    for index in range(50):
        task = Puzzles(min_people=2).task("heldout", index)
        score = reward.verify(f"<think>hm</think><answer>{task.answer}</answer>", task)
        assert score.status == "correct"
