"""A reward made of rewards: a gate.

It is a reward itself, so a recipe nests others in it through `args`, and TRL can call it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grpo.errors import RewardError
from grpo.outside.code.plugins import load
from grpo.rewards.calling import invoke
from grpo.types import Score, Task

UNUSABLE = ("unparseable_gold", "grader_error")


def called(name: str, reward: Any, keywords: dict[str, Any]) -> list[Score]:
    """The scores of a reward inside another. Raises RewardError for an asynchronous one."""
    output = invoke(name, reward, keywords)
    if not isinstance(output, list):
        output.close()
        raise RewardError(f"reward {name!r} is asynchronous: list it in the recipe, not inside one")
    return output


class Gate:
    """`reward` counts only where `verifier` is satisfied; elsewhere it is 0.

    A bonus for being short or well laid out must not be had for a wrong answer. Where the verifier
    has no number, neither has the gate.
    """

    __name__ = "gate"

    def __init__(
        self,
        reward: str,
        reward_args: Mapping[str, Any] | None = None,
        verifier: str = "accuracy",
        verifier_args: Mapping[str, Any] | None = None,
        threshold: float = 1.0,
    ) -> None:
        self.names = (reward, verifier)
        self.reward = load("reward", reward, reward_args)
        self.verifier = load("reward", verifier, verifier_args)
        self.threshold = threshold

    @property
    def nested(self) -> list[tuple[str, Any]]:
        """The rewards within, by name."""
        return list(zip(self.names, (self.reward, self.verifier), strict=True))

    def inner(self, _task: Task) -> list[tuple[str, Any]]:
        """The rewards that a task's columns go to, by name."""
        return self.nested

    def scores(self, **keywords: Any) -> list[Score]:
        """One `Score` per completion, by TRL's calling convention."""
        bonuses = called(self.names[0], self.reward, keywords)
        verdicts = called(self.names[1], self.verifier, keywords)
        return [self._gated(b, v) for b, v in zip(bonuses, verdicts, strict=True)]

    def _gated(self, bonus: Score, verdict: Score) -> Score:
        if verdict.value is None:
            return verdict
        if verdict.value >= self.threshold or bonus.value is None:
            return bonus
        return Score(value=0.0, status="scored", detail=f"closed: {verdict.status}")

    def __call__(self, **keywords: Any) -> list[float | None]:
        """One float or None per completion, by TRL's calling convention."""
        return [score.value for score in self.scores(**keywords)]

    def close(self) -> None:
        """Release what the two rewards hold."""
        close_all(self.reward, self.verifier)


def close_all(*rewards: Any) -> None:
    """Release what the rewards hold; not all of them hold something."""
    for reward in rewards:
        close = getattr(reward, "close", None)
        if callable(close):
            close()
