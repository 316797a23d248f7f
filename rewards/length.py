"""Length rewards: the cosine schedule and DAPO's soft overlong punishment."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from grpo.errors import PluginError
from grpo.outside.code.plugins import load
from grpo.rewards.verifier import GradedReward, VerifierReward
from grpo.types import Score, Task


def length_of(text: str, ids: Sequence[int] | None) -> tuple[int, str]:
    """(length, unit): tokens where ids are known, else words."""
    return (len(ids), "tokens") if ids is not None and len(ids) else (len(text.split()), "words")


class CosineLength(GradedReward):
    """Correct and short is best, wrong and short is worst (Demystifying Long CoT, 2502.03373).

    A correct completion earns from `correct[1]` (length 0) down to `correct[0]` (max_length tokens
    or more), a wrong one from `wrong[0]` up to `wrong[1]`, along half a cosine. `verifier` (a
    built-in or a plug-in) says which it is; where it gives no number, neither does this.
    """

    name = "length_cosine"

    def __init__(
        self,
        max_length: int,
        verifier: str = "accuracy",
        verifier_args: Mapping[str, Any] | None = None,
        correct: Sequence[float] = (0.5, 1.0),
        wrong: Sequence[float] = (-1.0, -0.5),
    ) -> None:
        if max_length < 1 or len(correct) != 2 or len(wrong) != 2:
            raise PluginError("length_cosine: max_length >= 1; correct and wrong are [low, high]")
        self.verifier = load("reward", verifier, verifier_args)
        if not isinstance(self.verifier, VerifierReward):
            raise PluginError(f"length_cosine: {verifier!r} does not judge answers one by one")
        self.max_length = max_length
        self.correct = (float(correct[0]), float(correct[1]))
        self.wrong = (float(wrong[0]), float(wrong[1]))

    def inner(self, _task: Task) -> list[tuple[str, Any]]:
        """The verifier, to which a task's columns go."""
        return [(self.verifier.name, self.verifier)]

    def applies(self, task: Task) -> bool:
        """Whether the verifier applies."""
        return self.verifier.applies(task)

    def grade(self, text: str, ids: Sequence[int] | None, task: Task) -> Score:
        """scored, or the verifier's own status where it has no number."""
        verdict = self.verifier.verify(text, task)
        if verdict.value is None:
            return verdict
        length, unit = length_of(text, ids)
        falling = 0.5 * (1 + math.cos(math.pi * min(length, self.max_length) / self.max_length))
        low, high = self.correct if verdict.value >= 1.0 else reversed(self.wrong)
        value = low + (high - low) * falling
        return Score(value=value, status="scored", detail=f"{verdict.status}, {length} {unit}")

    def close(self) -> None:
        """Release the verifier's workers."""
        self.verifier.close()


class SoftOverlong(GradedReward):
    """0 up to max_length - cache tokens, then linearly down to -1 at max_length and beyond.

    DAPO (2503.14476), equation 13.
    """

    name = "soft_overlong"

    def __init__(self, max_length: int, cache: int) -> None:
        if not 0 < cache <= max_length:
            raise PluginError(f"soft_overlong: cache {cache} is not in 1..max_length {max_length}")
        self.max_length = max_length
        self.cache = cache

    def grade(self, text: str, ids: Sequence[int] | None, task: Task) -> Score:
        """scored: a value in [-1, 0]."""
        length, unit = length_of(text, ids)
        free = self.max_length - self.cache
        value = max(-1.0, min(0.0, (free - length) / self.cache))
        return Score(value=value, status="scored", detail=f"{length} {unit}")
