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
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from grpo.errors import EngineError, WeightsError
from grpo.model import pretrained
from grpo.outside.web.address import Address, key_from
from grpo.outside.web.replies import Refused, Unreachable, part
from grpo.rollout.remote.http_engine import HttpEngine, Strange, Work
from grpo.rollout.remote.server_answers import seed_of, text_completion
from grpo.rollout.samples import is_late, without_tokens
from grpo.rollout.settings import EndpointSettings, PromptSettings
from grpo.rollout.texts import whole_characters
from grpo.types import (
    Ack,
    Completion,
    EngineSpec,
    FinishReason,
    InFlight,
    Message,
    Request,
    Version,
)

FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds before the second call of a sample, and at most
_JITTER = random.Random()  # of waiting times alone: nothing that is sampled depends on it
_ENDED: dict[str, FinishReason] = {"stop": "stop", "length": "length"}

Said = str | Sequence[Message]


@dataclass(kw_only=True, eq=False)
class _SampleWork(Work):
    """One sample of a request on its way to being answered."""

    index: int

    @property
    def key(self) -> Hashable:
        return self.request.uid, self.index

    @property
    def title(self) -> str:
        return f"sample {self.index} of {super().title}"


class EndpointEngine(HttpEngine[_SampleWork]):
    """An `Engine` that asks a server for text.

    `say` gives text or messages of a request, from its ids; messages go to /chat/completions, text
    to /completions.
    """

    PASSING = (408, 409, 425, 429)  # too slow, too early, too many requests
    ADVICE = (
        "what was finished is kept, so continue later, or raise rollout.engine_args.retries, or "
        "lower its concurrency"
    )

    def __init__(
        self, spec: EngineSpec, settings: EndpointSettings, say: Callable[[Request], Said]
    ) -> None:
        key = key_from(settings.api_key_env, "rollout.engine_args.api_key_env")
        super().__init__(Address(url=settings.url, key=key), spec.version, settings)
        self._say = say
        self._body, self._limit_field = dict(settings.body or {}), settings.limit_field
        self._counts["completion_tokens"] = 0.0
        self.model = settings.model or self._first_model()

    @classmethod
    def from_spec(cls, spec: EngineSpec, settings: PromptSettings) -> EndpointEngine:
        """The engine of a recipe: prompts are decoded by the tokenizer of `spec.model`."""
        tokenizer = pretrained.tokenizer(spec.model)

        def say(request: Request) -> Said:
            ids = request.ids[request.ids[0] == tokenizer.bos_token_id :]  # the server adds its own
            text = str(tokenizer.decode(ids, skip_special_tokens=False))
            return [{"role": "user", "content": text}] if settings.chat else text

        return cls(spec, settings, say)

    def _first_model(self) -> str:
        try:
            listed = self.client.call("GET", "/models", timeout=min(30.0, self.settings.timeout))
            return part(listed, "data", 0, "id", kind=str)
        except (Unreachable, Refused) as error:
            raise EngineError(
                f"{self.address.url} does not say which models it serves ({error}): is it the "
                "address of a server with OpenAI's API, up to and with /v1, and is its key set? "
                "Otherwise name the model"
            ) from error

    # Requests

    def _problem(self, request: Request) -> str | None:
        if request.sampling.top_k or request.sampling.min_p:
            return (
                "asks for top_k or min_p, which OpenAI's API does not have; where the server has "
                "them, write them into rollout.engine_args.body"
            )
        return super()._problem(request)

    def _enqueue(self, request: Request) -> None:
        for index in range(request.n):
            self._add(_SampleWork(request=request, index=index))

    def _settle(self, in_flight: InFlight) -> None:
        """Raises WeightsError: the server's model is its own."""
        raise WeightsError(
            f"the endpoint {self.address.url} takes no weights, so no policy can be trained with "
            "it; set rollout.engine to torch, vllm or server"
        )

    def _load(self, weights: Iterable[tuple[str, Tensor]], version: Version) -> Ack:
        raise AssertionError("unreachable: `_settle` refuses all weights")

    # Calls

    def _asked(self, work: _SampleWork) -> tuple[str, dict[str, Any]]:
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

    def _read(self, work: _SampleWork, answer: Any) -> list[Completion]:
        text, finish = _text_of(answer)
        with suppress(Unreachable):  # many servers do not say
            self._counts["completion_tokens"] += part(
                answer, "usage", "completion_tokens", kind=float
            )
        return [text_completion(work.request, work.index, self.version, text, finish)]

    def _pause(self, attempts: int) -> float:
        longest = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (attempts - 1))
        # Apart from one another, or all come back to a busy server at once.
        return longest * _JITTER.uniform(0.5, 1.0)

    def _expire(self) -> None:
        """Give up what is past its deadline."""
        now = time.monotonic()
        for sample in [s for s in self._timed.values() if is_late(s.request, now)]:
            self._finish(sample, [without_tokens(sample.request, sample.index, self.version)])


def _text_of(answer: Any) -> tuple[str, FinishReason]:
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
    return whole_characters(text), _ENDED.get(str(choice.get("finish_reason")), "abort")
