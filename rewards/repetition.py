"""Repetition: a penalty for saying the same n words again and again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from grpo.errors import PluginError
from grpo.rewards.verifier import GradedReward
from grpo.types import Score, Task

# A word, or one character of a script that writes no spaces.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff]+")


def repeated_share(items: Sequence[Any], n: int) -> float:
    """1 - distinct n-grams / n-grams, in [0, 1); 0 if there are fewer than n items."""
    grams = [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


class Repetition(GradedReward):
    """max_penalty times the share of repeated n-grams of words (Demystifying Long CoT)."""

    name = "repetition"

    def __init__(self, n: int = 4, max_penalty: float = -1.0) -> None:
        if n < 1 or max_penalty > 0:
            raise PluginError("repetition: n is at least 1 and max_penalty at most 0")
        self.n = n
        self.max_penalty = max_penalty

    def grade(self, text: str, ids: Sequence[int] | None, task: Task) -> Score:
        """scored: a value in [max_penalty, 0]."""
        share = repeated_share(_WORD.findall(text.lower()), self.n)
        detail = f"{share:.0%} of {self.n}-grams repeat"
        return Score(value=self.max_penalty * share, status="scored", detail=detail)
