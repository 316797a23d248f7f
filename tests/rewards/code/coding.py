"""Scoring a program against tests, for the test files of the `code` reward."""

from __future__ import annotations

from grpo.rewards.code.reward import Code
from grpo.types import Score, Task


def judged(reward: Code, program: str, tests: object, **columns: object) -> Score:
    task = Task(uid="t", prompt="q", columns={"tests": tests, **columns})
    return reward.verify(f"<think>x</think>\n```python\n{program}\n```", task)


def value(reward: Code, program: str, *asserts: str, **others: object) -> float | None:
    """The value of a program under asserts; `others` are more keys of the tests."""
    return judged(reward, program, {"asserts": list(asserts), **others}).value


def functional(reward: Code, program: str, tests: str) -> float | None:
    return judged(reward, program, {"functional": tests}).value
