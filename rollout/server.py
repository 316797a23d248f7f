"""The engine behind a URL: a vLLM server started by `grpo serve`, on this machine.

Requests go out from threads, one call for the n completions of a prompt; everything else happens on
the caller's thread, inside `poll` and `load_weights`. A call that fails is made again under a
new name, and only the answer to a request's latest call is looked at: a sample is delivered
once. The seed comes from the request's key, so a repeated call draws what the first one drew.

A completion says which weights sampled each of its tokens (`server_control.py`), and one whose
weights are not those delivered by this engine when its call was made, or since, is refused. So a
server that was restarted and lost its weights is caught
even if the connection just came back; it is given the last weights again (a copy is kept in
main memory) before anything is asked of it.

Trust: the control routes have no authentication (vLLM's --api-key covers /v1 and /inference alone),
so whoever reaches the port can pause the server and change its weights. Keep it on localhost, or on
a network that is yours. Weights travel through memory shared on one machine (`segments.py`).
"""

from __future__ import annotations

import os
import queue
import secrets
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import Tensor

from grpo.errors import EngineError, WeightsError
from grpo.rollout.server_answers import (
    Strange,
    body_for,
    completions_from,
    nothing,
    plain_body,
    plain_completions,
)
from grpo.rollout.server_control import GENERATE, Control
from grpo.rollout.server_http import Address, Call, Refused, Unreachable
from grpo.types import Ack, Completion, EngineSpec, Metrics, Request, Version

_PAUSE_MODES = {"finish": "wait", "continue": "keep", "abort": "abort"}
_LOOK_SECONDS = 10.0  # without an answer, after which the server is looked at
_GRACE_SECONDS = 10.0  # for the partial answer of an aborted call


@dataclass(kw_only=True)
class _Job:
    """A request on its way to being answered."""

    request: Request
    attempts: int = 0
    not_before: float = 0.0  # time.monotonic() of the next call: waiting after a failure
    label: str = ""  # of the weights that were resident when the current call was made
    name: str = ""  # of the current call, "" while none is under way
    call: Call | None = None
    abort_by: float | None = None  # set once aborting: when to stop waiting for the partial answer


