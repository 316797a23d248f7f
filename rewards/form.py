"""How a completion is written: the tags of R1-Zero's format, its length, what it repeats.

The format is one `<think>` block, then one `<answer>` block, both non-empty, nothing outside: one
linear scan. (The usual regexes score every multi-line thought 0 without DOTALL, or accept two
answers.) A `<think>` that the template already wrote is part of the completion that rewards see, so
it counts as present.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from grpo.errors import PluginError
from grpo.outside.code.plugins import load
from grpo.rewards.verifier import GradedReward, VerifierReward
from grpo.types import Score, Task

_TAG = re.compile(r"</?(?:think|answer)>")
_EXPECTED = ["<think>", "</think>", "<answer>", "</answer>"]


def format_fault(text: str) -> str | None:
    """Why the text does not follow the format, or None if it does."""
    tags = [match.group() for match in _TAG.finditer(text)]
    if tags != _EXPECTED:
        return f"tags are {' '.join(tags[:8]) or 'missing'}"
    before, thought, between, answer, after = _TAG.split(text)
    if before.strip() or between.strip() or after.strip():
        return "text outside the blocks"
    if not _visible(thought):
        return "empty thought"
    return None if _visible(answer) else "empty answer"


def _visible(text: str) -> bool:
    """Whether a reader sees anything: zero-width characters are no content."""
    return any(char.isprintable() and not char.isspace() for char in text)


class Format(VerifierReward):
    """1 if the completion follows the R1-Zero format, else 0."""

    name = "format"
    needs = ()
    judges = False  # its right and wrong are about the form

    def verify(self, completion: str, task: Task) -> Score:
        """correct or wrong, with the first fault as detail."""
        fault = format_fault(completion)
        if fault is None:
            return Score(value=1.0, status="correct")
        return Score(value=0.0, status="wrong", detail=fault)


class Tags(GradedReward):
    """The share of the four tags that are written exactly once: a gentler start than `format`.

    It pays for tags alone, so it wants a gate or a small weight once the format is learned.
    """

    name = "tags"

    def grade(self, text: str, ids: Sequence[int] | None, task: Task) -> Score:
        """scored: 0, 0.25, 0.5, 0.75 or 1."""
        once = sum(text.count(tag) == 1 for tag in _EXPECTED)
        return Score(value=once / 4, status="scored", detail=f"{once} of 4 tags")


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
