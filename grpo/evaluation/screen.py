"""R1's filters for rejection sampling, as pure functions: which completions of a task are kept.

R1 (2501.12948, section 2.3.3) keeps correct completions, and drops those whose thought mixes
languages, has long paragraphs or has code blocks. Truncated, repetitive, leaked and duplicate
completions are dropped too. A dropped completion has one reason, the first of `REASONS` that
applies.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from grpo.config.schema import Filter
from grpo.data.source import stable_hash
from grpo.evaluation.decontaminate import Evaluation, ngrams, normalized
from grpo.rewards.extract import split_thought
from grpo.rewards.form import Repetition
from grpo.rewards.language import LanguageConsistency
from grpo.types import FinishReason, Message, Task

REASONS = {
    "truncated": "cut by the length limit, or aborted",
    "unscored": "no reward had a number for it",
    "wrong": "weighted score below filter.min_reward",
    "pass_rate": "task outside filter.min_pass_rate to filter.max_pass_rate",
    "language": "thought not in filter.language",
    "repetition": "n-grams repeated beyond filter.max_repetition",
    "paragraph": "a paragraph of the thought beyond filter.max_paragraph",
    "code": "a code block in the thought",
    "contaminated": "leaks a task of filter.decontaminate",
    "duplicate": "same text as another completion of the task",
    "not_selected": "good, but beyond filter.keep",
}
REPEATED_NGRAM = 8
DIVERSITY_NGRAM = 3
_PARAGRAPHS = re.compile(r"\n[ \t]*\n")
_NOBODY = Task(uid="", prompt="")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One completion, prefill included, with its weighted score (None: unscored)."""

    index: int  # of the request's n
    text: str
    tokens: int | None  # None: the engine gives text only
    finish: FinishReason
    value: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampled:
    """A task with all of its completions, in sample order."""

    task: str  # uid
    prompt: str | list[Message]
    answer: str | None
    noise: str  # the request's noise key, seed/split/task/visit
    samples: tuple[Sample, ...]
    columns: Mapping[str, Any] = field(default_factory=dict[str, Any])  # of its chat template


@dataclass(frozen=True, kw_only=True, slots=True)
class Screened:
    """What is kept of a task, in sample order, and how many were dropped by which reason."""

    kept: tuple[Sample, ...]
    dropped: Counter[str]


def screen(group: Sampled, settings: Filter, evaluation: Evaluation, seed: int) -> Screened:
    """Filter, deduplicate and select the completions of one task."""
    dropped: Counter[str] = Counter()
    scored = [s for s in group.samples if s.value is not None]
    correct = [s for s in scored if s.value is not None and s.value >= settings.min_reward]
    rate = len(correct) / len(scored) if scored else 0.0
    in_band = settings.min_pass_rate <= rate <= settings.max_pass_rate
    good: dict[str, Sample] = {}
    for sample in group.samples:
        reason = flaw(sample, settings, evaluation, in_band)
        same = normalized(sample.text)
        if not reason and same in good:
            reason = "duplicate"
        if reason:
            dropped[reason] += 1
        else:
            good[same] = sample
    kept = select(list(good.values()), settings, seed, group.task)
    if len(kept) < len(good):
        dropped["not_selected"] = len(good) - len(kept)
    return Screened(kept=tuple(kept), dropped=dropped)


def flaw(sample: Sample, settings: Filter, evaluation: Evaluation, in_band: bool) -> str:
    """The first of `REASONS` that speaks against a completion by itself, "" for none."""
    if sample.finish != "stop":
        return "truncated"
    if sample.value is None:
        return "unscored"
    if sample.value < settings.min_reward:
        return "wrong"
    if not in_band:
        return "pass_rate"
    thought = thought_of(sample.text)
    if settings.language:
        grade = LanguageConsistency(settings.language).grade(sample.text, None, _NOBODY)
        if grade.value is not None and grade.value < settings.min_language:
            return "language"
    if repeated(sample.text) > settings.max_repetition:
        return "repetition"
    if settings.max_paragraph and longest_paragraph(thought) > settings.max_paragraph:
        return "paragraph"
    if not settings.code_blocks and "```" in thought:
        return "code"
    return "contaminated" if evaluation.leak(sample.text) else ""


def thought_of(text: str) -> str:
    """The thought of a completion; the whole completion where none is marked."""
    thought, answer = split_thought(text)
    if answer is not None and "</think>" not in text:
        thought = answer
    return thought.replace("<think>", "", 1)


def repeated(text: str) -> float:
    """Share of 8-grams of words that repeat an earlier one, in [0, 1)."""
    return -(Repetition(n=REPEATED_NGRAM).grade(text, None, _NOBODY).value or 0.0)


def longest_paragraph(thought: str) -> int:
    """Characters of the longest paragraph; blank lines separate paragraphs."""
    return max(len(paragraph.strip()) for paragraph in _PARAGRAPHS.split(thought))


def select(good: Sequence[Sample], settings: Filter, seed: int, task: str) -> list[Sample]:
    """Up to `filter.keep` of the good completions of one task, in sample order."""
    if settings.select == "diverse":
        chosen = diverse(good, settings.keep)
    elif settings.select == "shortest":
        chosen = sorted(good, key=lambda s: (s.tokens or 0, len(s.text), s.index))
    elif settings.select == "random":
        chosen = sorted(good, key=lambda s: stable_hash("keep", seed, task, s.index))
    else:
        chosen = list(good)
    return sorted(chosen[: settings.keep], key=lambda s: s.index)


def diverse(good: Sequence[Sample], keep: int) -> list[Sample]:
    """The first, then again and again the one farthest from all chosen; ties to the earlier.

    The distance of two texts is 1 - Jaccard similarity of their sets of 3-grams of words.
    """
    left, chosen = list(good), list[Sample]()
    grams = {s.index: set(ngrams(s.text, DIVERSITY_NGRAM)) or {normalized(s.text)} for s in good}

    def apart(one: Sample) -> float:
        """From the nearest of those chosen."""
        gaps = (distance(grams[one.index], grams[other.index]) for other in chosen)
        return min(gaps, default=0.0)

    while left and len(chosen) < keep:
        best = max(left, key=apart)
        left.remove(best)
        chosen.append(best)
    return chosen


def distance(one: set[str], other: set[str]) -> float:
    """1 - |intersection| / |union|; 0 for two empty sets."""
    union = len(one | other)
    return 1.0 - len(one & other) / union if union else 0.0


def row(group: Sampled, sample: Sample) -> dict[str, Any]:
    """A kept completion as a training row: `prompt` is the task's own, without a template."""
    said: Any = sample.text
    if not isinstance(group.prompt, str):
        said = [{"role": "assistant", "content": sample.text}]
    return {
        "prompt": group.prompt,
        "completion": said,
        "answer": group.answer,
        "task": group.task,
        "tokens": sample.tokens,
        "reward": sample.value,
        "noise": f"{group.noise}/{sample.index}",
        **group.columns,
    }