class ServerEngine:
    """An `Engine` over HTTP.

    timeout      seconds that one call for completions may take
    retries      how often a call is made again before the run stops
    wait         seconds that a server may be gone, for one that is being restarted
    concurrency  calls under way at a time
    api_key_env  environment variable with the server's key
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
        api_key_env: str = "",
    ) -> None:
        key = os.environ.get(api_key_env, "") if api_key_env else ""
        self.address = Address(url=url.rstrip("/"), key=key)
        self.spec = spec
        self.version = spec.version
        self._timeout, self._retries, self._concurrency = timeout, retries, concurrency
        self._jobs: dict[str, _Job] = {}
        self._waiting: deque[_Job] = deque()
        self._running: dict[str, _Job] = {}
        self._outcomes: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._done: list[Completion] = []
        self._broken = ""
        self._suspect = False  # a failure that a restart would explain; look before the next call
        self._retried = 0
        self._heard = time.monotonic()  # when the last answer came
        self.server = Control(spec, self.address, timeout=timeout, retries=retries, wait=wait)

    # The Engine protocol

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests; EngineError (and none is queued) if one cannot be sampled."""
        uids = set(self._jobs) | {c.request for c in self._done}
        for request in requests:
            self._check(request, uids)
            uids.add(request.uid)
        self._suspect = (
            self.server.takes_weights
        )  # once a batch: is this the server we left, with our weights?
        for request in requests:
            job = _Job(request=request)
            self._jobs[request.uid] = job
            self._waiting.append(job)

    def poll(self, timeout: float | None = None) -> list[Completion]:
        """Completions that came; waits up to `timeout` s for one, [] at once if none is due.

        Waits longer where the server is gone. Raises EngineError when it stays away, or a
        request has failed `retries` + 1 times.
        """
        if self._broken:
            raise WeightsError(self._broken)
        end = None if timeout is None else time.monotonic() + timeout
        while not self._done and self._jobs:
            self._issue()
            self._take(self._patience(end))
            self._expire()
            if end is not None and time.monotonic() >= end:
                break
        done, self._done = self._done, []
        return done

    def cancel(self, uids: Sequence[str]) -> None:
        """Forget requests, and hang up on the server where it works on them."""
        gone = set(uids)
        for uid in gone & set(self._jobs):
            self._forget(self._jobs[uid])
        self._done = [c for c in self._done if c.request not in gone]

    def load_weights(
        self,
        weights: Iterable[tuple[str, Tensor]],
        version: Version,
        in_flight: Literal["finish", "continue", "abort"] = "finish",
    ) -> Ack:
        """Hand `weights` to the server, with sampling paused.

        The acknowledgment's hash is that of the tensors as they arrived in the server's process.
        Calls under way: "finish" waits for them; "continue" lets them go on with the new weights
        (a new segment; their keys and values are computed anew); "abort" ends them as they stand.
        Calls not yet made use the new weights. Raises WeightsError, also where the server is not
        one of `grpo serve`.
        """
        if in_flight not in _PAUSE_MODES:
            raise EngineError(f"unknown in_flight {in_flight!r}. Valid: abort, continue, finish.")
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
        if in_flight == "abort":
            for job in self._running.values():
                job.abort_by = time.monotonic() + _GRACE_SECONDS
        self._broken = "the last load_weights failed half-way; load a full set first"
        ack = self.server.deliver(kept, version, _PAUSE_MODES[in_flight])
        self._broken, self.version = "", version
        return ack

    def take_metrics(self) -> Metrics:
        """Restarts of the server that were met, and calls made again, since the last time."""
        metrics = {
            "rollout/server_restarts": float(self.server.restarts),
            "rollout/requests_retried": float(self._retried),
        }
        self.server.restarts = self._retried = 0
        return metrics

    def sleep(self) -> None:
        """Nothing to do: the server's memory is its own."""

    def wake(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Hang up. The server stays, with the weights it has."""
        for job in list(self._jobs.values()):
            self._forget(job)
        self._done.clear()
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
        elif sampling.raw_logprobs:
            problem = "asks for raw log-probs, which a server does not return; use engine=torch"
        elif not self.server.gives_tokens and (sampling.top_k or sampling.min_p):
            problem = "asks for top_k or min_p, which only a vLLM server has"
        if problem:
            raise EngineError(f"request {request.uid!r} {problem}")

    def _issue(self) -> None:
        """Make the calls that are due, once the server is known to be the one we think it is."""
        now = time.monotonic()
        due = [job for job in self._waiting if job.not_before <= now]
        if due and self._suspect:
            self.server.ensure_ready()
            self._suspect = False
        for job in due[: max(0, self._concurrency - len(self._running))]:
            self._waiting.remove(job)
            job.attempts += 1
            job.name = f"{secrets.token_hex(8)}-{job.attempts}"
            job.label = self.server.label
            path, body = GENERATE, body_for(job.request, job.name)
            if not self.server.gives_tokens:
                path, body = "/v1/completions", plain_body(job.request, self.server.model)
            if not self._running:
                self._heard = now
            self._running[job.name] = job
            done = partial(self._arrived, job.name)
            job.call = Call(self.address, path, body, self._timeout, done)

    def _arrived(self, name: str, outcome: Any) -> None:
        self._outcomes.put((name, outcome))  # on the call's thread

    def _patience(self, end: float | None) -> float:
        """Seconds until something has to be done even if no answer comes."""
        now = time.monotonic()
        times = [now + 1.0 if end is None else end]
        times += [job.not_before for job in self._waiting if job.not_before > now]
        times += [d for job in self._jobs.values() if (d := job.request.deadline) is not None]
        return min(1.0, max(0.01, min(times) - now))

    def _take(self, patience: float) -> None:
        """Settle the outcomes that are there; waits up to `patience` seconds for the first."""
        try:
            item = self._outcomes.get(timeout=patience)
            while True:
                self._settle(*item)
                self._heard = time.monotonic()
                item = self._outcomes.get_nowait()
        except queue.Empty:
            self._look()

    def _look(self) -> None:
        """Hang up on a server that no longer works on our calls: hung, replaced, or shutting down.

        A server that was told to end keeps its connections open; without this, calls to it would
        last their whole timeout.
        """
        now = time.monotonic()
        calls = [job.call for job in self._running.values() if job.call is not None]
        if not calls or now < self._heard + _LOOK_SECONDS or not self.server.takes_weights:
            return
        self._heard = now
        if not self.server.is_same():
            for call in calls:
                call.drop()

    def _settle(self, name: str, outcome: Any) -> None:
        job = self._running.pop(name, None)
        if job is None:
            return  # canceled, or given up before the answer came
        job.name, job.call = "", None
        if isinstance(outcome, Refused) and outcome.status < 500:
            raise EngineError(
                f"the server at {self.address.url} refused request {job.request.uid!r}: {outcome}"
            )
        if not isinstance(outcome, Exception):
            try:
                read = completions_from if self.server.gives_tokens else plain_completions
                completions = read(
                    job.request,
                    outcome,
                    self.server.since(job.label),
                    aborted=job.abort_by is not None,
                )
            except Strange as strange:
                outcome = strange
            else:
                self._finish(job, completions)
                return
        elif not isinstance(outcome, Unreachable | Refused):
            raise outcome
        if job.abort_by is not None:
            self._finish(job, nothing(job.request, self.version))
            return
        self._again(job, outcome)

    def _again(self, job: _Job, reason: Exception) -> None:
        if job.attempts > self._retries:
            raise EngineError(
                f"request {job.request.uid!r} failed {job.attempts} times at {self.address.url}, "
                f"the last time: {reason}; see the server's log, or raise "
                "rollout.engine_args.retries or timeout"
            )
        self._retried += 1
        self._suspect = self.server.takes_weights
        job.not_before = time.monotonic() + min(10.0, 0.1 * 2**job.attempts)
        self._waiting.append(job)

    def _expire(self) -> None:
        """Abort what is past its deadline; the server then answers with what it has."""
        now = time.monotonic()
        for job in list(self._jobs.values()):
            if job.abort_by is None:
                if job.request.deadline is None or job.request.deadline > now:
                    continue
                job.abort_by = now + _GRACE_SECONDS
                if job.name and self.server.gives_tokens:
                    self.server.abort(job.name)
                    continue
            if not job.name or job.abort_by < now:
                self._finish(job, nothing(job.request, self.version))

    def _finish(self, job: _Job, completions: Sequence[Completion]) -> None:
        self._forget(job)
        self._done.extend(completions)

    def _forget(self, job: _Job) -> None:
        """Nothing that still comes for `job` will be looked at."""
        self._jobs.pop(job.request.uid, None)
        self._running.pop(job.name, None)
        if job in self._waiting:
            self._waiting.remove(job)
        if job.call is not None:
            job.call.drop()
