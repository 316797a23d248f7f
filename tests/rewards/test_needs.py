"""What a reward says it needs of a row is what it cannot judge without, and nothing else is."""

from __future__ import annotations

from typing import Any

import pytest

from grpo.outside.code.plugins import load
from grpo.rewards import REWARDS
from grpo.stages.preflight.needed import needs_of, parameters
from grpo.types import Task

TEXT = "<think>Two and two are four, as everybody knows.</think><answer>4</answer>"
ROLES = {"Ann": "knight"}
# reward -> its arguments, and columns in which TEXT gets a number ({}: it needs none)
SAMPLES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "accuracy": ({}, {"answer": "4"}),
    "math": ({"sandbox": "unsafe"}, {"answer": "4"}),
    "countdown": ({}, {"numbers": [2, 2], "target": 4}),
    "knights": ({}, {"roles": ROLES}),
    "code": ({"sandbox": "unsafe"}, {"tests": {"asserts": ["assert f(1) == 2"]}}),
    "reasoning_gym": (
        {"sandbox": "unsafe"},
        {"metadata": {"source_dataset": "countdown", "numbers": [2, 2], "target": 4}},
    ),
    "format": ({}, {}),
    "gate": ({"reward": "format"}, {"answer": "4"}),
    "language_consistency": ({}, {}),
    "length_cosine": ({"max_length": 8}, {"answer": "4"}),
    "random": ({}, {}),
    "repetition": ({}, {}),
    "routed": ({"routes": {"sums": {"name": "accuracy"}}}, {"task": "sums", "answer": "4"}),
    "soft_overlong": ({"max_length": 8, "cache": 4}, {}),
    "tags": ({}, {}),
}
ELSEWHERE = {"judge", "reward_model"}  # ask a server and a model; no column is necessary


def task(columns: dict[str, Any]) -> Task:
    others = {name: value for name, value in columns.items() if name != "answer"}
    return Task(uid="t", prompt="2+2?", answer=columns.get("answer"), columns=others)


def values(reward: Any, columns: dict[str, Any]) -> list[float | None]:
    keywords = {name: [value] for name, value in columns.items()}
    return list(reward(prompts=["2+2?"], completions=[TEXT], completion_ids=[[1, 2]], **keywords))


def test_every_reward_is_looked_at() -> None:
    assert set(SAMPLES) | ELSEWHERE == set(REWARDS)


@pytest.mark.parametrize("name", SAMPLES)
def test_the_declared_columns_are_those_it_cannot_do_without(name: str) -> None:
    args, columns = SAMPLES[name]
    reward = load("reward", name, args)
    try:
        needs = [need.column for need in needs_of(name, reward, task(columns))]
        asked = {part for column in needs for part in column.split("|")}
        routed = {"task"} if name == "routed" else set()  # by which its rewards are found
        assert set(columns) - routed <= asked
        assert bool(needs) == bool(columns)
        assert all(not need.must for need in needs_of(name, reward, task(columns)))
        assert values(reward, columns) != [None]
        for column in set(columns) - routed:
            less = {key: value for key, value in columns.items() if key != column}
            assert values(reward, less) == [None]
    finally:
        getattr(reward, "close", lambda: None)()


def test_a_function_needs_what_it_has_no_default_for() -> None:
    def reward(prompts: Any, completions: Any, level: Any, *, best: Any, worst: int = 0) -> Any: ...

    async def later(completions: Any, level: Any, **columns: Any) -> Any: ...

    class Object:
        def __call__(self, completions: Any, level: Any, trainer_state: Any) -> Any: ...

    class Verifier:
        def verify(self, completion: str, task: Task) -> Any: ...

    assert parameters("r", reward) == ["level", "best"]
    assert parameters("r", later) == ["level"]
    assert parameters("r", Object()) == parameters("r", Object) == ["level"]
    assert parameters("r", Verifier()) == parameters("r", Verifier) == []
