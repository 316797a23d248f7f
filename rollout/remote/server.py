"""The engine behind a URL: a vLLM server started by `grpo serve`, on this machine.

One call asks for the n completions of a prompt (`http_engine.py` makes the calls, again where one
fails). The seed comes from the request's key, so a repeated call draws what the first one drew.

A completion says which weights sampled each of its tokens (`server_control.py`), and one whose
weights are not those delivered by this engine when its call was made, or since, is refused. So a
server that was restarted and lost its weights is caught even if the connection just came back; it
is given the last weights again (a copy is kept in main memory) before anything is asked of it.

Trust: whoever has the server's token can pause it and change its weights. `grpo serve` writes a new
one at each start to a file of its user (`server_token.py`), which is read anew for every call, and
asks for it on every route (`server_guard.py`). Nothing is encrypted: keep the server on localhost,
or on a network that is yours. Weights travel through memory shared on one machine (`segments.py`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from grpo.errors import EngineError, WeightsError
from grpo.model import pretrained
from grpo.outside.web.address import Address, checked_file, key_from
from grpo.rollout.remote.http_engine import HttpEngine, Work
from grpo.rollout.remote.server_answers import (
    body_for,
    completions_from,
    plain_body,
    plain_completions,
)
from grpo.rollout.remote.server_control import GENERATE, Control
from grpo.rollout.remote.server_token import found_token
from grpo.rollout.samples import is_late, refusal, without_tokens
from grpo.rollout.settings import ServerSettings
from grpo.types import Ack, Completion, EngineSpec, InFlight, Metrics, Request, Version

_PAUSE_MODES = {"finish": "wait", "continue": "keep"}
_LOOK_SECONDS = 10.0  # without an answer, after which the server is looked at
_GRACE_SECONDS = 10.0  # for the partial answer of an aborted call


@dataclass(kw_only=True, eq=False)
class _GroupWork(Work):
    """A request on its way to being answered."""

    label: str = ""  # of the weights that were resident when the current call was made
    abort_by: float | None = None  # set once aborting: when to stop waiting for the partial answer


class ServerEngine(HttpEngine[_GroupWork]):
    """An `Engine` over HTTP. `tokenizer` makes the text of a completion from its ids, as in every
    engine; None: the text is the server's own.
    """

    ADVICE = "see the server's log, or raise rollout.engine_args.retries or timeout"

    def __init__(
        self, spec: EngineSpec, settings: ServerSettings, *, tokenizer: Any = None
    ) -> None:
        super().__init__(_address(settings), spec.version, settings)
        self.spec = spec
        self.tokenizer = tokenizer
        self._suspect = False  # a failure that a restart would explain; look before the next call
        self._heard = time.monotonic()  # when the last answer came
        self._mode = _PAUSE_MODES["finish"]
        self.server = Control(spec, self.client, settings)
        self.model = self.server.model or spec.model

    @classmethod
    def from_spec(cls, spec: EngineSpec, settings: ServerSettings) -> ServerEngine:
        """The engine of a recipe."""
        return cls(spec, settings, tokenizer=pretrained.tokenizer(spec.model))

    # Weights

    def _settle(self, in_flight: InFlight) -> None:
        if not self.server.takes_weights:
            raise WeightsError(
                f"the server at {self.address.url} was not started by `grpo serve`, so it takes no "
                "weights: it serves evaluation and distillation only; start one with "
                f"`grpo serve {self.spec.model}`, or set rollout.engine=vllm or torch"
            )
        self._mode = _PAUSE_MODES[in_flight]
        while in_flight == "finish" and self._running:
            self._take(self._patience(None))
            self._expire()

    def _load(self, weights: Iterable[tuple[str, Tensor]], version: Version) -> Ack:
        """Hand `weights` to the server, with sampling paused.

        The hash is that of the tensors as they arrived in the server's process. Calls that go on
        compute their keys and values anew.
        """
        # A copy, as the learner updates its tensors in place while these are the ones that sample.
        kept = [(name, tensor.detach().to("cpu", copy=True)) for name, tensor in weights]
        return self.server.deliver(kept, version, self._mode)

    def take_metrics(self) -> Metrics:
        """Restarts of the server that were met, and calls made again, since the last time."""
        restarts, self.server.restarts = float(self.server.restarts), 0
        return {"rollout/server_restarts": restarts, **super().take_metrics()}

    def close(self) -> None:
        """Hang up. The server stays, with the weights it has."""
        super().close()
        self.server.forget()

    # Requests

    def _problem(self, request: Request) -> str | None:
        sampling = request.sampling
        if not self.server.gives_tokens and (sampling.top_k or sampling.min_p):
            return "asks for top_k or min_p, which only a vLLM server has"
        # As the server says now: it may have been restarted with other limits.
        return refusal(request, self.server.vocab_size, self.server.max_length)

    def _enqueue(self, request: Request) -> None:
        # Once a batch: is this the server we left, with our weights?
        self._suspect = self.server.takes_weights
        self._add(_GroupWork(request=request))

    def _issue(self) -> None:
        """Make the calls that are due, once the server is known to be the one we think it is."""
        if self._suspect and self._due(1):
            self.server.ensure_ready()
            self._suspect = False
        super()._issue()

    def _asked(self, work: _GroupWork) -> tuple[str, dict[str, Any]]:
        work.label = self.server.label
        if not self._running:
            self._heard = time.monotonic()
        if not self.server.gives_tokens:
            return "/v1/completions", plain_body(work.request, self.server.model)
        return GENERATE, body_for(work.request, work.name)

    def _look(self) -> None:
        """Hang up on a server that no longer works on our calls: hung, replaced, or shutting down.

        A server that was told to end keeps its connections open; without this, calls to it would
        last their whole timeout.
        """
        now = time.monotonic()
        calls = [work.call for work in self._running.values() if work.call is not None]
        if not calls or now < self._heard + _LOOK_SECONDS or not self.server.takes_weights:
            return
        self._heard = now
        if not self.server.is_same():
            for call in calls:
                call.drop()

    def _receive(self, name: str, outcome: Any) -> None:
        self._heard = time.monotonic()
        super()._receive(name, outcome)

    def _read(self, work: _GroupWork, answer: Any) -> list[Completion]:
        versions = self.server.since(work.label)
        if not self.server.gives_tokens:
            return plain_completions(work.request, answer, versions)
        return completions_from(
            work.request,
            answer,
            versions,
            aborted=work.abort_by is not None,
            tokenizer=self.tokenizer,
        )

    def _failed(self, work: _GroupWork, reason: Exception) -> None:
        if work.abort_by is not None:
            self._give_up(work)
            return
        super()._failed(work, reason)
        self._suspect = self.server.takes_weights

    def _pause(self, attempts: int) -> float:
        return min(10.0, 0.1 * 2**attempts)

    def _give_up(self, work: _GroupWork) -> None:
        nothing = [without_tokens(work.request, i, self.version) for i in range(work.request.n)]
        self._finish(work, nothing)

    def _expire(self) -> None:
        """Abort what is past its deadline; the server then answers with what it has."""
        now = time.monotonic()
        for work in list(self._timed.values()):
            if work.abort_by is None:
                if not is_late(work.request, now):
                    continue
                work.abort_by = now + _GRACE_SECONDS
                if work.name and self.server.gives_tokens:
                    self.server.abort(work.name)
                    continue
            if not work.name or work.abort_by < now:
                self._give_up(work)


def _address(settings: ServerSettings) -> Address:
    """The server, with the key that the user names, else the one that lies beside it."""
    url, key_file, api_key_env = settings.url, settings.key_file, settings.api_key_env
    if key_file and api_key_env:
        raise EngineError(
            "rollout.engine_args.key_file and api_key_env are both set, and a call has one key: "
            "leave one of them out"
        )
    if api_key_env:
        return Address(url=url, key=key_from(api_key_env, "rollout.engine_args.api_key_env"))
    if key_file:
        file = checked_file(key_file, "rollout.engine_args.key_file")
        return Address(url=url, key_file=file)
    return Address(url=url, key_file=found_token(Address(url=url)))
