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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from grpo.errors import EngineError, WeightsError
from grpo.outside.web.address import Address, checked_file, key_from
from grpo.outside.web.replies import Refused, Unreachable
from grpo.rollout.remote.http_engine import HttpEngine, Work
from grpo.rollout.remote.server_answers import (
    Strange,
    body_for,
    completions_from,
    nothing,
    plain_body,
    plain_completions,
)
from grpo.rollout.remote.server_control import GENERATE, Control
from grpo.rollout.remote.server_token import found_token
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
    """An `Engine` over HTTP.

    timeout      seconds that one call for completions may take
    retries      how often a call is made again before the run stops
    wait         seconds that a server may be gone, for one that is being restarted
    concurrency  calls under way at a time
    key_file     file with the server's token; "": of a server that this user started on this
                 machine it is found by its port
    api_key_env  environment variable with the server's key, for one that was started otherwise
    tokenizer    makes the text of a completion from its ids; None: the text is the server's own
    """

    def __init__(
        self,
        spec: EngineSpec,
        *,
        url: str = "http://127.0.0.1:8000",
        timeout: float = 600.0,
        retries: int = 3,
        wait: float = 300.0,
        concurrency: int = 64,
        key_file: str = "",
        api_key_env: str = "",
        tokenizer: Any = None,
    ) -> None:
        super().__init__(
            _address(url, key_file, api_key_env),
            spec.version,
            timeout=timeout,
            retries=retries,
            concurrency=concurrency,
        )
        self.spec = spec
        self.tokenizer = tokenizer
        self._broken = ""
        self._suspect = False  # a failure that a restart would explain; look before the next call
        self._heard = time.monotonic()  # when the last answer came
        self.server = Control(spec, self.client, timeout=timeout, retries=retries, wait=wait)

    # The Engine protocol

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests; EngineError (and none is queued) if one cannot be sampled."""
        uids = self._queued()
        for request in requests:
            self._check(request, uids)
            uids.add(request.uid)
        # Once a batch: is this the server we left, with our weights?
        self._suspect = self.server.takes_weights
        for request in requests:
            self._add(_GroupWork(request=request))

    def poll(self, timeout: float | None = None) -> list[Completion]:
        """Completions that came; waits up to `timeout` s for one, [] at once if none is due.

        Waits longer where the server is gone. Raises EngineError when it stays away, or a
        request has failed `retries` + 1 times.
        """
        if self._broken:
            raise WeightsError(self._broken)
        return super().poll(timeout)

    def load_weights(
        self,
        weights: Iterable[tuple[str, Tensor]],
        version: Version,
        in_flight: InFlight = "finish",
    ) -> Ack:
        """Hand `weights` to the server, with sampling paused.

        The acknowledgment's hash is that of the tensors as they arrived in the server's process.
        Calls under way: "finish" waits for them; "continue" lets them go on with the new weights
        (a new segment; their keys and values are computed anew). Calls not yet made use the new
        weights. Raises WeightsError, also where the server is not one of `grpo serve`.
        """
        if in_flight not in _PAUSE_MODES:
            raise EngineError(f"unknown in_flight {in_flight!r}. Valid: continue, finish.")
        if not self.server.takes_weights:
            raise WeightsError(
                f"the server at {self.address.url} was not started by `grpo serve`, so it takes no "
                "weights: it serves evaluation and distillation only; start one with "
                f"`grpo serve {self.spec.model}`, or set rollout.engine=vllm or torch"
            )
        # A copy, as the learner updates its tensors in place while these are the ones that sample.
        kept = [(name, tensor.detach().to("cpu", copy=True)) for name, tensor in weights]
        while in_flight == "finish" and self._running:
            self._take(self._patience(None))
            self._expire()
        self._broken = "the last load_weights failed half-way; load a full set first"
        ack = self.server.deliver(kept, version, _PAUSE_MODES[in_flight])
        self._broken, self.version = "", version
        return ack

    def take_metrics(self) -> Metrics:
        """Restarts of the server that were met, and calls made again, since the last time."""
        restarts, self.server.restarts = float(self.server.restarts), 0
        return {"rollout/server_restarts": restarts, **super().take_metrics()}

    def close(self) -> None:
        """Hang up. The server stays, with the weights it has."""
        super().close()
        self.server.forget()

    # Requests

    def _check(self, request: Request, uids: set[str]) -> None:
        sampling = request.sampling
        needed = len(request.ids) + sampling.max_tokens
        room = self.server.max_length
        problem = None
        if request.uid in uids:
            problem = "is queued already"
        elif request.n < 1 or sampling.max_tokens < 1:
            problem = f"asks for n={request.n}, max_tokens={sampling.max_tokens}"
        elif not request.ids:
            problem = "has no prompt tokens"
        elif room is not None and needed > room:
            problem = f"needs {needed} positions, the server was started with {room}"
        elif not self.server.gives_tokens and (sampling.top_k or sampling.min_p):
            problem = "asks for top_k or min_p, which only a vLLM server has"
        if problem:
            raise EngineError(f"request {request.uid!r} {problem}")

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

    def _settle(self, name: str, outcome: Any) -> None:
        self._heard = time.monotonic()
        work = self._answered(name)
        if work is None:
            return
        if isinstance(outcome, Refused) and outcome.status < 500:
            raise EngineError(
                f"the server at {self.address.url} refused request {work.request.uid!r}: {outcome}"
            )
        if not isinstance(outcome, Exception):
            try:
                completions = self._read(work, outcome)
            except (Strange, Unreachable) as strange:
                outcome = strange
            else:
                self._finish(work, completions)
                return
        elif not isinstance(outcome, Unreachable | Refused):
            raise outcome
        if work.abort_by is not None:
            self._finish(work, nothing(work.request, self.version))
            return
        self._again(work, outcome)

    def _read(self, work: _GroupWork, answer: Any) -> list[Completion]:
        """The completions of an answer. Raises Strange."""
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

    def _again(self, work: _GroupWork, reason: Exception) -> None:
        if work.attempts > self._retries:
            raise EngineError(
                f"request {work.request.uid!r} failed {work.attempts} times at {self.address.url}, "
                f"the last time: {reason}; see the server's log, or raise "
                "rollout.engine_args.retries or timeout"
            )
        self._suspect = self.server.takes_weights
        self._call_again(work, min(10.0, 0.1 * 2**work.attempts))

    def _expire(self) -> None:
        """Abort what is past its deadline; the server then answers with what it has."""
        now = time.monotonic()
        for work in list(self._timed.values()):
            if work.abort_by is None:
                if work.request.deadline is None or work.request.deadline > now:
                    continue
                work.abort_by = now + _GRACE_SECONDS
                if work.name and self.server.gives_tokens:
                    self.server.abort(work.name)
                    continue
            if not work.name or work.abort_by < now:
                self._finish(work, nothing(work.request, self.version))


def _address(url: str, key_file: str, api_key_env: str) -> Address:
    """The server, with the key that the user names, else the one that lies beside it."""
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
