"""Any server with OpenAI's API, behind one URL: text in, text out.

A sample is one call with n = 1, which every such server understands. A call that fails is made
again after a growing wait, and a sample is given out once: only the answer to its latest call is
looked at. Token ids and log-probs do not come back, so these completions can be scored and learned
from by supervised fine-tuning, and not by reinforcement learning. The seed of a call comes from the
noise key; whether a server heeds it is up to the server.

A stop string ends a completion here and not at the server, which would cut it out of the text.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from grpo.errors import EngineError, WeightsError
from grpo.outside.web.address import USUAL_KEY, Address, key_from
from grpo.outside.web.replies import Refused, Unreachable, part
from grpo.rollout.remote.http_engine import HttpEngine, Work
from grpo.rollout.remote.server_answers import Strange, seed_of
from grpo.rollout.texts import cut, whole_characters
from grpo.types import (
    Ack,
    Completion,
    EngineSpec,
    FinishReason,
    InFlight,
    Message,
    Request,
    Segment,
    Version,
)

# Refusals that another try may lift: too slow, too early, too many requests.
PASSING = (408, 409, 425, 429)
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds before the second call of a sample, and at most
_JITTER = random.Random()  # of waiting times alone: nothing that is sampled depends on it
_ENDED: dict[str, FinishReason] = {"stop": "stop", "length": "length"}

Said = str | Sequence[Message]


@dataclass(kw_only=True, eq=False)
class _Sample(Work):
    """One sample of a request on its way to being answered."""

    index: int

    @property
    def key(self) -> Hashable:
        return self.request.uid, self.index


class EndpointEngine(HttpEngine[_Sample]):
    """An `Engine` that asks a server for text.

    url          address up to and with /v1
    model        the server's name for the model; "": the first that it lists
    say          text or messages of a request, from its ids; messages go to /chat/completions, text
                 to /completions
    timeout      seconds that one call may take
    retries      how often a sample is asked for again before the run stops
    concurrency  calls under way at a time
    api_key_env  environment variable with the server's key
    body         further fields of each call, say {"reasoning_effort": "low"}
    limit_field  the server's name for the most tokens of a completion
    """

    def __init__(
        self,
        spec: EngineSpec,
        *,
        url: str,
        say: Callable[[Request], Said],
        model: str = "",
        timeout: float = 600.0,
        retries: int = 6,
        concurrency: int = 16,
        api_key_env: str = USUAL_KEY,
        body: Mapping[str, Any] | None = None,
        limit_field: str = "max_tokens",
    ) -> None:
        super().__init__(
            Address(url=url, key=key_from(api_key_env, "rollout.engine_args.api_key_env")),
            spec.version,
            timeout=timeout,
            retries=retries,
            concurrency=concurrency,
        )
        self._say, self._body, self._limit_field = say, dict(body or {}), limit_field
        self._counts["completion_tokens"] = 0.0
        self.model = model or self._first_model()

    def _first_model(self) -> str:
        try:
            listed = self.client.call("GET", "/models", timeout=min(30.0, self._timeout))
            return part(listed, "data", 0, "id", kind=str)
        except (Unreachable, Refused) as error:
            raise EngineError(
                f"{self.address.url} does not say which models it serves ({error}): is it the "
                "address of a server with OpenAI's API, up to and with /v1, and is its key set? "
                "Otherwise name the model"
            ) from error

    # The Engine protocol

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests; EngineError (and none is queued) for one that cannot be asked for."""
        queued = self._queued()
        for request in requests:
            problem = ""
            if request.uid in queued:
                problem = "is queued already"
            elif request.sampling.top_k or request.sampling.min_p:
                problem = (
                    "asks for top_k or min_p, which OpenAI's API does not have; where the server "
                    "has them, write them into rollout.engine_args.body"
                )
            if problem:
                raise EngineError(f"request {request.uid!r} {problem}")
            queued.add(request.uid)
        for request in requests:
            for index in range(request.n):
                self._add(_Sample(request=request, index=index))

    def load_weights(
        self,
        weights: Iterable[tuple[str, Tensor]],
        version: Version,
        in_flight: InFlight = "finish",
    ) -> Ack:
        """Raises WeightsError: the server's model is its own."""
        del weights, version, in_flight
        raise WeightsError(
            f"the endpoint {self.address.url} takes no weights, so no policy can be trained with "
            "it; set rollout.engine to torch, vllm or server"
        )

    # Samples

    def _asked(self, work: _Sample) -> tuple[str, dict[str, Any]]:
        sampling, said = work.request.sampling, self._say(work.request)
        body: dict[str, Any] = {
            "model": self.model,
            "n": 1,
            self._limit_field: sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": (seed_of(work.request.key) + work.index) % 2**31,
            **self._body,
        }
        if isinstance(said, str):
            return "/completions", body | {"prompt": said}
        return "/chat/completions", body | {"messages": list(said)}

    def _settle(self, name: str, outcome: Any) -> None:
        sample = self._answered(name)
        if sample is None:
            return
        if isinstance(outcome, Refused) and outcome.status < 500 and outcome.status not in PASSING:
            raise EngineError(
                f"{self.address.url} refused a request to model {self.model!r}: {outcome}"
            )
        if not isinstance(outcome, Exception):
            try:
                text, finish = _read(outcome)
            except (Strange, Unreachable) as strange:
                outcome = strange
            else:
                self._count(outcome)
                kept = cut(text, sample.request.sampling.stop)
                self._give(sample, *((text, finish) if kept is None else (kept, "stop")))
                return
        elif not isinstance(outcome, Unreachable | Refused):
            raise outcome
        self._again(sample, outcome)

    def _again(self, sample: _Sample, reason: Exception) -> None:
        if sample.attempts > self._retries:
            raise EngineError(
                f"sample {sample.index} of request {sample.request.uid!r} failed "
                f"{sample.attempts} times at {self.address.url}, the last time: {reason}; what was "
                "finished is kept, so continue later, or raise rollout.engine_args.retries, or "
                "lower its concurrency"
            )
        wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (sample.attempts - 1))
        # Apart from one another, or all come back to a busy server at once.
        self._call_again(sample, wait * _JITTER.uniform(0.5, 1.0))

    def _count(self, answer: Any) -> None:
        with suppress(Unreachable):  # many servers do not say
            self._counts["completion_tokens"] += part(
                answer, "usage", "completion_tokens", kind=float
            )

    def _expire(self) -> None:
        """Give up what is past its deadline."""
        now = time.monotonic()
        for sample in list(self._timed.values()):
            deadline = sample.request.deadline
            if deadline is not None and deadline <= now:
                self._give(sample, "", "abort")

    def _give(self, sample: _Sample, text: str, finish: FinishReason) -> None:
        nothing = Segment(
            ids=np.zeros(0, dtype=np.int64),
            version=self.version,
            logprobs=np.zeros(0, dtype=np.float32),
        )
        completion = Completion(
            request=sample.request.uid,
            index=sample.index,
            segments=(nothing,),
            text=text,
            finish=finish,
        )
        self._finish(sample, [completion])


def _read(answer: Any) -> tuple[str, FinishReason]:
    """Text and ending of an answer's one choice. Raises Strange and Unreachable.

    A thought that the server took out of the text (`reasoning_content`, or `reasoning`) is put back
    in its tags. Endings other than stop and length, say by a content filter, are aborts.
    """
    choice = part(answer, "choices", 0, kind=dict)
    said = part(choice, "message", kind=dict) if "message" in choice else choice
    text = said.get("content" if "message" in choice else "text")
    thought = said.get("reasoning_content") or said.get("reasoning") or ""
    if text is None and not thought:
        raise Strange("the answer has no text")
    text = text or ""
    if not isinstance(text, str) or not isinstance(thought, str):
        raise Strange("the answer has something else where its text should be")
    if thought:
        text = f"<think>\n{thought.strip()}\n</think>\n\n{text}"
    finish = choice.get("finish_reason")
    return whole_characters(text), _ENDED.get(finish, "abort") if isinstance(
        finish, str
    ) else "abort"
