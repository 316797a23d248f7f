"""What is asked of a server for one request, and how its answer becomes completions.

Token routes (vLLM's /inference/v1/generate) give ids, log-probs of the sampled distribution and the
weights behind every token. The text route (/v1/completions of any OpenAI-compatible server) gives
text: its completions have no tokens and can be scored, not trained on, since tokenizing text again
gives other tokens than were sampled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from grpo.outside.web.replies import Unreachable, part
from grpo.rollout.remote.http_engine import Strange
from grpo.rollout.samples import segments_of, without_tokens
from grpo.rollout.texts import completion_text, cut, whole_characters
from grpo.types import Completion, FinishReason, Request, Version

_ROUNDED_UP = 1e-3  # a log-prob of 0 may come out a little above it
_FINISH: dict[str, FinishReason] = {"stop": "stop", "length": "length", "abort": "abort"}


def seed_of(key: Sequence[int]) -> int:
    """A seed from a request's noise key, below 2**62: vLLM gives sample i the seed + i."""
    digest = hashlib.blake2b(json.dumps(list(key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2


def body_for(request: Request, name: str) -> dict[str, Any]:
    """The call for all samples of `request` on the token route, known to the server as `name`."""
    sampling = request.sampling
    return {
        "request_id": name,
        "token_ids": list(request.ids),
        "output_mode": "text",
        "sampling_params": {
            "n": request.n,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            # Of a server that reads defaults from generation_config.json of the model.
            "repetition_penalty": 1.0,
            "frequency_penalty": 0.0,
            "presence_penalty": 0.0,
            "seed": seed_of(request.key),
            "stop": list(sampling.stop),
            # The request's own ends of sequence, and none that the server knows of.
            "stop_token_ids": list(sampling.eos_ids),
            "ignore_eos": True,
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,  # a stop string may be one, or hold one
            "logprobs": 0,  # of the sampled token alone
        },
    }


def completions_from(
    request: Request,
    answer: Any,
    versions: Mapping[str, Version],
    *,
    aborted: bool,
    tokenizer: Any = None,
) -> list[Completion]:
    """The completions of a token-route answer, in sample order. Raises Strange and Unreachable.

    `versions` has the labels that this answer may carry; `aborted`: we asked for its abort. Texts
    are what `tokenizer` makes of the ids; the server's own without one.
    """
    choices = _choices(request, answer)
    return [_completion(request, choice, versions, aborted, tokenizer) for choice in choices]


def _completion(
    request: Request,
    choice: Mapping[str, Any],
    versions: Mapping[str, Version],
    aborted: bool,
    tokenizer: Any,
) -> Completion:
    finish = _finish(choice)
    if finish == "abort" and not aborted:
        raise Strange("the server aborted it")
    ids = _ids(choice, request.sampling.max_tokens)
    logprobs = _logprobs(choice)
    if len(logprobs) != len(ids):
        raise Strange(f"{len(ids)} tokens came with {len(logprobs)} log-probs")
    spans = [
        (
            part(span, "start", kind=int),
            part(span, "end", kind=int),
            part(span, "version", kind=str),
        )
        for span in _list(choice, "weight_versions")
    ]
    ends = [0, *(end for _, end, _ in spans)]
    if (
        [start for start, _, _ in spans] != ends[:-1]
        or ends != sorted(ends)
        or ends[-1] != len(ids)
    ):
        raise Strange(f"the server does not say which weights sampled all {len(ids)} tokens")
    unknown = {label for _, _, label in spans} - set(versions)
    if unknown:
        raise Strange(
            f"it was sampled from weights {sorted(unknown)} that this run did not deliver"
        )
    marks = [(start, versions[label]) for start, _, label in spans]
    if not marks:
        marks = [(0, list(versions.values())[-1])]
    return Completion(
        request=request.uid,
        index=choice["index"],
        segments=segments_of(ids, logprobs, marks),
        text=_own_text(choice) if tokenizer is None else _text(request, ids.tolist(), tokenizer),
        finish=finish,
    )


def _list(choice: Mapping[str, Any], name: str) -> list[Any]:
    """What may be missing where nothing was sampled."""
    return part(choice, name, kind=list) if choice.get(name) is not None else []


def _ids(choice: Mapping[str, Any], most: int) -> Any:
    """Token ids, int64 [T]. Raises Strange for other numbers, and for more than were asked for."""
    found = _list(choice, "token_ids")
    if not set(map(type, found)) <= {int} or not all(0 <= each < 2**31 for each in found):
        raise Strange("its token ids are not whole numbers from 0")
    if len(found) > most:
        raise Strange(f"{len(found)} tokens came, and at most {most} were asked for")
    return np.array(found, dtype=np.int64)


def _logprobs(choice: Mapping[str, Any]) -> Any:
    """Log-probs of the sampled tokens, float32 [T]. Raises Strange for what is none."""
    held = choice.get("logprobs") or {}
    entries = _list(held, "content") if isinstance(held, dict) else [held]
    found = [entry.get("logprob") if isinstance(entry, dict) else None for entry in entries]
    logprobs = np.array([n if _is_number(n) else np.nan for n in found], np.float32)
    if not np.all((logprobs > -np.inf) & (logprobs < _ROUNDED_UP)):
        raise Strange("its log-probs are not numbers up to 0")
    return logprobs


def _is_number(found: Any) -> bool:
    return type(found) in (float, int) and abs(found) < 1e30


def _own_text(choice: Mapping[str, Any]) -> str:
    return part(choice, "text", kind=str)


def _text(request: Request, ids: list[int], tokenizer: Any) -> str:
    text = completion_text(tokenizer, ids, request.sampling.eos_ids)
    kept = cut(text, request.sampling.stop)
    return text if kept is None else kept


def plain_body(request: Request, model: str) -> dict[str, Any]:
    """The call for `request` on the text route, in fields that every such server knows.

    Stop strings are not among them: the server would cut them out of the text.
    """
    sampling = request.sampling
    return {
        "model": model,
        "prompt": list(request.ids),
        "n": request.n,
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": seed_of(request.key),
    }


def plain_completions(
    request: Request, answer: Any, versions: Mapping[str, Version]
) -> list[Completion]:
    """The completions of a text-route answer: text without tokens.

    Raises Strange and Unreachable.
    """
    version = list(versions.values())[-1]
    return [
        text_completion(
            request,
            choice["index"],
            version,
            whole_characters(_own_text(choice)),
            _finish(choice),
        )
        for choice in _choices(request, answer)
    ]


def text_completion(
    request: Request, index: int, version: Version, text: str, finish: FinishReason
) -> Completion:
    """A completion of text alone, which ends with its first stop string."""
    kept = cut(text, request.sampling.stop)
    if kept is not None:
        text, finish = kept, "stop"
    return without_tokens(request, index, version, text=text, finish=finish)


def _choices(request: Request, answer: Any) -> list[Mapping[str, Any]]:
    """The answer's choices, exactly one for each sample."""
    numbered: list[tuple[int, Mapping[str, Any]]] = []
    with suppress(Unreachable):  # no choices, or without numbers: fewer than were asked for
        numbered = [(part(c, "index", kind=int), c) for c in part(answer, "choices", kind=list)]
    if sorted(index for index, _ in numbered) != list(range(request.n)):
        raise Strange(f"{len(numbered)} of {request.n} samples came")
    choices = dict(numbered)
    return [choices[index] for index in range(request.n)]


def _finish(choice: Mapping[str, Any]) -> FinishReason:
    reason = choice.get("finish_reason")
    if not isinstance(reason, str) or reason not in _FINISH:
        raise Strange(f"it ended with {reason!r}")
    return _FINISH[reason]
