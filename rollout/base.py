"""What every engine shares, whatever samples for it.

Engines differ in where the weights lie and how a token is drawn. They do not differ in which
requests can be sampled, in what becomes of one that is canceled or late, in when `poll` returns, or
in what follows a `load_weights` that failed half-way. So this is written once, and a caller meets
one set of sentences. `tests/rollout/contract.py` tests it on each of them.

`BaseEngine` knows requests and finished completions, and nothing of what lies between; engines
behind a URL and pools begin there. `LocalEngine` also holds the samples that have not begun. It is
for an engine that decides itself what it decodes next; such an engine has to say three things: what
is under way (`_running`), what one step is (`_advance`), and how weights are replaced (`_load`).

How samples share a batch or a cache is not here: there the engines have nothing in common.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, get_args

from grpo.errors import EngineError, WeightsError
from grpo.rollout.samples import Job, Sample, is_late, refusal, without_tokens
from grpo.types import Ack, Completion, Engine, InFlight, Metrics, Request, Version

if TYPE_CHECKING:
    from torch import Tensor


class BaseEngine(Engine, ABC):
    """An `Engine` but for how it samples. `version`: the weights it has.

    vocab_size  token ids of a prompt are below it; None: not known
    max_length  tokens of prompt and completion together; None: not known
    """

    def __init__(
        self, version: Version, *, vocab_size: int | None = None, max_length: int | None = None
    ) -> None:
        self.version = version
        self.vocab_size, self.max_length = vocab_size, max_length
        self._done: list[Completion] = []  # finished, and not given out
        self._broken = False  # weights were loaded in part: nothing may be sampled from them

    # The Engine protocol

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests; EngineError (and none is queued) if one cannot be sampled."""
        self._check(requests)
        for request in requests:
            self._enqueue(request)

    def poll(self, timeout: float | None = None) -> list[Completion]:
        """Completions that finished; works for `timeout` seconds (None: until there is one).

        Takes one step at least. Returns [] at once when nothing is queued.
        """
        if self._broken:
            raise WeightsError("the last load_weights failed half-way; load a full set first")
        end = None if timeout is None else time.monotonic() + timeout
        while not self._done and self._busy():
            self._advance(end)
            if end is not None and time.monotonic() >= end:
                break
        done, self._done = self._done, []
        return done

    def cancel(self, uids: Sequence[str]) -> None:
        """Forget requests and their finished completions; unknown uids are ignored."""
        gone = set(uids)
        self._done = [c for c in self._done if c.request not in gone]
        self._drop(gone)

    def load_weights(
        self,
        weights: Iterable[tuple[str, Tensor]],
        version: Version,
        in_flight: InFlight = "finish",
    ) -> Ack:
        """Replace the weights; the acknowledgment says what is resident now.

        Completions under way: "finish" them first under the old weights; "continue" them with the
        new ones, in a new segment. Requests that have not begun always use the new weights. Raises
        WeightsError; the engine then samples nothing before it has a full set.
        """
        if in_flight not in get_args(InFlight):
            raise EngineError(f"unknown in_flight {in_flight!r}. Valid: continue, finish.")
        self._settle(in_flight)
        self._broken = True
        ack = self._load(weights, version)
        self._broken, self.version = False, version
        return ack

    def take_metrics(self) -> Metrics:
        """Nothing to report."""
        return {}

    def sleep(self) -> None:
        """Nothing to release."""

    def wake(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Forget finished completions."""
        self._done.clear()

    # What an engine has to say

    @abstractmethod
    def _enqueue(self, request: Request) -> None:
        """Take on a request that was checked."""

    @abstractmethod
    def _active(self) -> set[str]:
        """The uids of requests that were not given out whole."""
        return {completion.request for completion in self._done}

    @abstractmethod
    def _busy(self) -> bool:
        """Whether anything is queued or under way."""

    @abstractmethod
    def _advance(self, end: float | None) -> None:
        """One step towards the next completion in `_done`, over by `end` (time.monotonic)."""

    @abstractmethod
    def _drop(self, gone: set[str]) -> None:
        """Forget what is queued and under way of the requests `gone`."""

    @abstractmethod
    def _load(self, weights: Iterable[tuple[str, Tensor]], version: Version) -> Ack:
        """Replace the weights; the acknowledgment of what is resident. Raises WeightsError."""

    # What it may say

    def _settle(self, in_flight: InFlight) -> None:
        """Bring what is under way into a state in which weights may change; or refuse them."""

    def _problem(self, request: Request) -> str | None:
        """Why this engine cannot sample a request, or None."""
        return refusal(request, self.vocab_size, self.max_length)

    def _check(self, requests: Sequence[Request]) -> None:
        """Refuse the whole batch for one request that cannot be sampled. Raises EngineError."""
        active = self._active()
        for request in requests:
            queued = request.uid in active
            if problem := "is queued already" if queued else self._problem(request):
                raise EngineError(f"request {request.uid!r} {problem}")
            active.add(request.uid)


class LocalEngine(BaseEngine):
    """An engine that keeps the samples which have not begun in `_queue`, oldest request first."""

    def __init__(self, version: Version, **limits: int | None) -> None:
        super().__init__(version, **limits)
        self._queue: deque[Job] = deque()

    def sleep(self) -> None:
        """Refuse to sleep over work. Raises EngineError while completions are under way."""
        if count := len(self._running()):
            raise EngineError(
                f"{count} completions are under way; poll or cancel them before sleep"
            )

    def close(self) -> None:
        """Forget everything queued and finished."""
        super().close()
        self._queue.clear()

    def _running(self) -> Sequence[Sample]:
        """Samples that have begun; none in an engine that ends in one step what it begins."""
        return ()

    def _enqueue(self, request: Request) -> None:
        self._queue.append(Job(request=request, waiting=deque(range(request.n))))

    def _active(self) -> set[str]:
        jobs = {job.request.uid for job in self._queue}
        return super()._active() | jobs | {sample.job.request.uid for sample in self._running()}

    def _busy(self) -> bool:
        return bool(self._queue or self._running())

    def _drop(self, gone: set[str]) -> None:
        self._queue = deque(job for job in self._queue if job.request.uid not in gone)

    def _expire(self) -> None:
        """Abort the samples past their deadline that have not begun."""
        now = time.monotonic()
        for job in [job for job in self._queue if is_late(job.request, now)]:
            self._queue.remove(job)
            self._done += [without_tokens(job.request, i, self.version) for i in job.waiting]
            job.waiting.clear()
