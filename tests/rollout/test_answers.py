"""What an engine may answer, and what is refused before it is trained on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from grpo.errors import EngineError
from grpo.rollout.answers import check_answer
from grpo.rollout.collect import collect
from grpo.types import Completion, Request, Sampling, Segment, Version

EOS = 2
VOCAB = 19
SAMPLING = Sampling(max_tokens=5, eos_ids=(EOS,))


def request(**sampling: Any) -> Request:
    return Request(uid="1/0", ids=(3, 4), n=2, sampling=replace(SAMPLING, **sampling), key=(0,))


def answer(
    ids: Any = (5, 6, EOS),
    logprobs: Any = (-1.0, -0.5, -0.1),
    *,
    second: tuple[Any, Any] | None = None,
    **fields: Any,
) -> Completion:
    """A good completion, unless told otherwise; `second`: ids and log-probs of another segment."""
    parts = [(ids, logprobs), *([second] if second else [])]
    segments = tuple(
        Segment(
            ids=np.array(i, dtype=np.int64) if isinstance(i, tuple) else i,
            logprobs=np.array(p, dtype=np.float32) if isinstance(p, tuple) else p,
            version=Version(step=0, hash=""),
        )
        for i, p in parts
    )
    given = {"request": "1/0", "index": 0, "segments": segments, "text": "", "finish": "stop"}
    return Completion(**{**given, **fields})


def test_good_answers_pass() -> None:
    check_answer(request(), answer(), vocab_size=VOCAB)
    check_answer(request(), answer(ids=(5, 6, 7), finish="length"), vocab_size=VOCAB)
    check_answer(request(), answer(ids=(), logprobs=(), finish="abort"), vocab_size=VOCAB)
    check_answer(request(), answer(logprobs=(0.0, 1e-4, -1e9)), vocab_size=VOCAB)  # rounding
    check_answer(request(stop=("x",)), answer(ids=(5, 6, 7)), vocab_size=VOCAB)  # a stop string
    check_answer(request(), answer(ids=(), logprobs=(), text="4"), text=True)  # a server's text
    check_answer(request(), answer(second=((5, EOS), (-1.0, -1.0))), vocab_size=VOCAB)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (answer(logprobs=(-1.0, -0.5)), "has 2 log-probs for 3 tokens"),
        # one too short and one too long: as many in all as there are tokens
        (answer(logprobs=(-1.0, -0.5), second=((5,), (-1.0, -1.0))), "has 2 log-probs for 3"),
        (answer(logprobs=(-1.0, float("nan"), -1.0)), "has nan among its log-probs"),
        (answer(logprobs=(-1.0, float("-inf"), -1.0)), "has -inf among its log-probs"),
        (answer(logprobs=(-1.0, 0.7, -1.0)), "has 0.69999.* among its log-probs"),
        (answer(logprobs=np.array([-1.0, None, -1.0])), "has log-probs as object array"),
        (answer(logprobs=None), "has log-probs as None"),
        (answer(logprobs=[-1.0, -1.0, -1.0]), "has log-probs as "),
        (answer(ids=(5, VOCAB, EOS)), "has token id 19, .* of 0 to 18"),
        (answer(ids=(5, -1, EOS)), "has token id -1"),
        (answer(ids=np.array([5.0, 6.0, 2.0])), "has token ids as float64"),
        (answer(ids=np.array([[5, 6, 2]])), r"has token ids as int64 \(1, 3\)"),
        (answer(ids=[5, 6, 2]), "has token ids as list"),
        (answer(ids=(5, 6, 7, 8, 9, EOS), logprobs=(-1.0,) * 6), "has 6 tokens where at most 5"),
        (answer(ids=(5, 6, 7)), "ended with 'stop' on token 7, which is none of the ends"),
        (answer(ids=(), logprobs=(), text="4"), "has no tokens"),
        (answer(finish="eos"), "ended with 'eos'; valid: stop, length, abort"),
        (answer(index=2), "was not asked for: its samples are 0 to 1"),
        (answer(segments=()), "has no segment"),
        (answer(text=None), "has NoneType for a text"),
    ],
)
def test_wrong_answers_are_refused_by_name(wrong: Completion, says: str) -> None:
    with pytest.raises(EngineError, match=says) as caught:
        check_answer(request(), wrong, vocab_size=VOCAB)
    assert "of request '1/0'" in str(caught.value)


class Scripted:
    """Just enough of an engine for `collect`."""

    def __init__(self, completions: list[Completion]) -> None:
        self.completions = completions
        self.canceled: list[str] = []

    def submit(self, requests: Any) -> None:
        pass

    def poll(self, timeout: float | None = None) -> list[Completion]:
        completions, self.completions = self.completions, []
        return completions

    def cancel(self, uids: list[str]) -> None:
        self.canceled = uids


def test_what_is_collected_is_checked() -> None:
    engine: Any = Scripted([answer(), answer(index=1, logprobs=(-1.0,))])
    with pytest.raises(EngineError, match="completion 1 of request '1/0' has 1 log-probs"):
        list(collect(engine, [request()]))
    assert engine.canceled == ["1/0"]
