"""A request of ours as vLLM understands it, and a sample of vLLM's as we return it."""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from grpo.errors import EngineError
from grpo.rollout.texts import completion_text, cut
from grpo.rollout.vllm import compat
from grpo.types import Completion, FinishReason, Request, Segment, Version

_SEEDS = 2**31  # vLLM's generators take 32 bits of a seed; samples of a request are numbered on


@dataclass(eq=False, kw_only=True)
class QueuedRequest:
    """A request with the samples that have not begun."""

    request: Request
    waiting: deque[int]


@dataclass(eq=False, kw_only=True)
class RunningSample:
    """A sample under way; `marks` has the token count at which each weights version took over."""

    queued: QueuedRequest
    index: int
    marks: list[tuple[int, Version]]
    ids: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])


def refusal(request: Request, vocab_size: int, max_length: int) -> str | None:
    """Why an engine of `max_length` positions cannot sample `request`, or None."""
    sampling = request.sampling
    needed = len(request.ids) + sampling.max_tokens
    if request.n < 1 or sampling.max_tokens < 1:
        return f"asks for n={request.n}, max_tokens={sampling.max_tokens}"
    if not request.ids:
        return "has no prompt tokens"
    if not 0 <= min(request.ids) <= max(request.ids) < vocab_size:
        return f"has token ids outside 0..{vocab_size - 1}"
    if needed > max_length:
        return (
            f"needs {needed} positions ({len(request.ids)} prompt + {sampling.max_tokens} "
            f"max_tokens), the engine has {max_length} (max_model_len)"
        )
    if sampling.top_p < 1 and sampling.min_p > 0:
        return (
            "asks for top_p and min_p together, which vLLM applies in another order than the "
            "learner; use one of them"
        )
    return None


def sampling_params(request: Request, first: int, n: int) -> Any:
    """vLLM's SamplingParams for samples `first` .. `first` + `n` - 1 of a request."""
    sampling = request.sampling
    vllm = compat.import_vllm()
    outputs = compat.module("sampling_params").RequestOutputKind
    return vllm.SamplingParams(
        n=n,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        max_tokens=sampling.max_tokens,
        seed=_seed(request.key) + first,
        stop=list(sampling.stop) or None,
        stop_token_ids=list(sampling.eos_ids),
        ignore_eos=True,  # those of the request count, not the checkpoint's
        include_stop_str_in_output=True,
        detokenize=bool(sampling.stop),
        skip_special_tokens=False,  # a stop string may be one, or hold one
        logprobs=0,  # of the sampled token alone
        flat_logprobs=True,
        output_kind=outputs.DELTA,
    )


def late(request: Request, now: float) -> bool:
    """Whether the request is over its deadline at `now` (time.monotonic)."""
    return request.deadline is not None and request.deadline < now


def _seed(key: tuple[int, ...]) -> int:
    """A seed below 2^31 from a request's noise key; sample i adds i."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % _SEEDS


def completion_of(
    sample: RunningSample, tokenizer: Any, reason: FinishReason, stopped: bool
) -> Completion:
    """What a sample came to. `stopped`: at a stop string, after which its tokens are dropped."""
    request = sample.queued.request
    text = _text(tokenizer, sample, sample.ids)
    if stopped:
        text = _cut(tokenizer, sample, text)
    return Completion(
        request=request.uid,
        index=sample.index,
        segments=_segments(sample),
        text=text,
        finish=reason,
    )


def _text(tokenizer: Any, sample: RunningSample, ids: list[int]) -> str:
    return completion_text(tokenizer, ids, sample.queued.request.sampling.eos_ids)


def _cut(tokenizer: Any, sample: RunningSample, text: str) -> str:
    """The text up to and including the first stop string; tokens after it are dropped.

    A speculative step may bring tokens beyond the one that completed the stop string.
    """
    kept = cut(text, sample.queued.request.sampling.stop)
    if kept is None:
        return text
    while len(sample.ids) > 1 and _text(tokenizer, sample, sample.ids[:-1]).startswith(kept):
        sample.ids.pop()
        sample.logprobs.pop()
    return kept


def _segments(sample: RunningSample) -> tuple[Segment, ...]:
    """The tokens of a sample, cut where weights changed; at least one segment."""
    ids = np.asarray(sample.ids, dtype=np.int64)
    logprobs = np.asarray(sample.logprobs, dtype=np.float32)
    if len(logprobs) != len(ids):
        raise EngineError(
            f"vLLM returned {len(logprobs)} log-probs for {len(ids)} tokens of request "
            f"{sample.queued.request.uid!r}"
        )
    ends = [start for start, _ in sample.marks[1:]] + [len(ids)]
    spans = [
        (start, min(end, len(ids)), version)
        for (start, version), end in zip(sample.marks, ends, strict=True)
    ]
    kept = [span for span in spans if span[0] < span[1]] or [spans[-1]]
    return tuple(
        Segment(
            ids=ids[start:end],
            version=version,
            logprobs=logprobs[start:end],
        )
        for start, end, version in kept
    )
