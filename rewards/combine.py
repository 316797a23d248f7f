"""Rewards made of rewards: a gate, and GDPO's per-reward normalization.

Both are rewards themselves, so a recipe nests them through `args`, and TRL can call them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from grpo.errors import PluginError, RewardError
from grpo.outside.code.plugins import builtins, load
from grpo.rewards.calling import invoke
from grpo.rewards.verdicts import judges, verdict
from grpo.rewards.verifier import text_of
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
        self.reward = load("reward", reward, builtins("reward"), dict(reward_args or {}))
        self.verifier = load("reward", verifier, builtins("reward"), dict(verifier_args or {}))
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


class GroupNormalized:
    """GDPO (2601.05242): each reward is normalized within its group before they are added.

    With a plain sum, rewards of different spread drown one another and different mixes collapse to
    one total. (r - mean) / (std + 1e-4) per reward and group, weighed, then added. Use it with the
    `batch` advantage, which is GDPO's second step. Groups are runs of one prompt.
    """

    __name__ = "gdpo"
    scope = "group"

    def __init__(self, rewards: Sequence[Mapping[str, Any]]) -> None:
        if not rewards or any("name" not in entry for entry in rewards):
            raise PluginError("gdpo: rewards is a list of {name, weight, args}")
        self.rewards = [
            (
                str(entry["name"]),
                load("reward", entry["name"], builtins("reward"), dict(entry.get("args") or {})),
                float(entry.get("weight", 1.0)),
            )
            for entry in rewards
        ]

    def inner(self, _task: Task) -> list[tuple[str, Any]]:
        """The rewards that a task's columns go to, by name."""
        return [(name, reward) for name, reward, _ in self.rewards]

    @property
    def judges(self) -> bool:
        """Whether one of the rewards says right or wrong."""
        return any(judges(reward) for _, reward, _ in self.rewards)

    def scores(self, **keywords: Any) -> list[Score]:
        """One `Score` per completion; `parts` holds the rewards as they were."""
        rows = len(keywords["completions"])
        asked = [text_of(p) for p in keywords.get("prompts") or [""] * rows]
        runs = [[row for row, _ in run] for _, run in groupby(enumerate(asked), lambda x: x[1])]
        columns = {name: called(name, reward, keywords) for name, reward, _ in self.rewards}
        unusable = {
            row: score
            for column in columns.values()
            for row, score in enumerate(column)
            if score.status in UNUSABLE
        }
        totals: list[list[float]] = [[] for _ in range(rows)]
        for name, _, weight in self.rewards:
            for run in runs:
                values = {
                    row: value
                    for row in run
                    if row not in unusable and (value := columns[name][row].value) is not None
                }
                for row, value in normalized(values).items():
                    totals[row].append(weight * value)
        scores: list[Score] = []
        for row in range(rows):
            parts = {name: column[row].value for name, column in columns.items()}
            right = {
                name: verdict(columns[name][row])
                for name, reward, _ in self.rewards
                if judges(reward)
            }
            if row in unusable or not totals[row]:
                status = unusable[row].status if row in unusable else "not_applicable"
                scores.append(Score(value=None, status=status, parts=parts, right=right))
            else:
                judged = [columns[name][row] for name in right]
                first = (judged or [columns[self.rewards[0][0]][row]])[0]
                value = math.fsum(totals[row])
                scores.append(Score(value=value, status=first.status, parts=parts, right=right))
        return scores

    def __call__(self, **keywords: Any) -> list[float | None]:
        """One float or None per completion, by TRL's calling convention."""
        return [score.value for score in self.scores(**keywords)]

    def close(self) -> None:
        """Release what the rewards hold."""
        close_all(*(reward for _, reward, _ in self.rewards))


def normalized(values: Mapping[int, float]) -> dict[int, float]:
    """(value - mean) / (std + 1e-4), std with Bessel's correction as in TRL; 0 for a lone value."""
    count = len(values)
    if count < 2:
        return dict.fromkeys(values, 0.0)
    mean = math.fsum(values.values()) / count
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in values.values()) / (count - 1))
    return {row: (value - mean) / (std + 1e-4) for row, value in values.items()}


def close_all(*rewards: Any) -> None:
    """Release what the rewards hold; not all of them hold something."""
    for reward in rewards:
        close = getattr(reward, "close", None)
        if callable(close):
            close()
