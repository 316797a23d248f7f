"""A request on its way to being answered, and what becomes of each of its samples."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from grpo.rollout.texts import completion_text, cut
from grpo.types import Completion, FinishReason, Request, Sampling, Segment, Version


@dataclass(kw_only=True, eq=False)
class Job:
    """A request with the samples that have not begun.

    `first`: what the engine keeps of the prompt once it has read it; for the embedded engine the
    logits [V] after it.
    """

    request: Request
    waiting: deque[int]  # sample indices
    first: Any = None


@dataclass(kw_only=True, eq=False)
class Sample:
    """A sample under way; `marks` has the token count at which each weights version took over."""

    job: Job
    index: int
    marks: list[tuple[int, Version]]
    ids: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])

    def mark(self, made: int, version: Version) -> None:
        """Tokens after the first `made` are written by the weights `version`."""
        if self.marks[-1][0] == made:
            self.marks.pop()
        self.marks.append((made, version))


def refusal(request: Request, vocab_size: int | None, max_length: int | None) -> str | None:
    """Why an engine with such limits (None: not known) cannot sample `request`, or None."""
    prompt, most = request.ids, request.sampling.max_tokens
    needed = len(prompt) + most
    if request.n < 1 or most < 1:
        return f"asks for n={request.n}, max_tokens={most}"
    if not prompt:
        return "has no prompt tokens"
    if vocab_size is not None and not 0 <= min(prompt) <= max(prompt) < vocab_size:
        return f"has token ids outside 0..{vocab_size - 1}"
    if max_length is not None and needed > max_length:
        return (
            f"needs {needed} positions ({len(prompt)} prompt + {most} max_tokens), the engine has "
            f"{max_length}"
        )
    return None


def put_back(queue: deque[Job], samples: Sequence[Sample]) -> None:
    """Have `samples`, which have no token yet, wait again in front of `queue`."""
    for sample in reversed(samples):
        sample.job.waiting.appendleft(sample.index)
        if sample.job not in queue:
            queue.appendleft(sample.job)


def is_late(request: Request, now: float) -> bool:
    """Whether the request is past its deadline at `now` (time.monotonic)."""
    return request.deadline is not None and request.deadline < now


def segments_of(
    ids: np.ndarray, logprobs: np.ndarray, marks: Sequence[tuple[int, Version]]
) -> tuple[Segment, ...]:
    """Tokens int64 [T] with log-probs float32 [T], cut where weights changed; at least one segment.

    A mark at the end or beyond it has written nothing; only an empty completion keeps one.
    """
    kept = [mark for mark in marks if mark[0] < len(ids)] or marks[:1]
    ends = [start for start, _ in kept[1:]] + [len(ids)]
    return tuple(
        Segment(ids=ids[start:end], version=version, logprobs=logprobs[start:end])
        for (start, version), end in zip(kept, ends, strict=True)
    )


def without_tokens(
    request: Request,
    index: int,
    version: Version,
    *,
    text: str = "",
    finish: FinishReason = "abort",
) -> Completion:
    """A completion without tokens: aborted before its first one, or text of a foreign server."""
    nothing = Segment(
        ids=np.zeros(0, dtype=np.int64), version=version, logprobs=np.zeros(0, dtype=np.float32)
    )
    return Completion(
        request=request.uid, index=index, segments=(nothing,), text=text, finish=finish
    )


def finished(
    sample: Sample, tokenizer: Any, finish: FinishReason, *, stopped: bool = False
) -> Completion:
    """The completion of `sample`. `stopped`: a stop string ended it; tokens after that are dropped.

    An engine that decodes several tokens at a time may have some beyond the stop string.
    """
    request = sample.job.request
    text, count = completion_text(tokenizer, sample.ids, request.sampling.eos_ids), len(sample.ids)
    if stopped:
        text, count = up_to_stop(tokenizer, sample.ids, request.sampling) or (text, count)
    return Completion(
        request=request.uid,
        index=sample.index,
        segments=segments_of(
            np.asarray(sample.ids[:count], dtype=np.int64),
            np.asarray(sample.logprobs[:count], dtype=np.float32),
            sample.marks,
        ),
        text=text,
        finish=finish,
    )


def up_to_stop(tokenizer: Any, ids: Sequence[int], sampling: Sampling) -> tuple[str, int] | None:
    """The text of `ids` up to and including its first stop string, and how many tokens it takes.

    None where no stop string is in it.
    """

    def text(count: int) -> str:
        return completion_text(tokenizer, ids[:count], sampling.eos_ids)

    count = len(ids)
    kept = cut(text(count), sampling.stop)
    if kept is None:
        return None
    while count > 1 and text(count - 1).startswith(kept):
        count -= 1
    return kept, count
