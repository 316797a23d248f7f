"""What the engines behind a URL share: calls that are due, under way, answered and given up.

Calls are made from threads of their own (`grpo/outside/web/client.py`), each with one deadline from
its first byte to its last; everything else happens on the caller's thread, inside `poll`. A call
that fails is made again under a new name, and only the answer to the latest call of a piece of work
is looked at, so that nothing is given out twice.
"""

from __future__ import annotations

import queue
import secrets
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Generic, TypeVar

from grpo.errors import EngineError
from grpo.outside.web.address import Address
from grpo.outside.web.client import Call, Client
from grpo.outside.web.replies import Refused, Unreachable
from grpo.rollout.base import BaseEngine
from grpo.rollout.settings import EndpointSettings, ServerSettings
from grpo.types import Completion, Metrics, Request, Version


@dataclass(kw_only=True, eq=False)
class Work:
    """What one call asks for, on its way to being answered."""

    request: Request
    attempts: int = 0
    not_before: float = 0.0  # time.monotonic() of the next call: waiting after a failure
    name: str = ""  # of the current call, "" while none is under way
    call: Call | None = None

    @property
    def key(self) -> Hashable:
        """What tells it from other work; the request's uid where a call asks for a request."""
        return self.request.uid

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"request {self.request.uid!r}"


class Strange(Exception):
    """An answer that cannot be used: other weights, an abort nobody asked for, samples missing."""


# A token comes with its id, its log-prob and its text; the rest of an answer is short.
_TOKEN_BYTES, _OTHER_BYTES = 1024, 16 << 20

W = TypeVar("W", bound=Work)


