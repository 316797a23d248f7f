"""Format: one `<think>` block, then one `<answer>` block, both non-empty, nothing outside.

R1-Zero's format reward as one linear scan. (The usual regexes score every multi-line thought 0
without DOTALL, or accept two answers.) A `<think>` that the template already wrote is part of the
completion that rewards see, so it counts as present.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

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
