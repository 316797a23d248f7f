"""What an engine answers, checked at the door: before a token of it is scored or trained on.

Log-probs travel beside the tokens as one flat array, so a list that is one too short would move
every log-prob after it to another token. Nothing further in would notice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from grpo.errors import EngineError
from grpo.types import Completion, Request, Segment

ROUNDING = 1e-3  # by which a log-prob may lie above 0, in nats: bfloat16 sums do so
ENDINGS = ("stop", "length", "abort")


def check_answer(
    request: Request, completion: Completion, *, vocab_size: int | None = None, text: bool = False
) -> None:
    """Raise EngineError unless `completion` can be an answer to `request`.

    Checked are the sample's number, token ids (whole numbers of the vocabulary), as many log-probs
    as tokens, each finite and at most 0, no more tokens than were asked for, and an ending that
    fits the last token. `vocab_size`: rows of the model's embedding; None: not known. `text`: an
    answer of text alone is enough, as for an evaluation of a server that gives no tokens.
    """
    fault = (
        _place(request, completion)
        or _segments(completion.segments, vocab_size)
        or _ending(request, completion, text)
    )
    if fault:
        raise EngineError(
            f"completion {completion.index} of request {request.uid!r} {fault}; the engine is not "
            "to be trained with as it is"
        )


def _place(request: Request, completion: Completion) -> str:
    if not 0 <= completion.index < request.n:
        return f"was not asked for: its samples are 0 to {request.n - 1}"
    return ""


def _segments(segments: Sequence[Segment], vocab_size: int | None) -> str:
    if not segments:
        return "has no segment"
    for segment in segments:
        fault = _ids(segment.ids, vocab_size)
        if not fault and segment.source == "model":
            fault = _logprobs(segment.logprobs, len(segment.ids))
        elif not fault and len(segment.logprobs) != len(segment.ids):
            fault = _lengths(len(segment.logprobs), len(segment.ids))
        if fault:
            return fault
    return ""


def _ids(ids: object, vocab_size: int | None) -> str:
    if not isinstance(ids, np.ndarray) or ids.ndim != 1 or ids.dtype.kind not in "iu":
        kind = f"{ids.dtype} {ids.shape}" if isinstance(ids, np.ndarray) else type(ids).__name__
        return f"has token ids as {kind}, not as a flat array of whole numbers"
    outside = ids[(ids < 0) | (ids >= (vocab_size or np.inf))]
    if len(outside):
        last = "" if vocab_size is None else f" of 0 to {vocab_size - 1}"
        return f"has token id {int(outside[0])}, which is outside the vocabulary{last}"
    return ""


def _logprobs(values: object, count: int) -> str:
    if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype.kind != "f":
        kind = f"{values.dtype} array" if isinstance(values, np.ndarray) else repr(values)[:40]
        return f"has log-probs as {kind}, not as a flat array of floating-point numbers"
    if len(values) != count:
        return _lengths(len(values), count)
    wrong = values[~(np.isfinite(values) & (values <= ROUNDING))]
    if len(wrong):
        return f"has {wrong[0]} among its log-probs, which are finite and at most 0"
    return ""


def _lengths(found: int, count: int) -> str:
    return f"has {found} log-probs for {count} tokens"


def _ending(request: Request, completion: Completion, text: bool) -> str:
    sampling, count = request.sampling, len(completion)
    if not isinstance(completion.text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        return f"has {type(completion.text).__name__} for a text"
    if completion.finish not in ENDINGS:
        return f"ended with {completion.finish!r}; valid: {', '.join(ENDINGS)}"
    own = int(completion.mask.sum())
    if own > sampling.max_tokens:
        return f"has {own} tokens where at most {sampling.max_tokens} were asked for"
    if completion.finish == "abort" or (text and not count):
        return ""
    if not count:
        return "has no tokens, and so nothing to learn from"
    ends = sampling.eos_ids
    last = int(completion.segments[-1].ids[-1]) if len(completion.segments[-1].ids) else None
    if completion.finish == "stop" and ends and not sampling.stop and last not in ends:
        return f"ended with 'stop' on token {last}, which is none of the ends {list(ends)}"
    return ""