class HttpEngine(BaseEngine, Generic[W]):
    """What engines behind a URL share. They differ in what is said to the server: an engine says
    what a call asks for (`_asked`), reads the answer (`_read`) and gives up what is late
    (`_expire`).

    `poll` raises EngineError where a call cannot be answered, or failed `retries` + 1 times.
    """

    model: str  # the server's name for it, in messages
    PASSING: tuple[int, ...] = ()  # statuses below 500 that another try may lift
    ADVICE: str  # what to do about a call that failed too often

    def __init__(
        self, address: Address, version: Version, settings: ServerSettings | EndpointSettings
    ) -> None:
        super().__init__(version)
        self.address, self.settings = address, settings
        self.client = Client(address)
        self._work: dict[Hashable, W] = {}  # asked for and not given out
        self._timed: dict[Hashable, W] = {}  # of those, what may have to be given up
        self._waiting: deque[W] = deque()
        self._running: dict[str, W] = {}  # by the name of the call
        self._outcomes: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._counts = {"requests_retried": 0.0}  # since the last `take_metrics`

    def take_metrics(self) -> Metrics:
        """Calls made again, and what else is counted, since the last time."""
        counts = {f"rollout/{name}": count for name, count in self._counts.items()}
        self._counts = dict.fromkeys(self._counts, 0.0)
        return counts

    def close(self) -> None:
        """Hang up. The server stays as it is."""
        super().close()
        for work in list(self._work.values()):
            self._forget(work)
        self.client.close()

    # What the engines differ in

    @abstractmethod
    def _asked(self, work: W) -> tuple[str, dict[str, Any]]:
        """Path and body of the call for `work`."""

    @abstractmethod
    def _read(self, work: W, answer: Any) -> list[Completion]:
        """The completions of an answer. Raises Strange and Unreachable for one that is none."""

    @abstractmethod
    def _pause(self, attempts: int) -> float:
        """Seconds to wait after as many failures."""

    @abstractmethod
    def _expire(self) -> None:
        """Give up what is past its deadline."""

    def _look(self) -> None:
        """Called whenever no outcome is left."""

    # Calls

    def _add(self, work: W) -> None:
        self._work[work.key] = work
        if work.request.deadline is not None:
            self._timed[work.key] = work
        self._waiting.append(work)

    def _active(self) -> set[str]:
        return super()._active() | {work.request.uid for work in self._work.values()}

    def _busy(self) -> bool:
        return bool(self._work)

    def _advance(self, end: float | None) -> None:
        """Make the calls that are due; wait for an answer; give up what is late."""
        self._issue()
        self._take(self._patience(end))
        self._expire()

    def _drop(self, gone: set[str]) -> None:
        """Forget requests, and hang up on what is asked for them."""
        for work in [w for w in self._work.values() if w.request.uid in gone]:
            self._forget(work)

    def _due(self, most: int) -> list[W]:
        """The first `most` calls that may be made now."""
        now = time.monotonic()
        return list(islice((work for work in self._waiting if work.not_before <= now), most))

    def _issue(self) -> None:
        """Make the calls that are due."""
        for work in self._due(max(0, self.settings.concurrency - len(self._running))):
            self._waiting.remove(work)
            work.attempts += 1
            work.name = f"{secrets.token_hex(8)}-{work.attempts}"
            path, body = self._asked(work)
            self._running[work.name] = work
            work.call = self.client.start(
                path,
                body,
                timeout=self.settings.timeout,
                done=partial(self._arrived, work.name),
                largest=_OTHER_BYTES
                + _TOKEN_BYTES * work.request.n * work.request.sampling.max_tokens,
            )

    def _arrived(self, name: str, outcome: Any) -> None:
        self._outcomes.put((name, outcome))  # on the call's thread

    def _patience(self, end: float | None) -> float:
        """Seconds until something has to be done even if no answer comes."""
        now = time.monotonic()
        times = [now + 1.0 if end is None else end]
        if len(self._running) < self.settings.concurrency:
            times += [work.not_before for work in self._waiting if work.not_before > now]
        times += [d for work in self._timed.values() if (d := work.request.deadline) is not None]
        return min(1.0, max(0.01, min(times) - now))

    def _take(self, patience: float) -> None:
        """Take the outcomes that are there; waits up to `patience` seconds for the first."""
        try:
            item = self._outcomes.get(timeout=patience)
            while True:
                self._receive(*item)
                item = self._outcomes.get_nowait()
        except queue.Empty:
            self._hang_up_late()
            self._look()

    def _hang_up_late(self) -> None:
        """Give up calls whose own threads are held, by the lookup of a name say."""
        now = time.monotonic()
        for work in self._running.values():
            if work.call is not None and work.call.deadline < now:
                work.call.drop(late=True)

    def _receive(self, name: str, outcome: Any) -> None:
        """Take what the call `name` came to: an answer, or an exception."""
        work = self._running.pop(name, None)
        if work is None:  # canceled, or given up meanwhile
            return
        work.name, work.call = "", None
        if isinstance(outcome, Refused) and outcome.status < 500:
            if outcome.status not in self.PASSING:
                raise EngineError(
                    f"{self.address.url} refused {work.title} to model {self.model!r}: {outcome}"
                )
        elif isinstance(outcome, Exception) and not isinstance(outcome, Unreachable | Refused):
            raise outcome
        if not isinstance(outcome, Exception):
            try:
                self._finish(work, self._read(work, outcome))
                return
            except (Strange, Unreachable) as strange:
                outcome = strange
        self._failed(work, outcome)

    def _failed(self, work: W, reason: Exception) -> None:
        """Ask again, a little later. Raises EngineError after `retries` more attempts."""
        if work.attempts > self.settings.retries:
            raise EngineError(
                f"{work.title} failed {work.attempts} times at {self.address.url}, the last time: "
                f"{reason}; {self.ADVICE}"
            )
        self._counts["requests_retried"] += 1
        work.not_before = time.monotonic() + self._pause(work.attempts)
        self._waiting.append(work)

    def _finish(self, work: W, completions: Sequence[Completion]) -> None:
        self._forget(work)
        self._done.extend(completions)

    def _forget(self, work: W) -> None:
        """Nothing that still comes for `work` will be looked at."""
        self._work.pop(work.key, None)
        self._timed.pop(work.key, None)
        self._running.pop(work.name, None)
        if work in self._waiting:
            self._waiting.remove(work)
        if work.call is not None:
            work.call.drop()
