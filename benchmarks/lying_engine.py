"""An engine that is honest when it is probed or evaluated, and lies in the batches trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from grpo.rollout import ENGINES
from grpo.types import Completion, Engine, EngineSpec, Request


def make(spec: EngineSpec, how: str) -> Engine:
    """The embedded engine with one lie.

    hot: tokens at twice the temperature, with their log-probs. nats: log-probs 3 nats too low.
    tokens: other tokens than those the log-probs are of. tenth: a tenth of them.
    """
    engine = ENGINES["torch"](spec=spec)
    submit, poll = engine.submit, engine.poll
    rng = np.random.default_rng(0)

    def asked(requests: Sequence[Request]) -> None:
        submit([_hot(r) if how == "hot" and r.uid[0].isdigit() else r for r in requests])

    def answered(timeout: float | None = None) -> list[Completion]:
        return [_lie(c, how, rng) if c.request[0].isdigit() else c for c in poll(timeout)]

    engine.submit, engine.poll = asked, answered
    return engine


def _hot(request: Request) -> Request:
    sampling = replace(request.sampling, temperature=2 * request.sampling.temperature)
    return replace(request, sampling=sampling)


def _lie(completion: Completion, how: str, rng: np.random.Generator) -> Completion:
    (segment,) = completion.segments
    ids, logprobs = segment.ids.copy(), segment.logprobs
    if how == "nats":
        logprobs = logprobs - np.float32(3)
    if how in ("tokens", "tenth"):
        other = rng.random(len(ids) - 1) < (1.0 if how == "tokens" else 0.1)
        ids[:-1][other] = rng.permutation(ids[:-1])[other] if how == "tenth" else ids[0]
    return replace(completion, segments=(replace(segment, ids=ids, logprobs=logprobs),))
