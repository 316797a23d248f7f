"""Several engines elsewhere behind one: who samples what, and what happens when one of them dies.

Nothing here knows how the others are reached: a `Worker` carries calls to an engine and answers
with futures (`grpo/rollout/pool/ray_pool.py` has Ray actors). What the pool holds to:

* Whole requests go to the least loaded worker, the longest first, and only as many as it can
  decode at once; the rest wait here, so that a worker that is done early takes what is left.
* A worker whose call fails, or that owes an answer for `timeout` seconds, is killed and replaced.
  Its successor gets the weights published last, and has to acknowledge them, before it samples.
* The unfinished requests of a lost worker are asked again, whole. Noise is keyed by sample, so
  the answers are the same ones; those that had come before are not returned again.
* Each issue of a request has an id of its own: what a presumed-dead worker or a canceled request
  still delivers belongs to nothing, even where the caller uses the same uid again.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from grpo.errors import EngineError, GrpoError, WeightsError
from grpo.rollout.base import BaseEngine
from grpo.rollout.pool.pool_member import PoolMember
from grpo.rollout.pool.seats import PendingCall, Seat, Ticket, Worker
from grpo.rollout.settings import TorchSettings
from grpo.types import Ack, Completion, Engine, InFlight, Metrics, Request, Version

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

_START = 600.0  # seconds an engine may take to start, where `timeout` is less
_SLICE = 0.5  # seconds a worker decodes before it looks at its next call
_MAX_FAILURES = 3  # of a worker, without a completion in between
_MAX_REISSUES = 5  # workers lost under one request, after which it is held to be the cause
_EMPTY_POLLS = 3  # answers in a row that came early and empty: the engine has lost its requests


class PoolEngine(BaseEngine):
    """An `EnginePool` of `workers` engines, each made by `start(index)`.

    `timeout` (seconds) is the longest a worker may owe an answer (at least 600 while it starts).
    `version`: the weights that the engines start with.
    `window` is the number of completions a worker holds at a time (a request alone may be more):
    what its engine decodes at once. `publish` turns weights into what `load_weights` of a worker
    takes; its result is kept until the next weights, for workers that replace others. `release` is
    called after the workers are gone. Not to be used by two threads at once.

    Raises EngineError, naming the worker, when one cannot be made, or fails three times without
    a completion in between.
    """

    def __init__(
        self,
        start: Callable[[int], Worker],
        workers: int,
        timeout: float,
        *,
        version: Version,
        window: int = TorchSettings.max_rows,
        publish: Callable[[Iterable[tuple[str, Tensor]]], Any] = list,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(version)
        self._start = start
        self._timeout = timeout
        self._window = window
        self._publish = publish
        self._release = release
        self._published: tuple[Any, Version] | None = None
        self._publications = 0
        self._in_flight: InFlight = "finish"
        self._queue: list[Ticket] = []  # not with any worker
        self._tickets: dict[str, Ticket] = {}  # by the caller's uid
        self._lengths: dict[tuple[int, ...], float] = {}  # mean completion, tokens, by prompt
        self._issues = 0
        self._counts: Counter[str] = Counter()
        self._worked = self._wall = 0.0  # worker-seconds with work, and in all, while any was there
        self._seen = time.monotonic()
        self._seats: list[Seat] = []
        try:
            for index in range(workers):
                self._seats.append(Seat(index=index, worker=start(index)))
                self._call(self._seats[-1], "start")
            while not all(seat.up for seat in self._seats):
                self._turn(None)
        except BaseException:
            self.close()
            raise

    # The Engine protocol

    @property
    def members(self) -> Sequence[tuple[str, Engine]]:
        """Each worker as an engine of its own, with its name."""
        return [(seat.worker.name, self._member(seat)) for seat in self._seats]

    def submit(self, requests: Sequence[Request]) -> None:
        """As `BaseEngine`. What only a worker's engine can refuse raises from a later `poll`."""
        self._submit(requests, None)

    def poll(self, timeout: float | None = None) -> list[Completion]:
        """As `BaseEngine`; workers need not wait for the next call."""
        done = super().poll(timeout)
        self._turn(0)
        return done

    def take_metrics(self) -> Metrics:
        """What happened since the last call; of the workers' own metrics, the mean.

        `rollout/worker_idle` is the share of the workers' time that they had no request, counted
        while any request was under way.
        """
        own: dict[str, list[float]] = {}
        for metrics in self._ask("take_metrics", self._seats):
            for name, value in metrics.items():
                own.setdefault(name, []).append(value)
        idle = 1 - self._worked / self._wall if self._wall else 0.0
        found = {
            **{name: sum(values) / len(values) for name, values in own.items()},
            "rollout/workers_replaced": float(self._counts["replaced"]),
            "rollout/groups_reissued": float(self._counts["reissued"]),
            "rollout/worker_idle": idle,
        }
        for seat in self._seats:
            found[f"rollout/worker_{seat.index + 1}_completions"] = float(seat.completions)
            seat.completions = 0
        self._counts.clear()
        self._worked = self._wall = 0.0
        return found

    def sleep(self) -> None:
        """Put every engine to sleep."""
        self._ask("sleep", self._seats)

    def wake(self) -> None:
        """Wake every engine."""
        self._ask("wake", self._seats)

    def close(self) -> None:
        """Close the engines that answer soon, end all workers."""
        super().close()
        closing = [seat.worker.call("close") for seat in self._seats if seat.up]
        wait(closing, timeout=min(self._timeout, 10))
        for seat in self._seats:
            seat.worker.kill()
        self._seats.clear()
        self._queue.clear()
        self._tickets.clear()
        self._published = None
        self._release()

    # Weights

    def _settle(self, in_flight: InFlight) -> None:
        self._in_flight = in_flight

    def _load(self, weights: Iterable[tuple[str, Tensor]], version: Version) -> Ack:
        """Give every worker the same weights; the answer of each is in `members`.

        A worker that fails to load is replaced once; WeightsError if its successor fails as well,
        and at once for a worker that acknowledges other weights than were sent.
        """
        self._published = None  # two sets at a time would be one too many
        self._published = self._publish(weights), version
        self._publications += 1  # the same version again is loaded again
        for seat in self._seats:
            seat.refusals = 0
        while not all(self._serves(seat) for seat in self._seats):
            self._turn(None)
        acks = [replace(a, engine=s.worker.name) for s in self._seats if (a := s.ack)]
        return replace(acks[0], engine=f"{len(acks)} workers", members=tuple(acks))

    # Requests

    def _member(self, seat: Seat) -> PoolMember:
        return PoolMember(
            name=seat.worker.name,
            pool=self,
            enqueue=partial(self._submit, seat=seat.index),
            ask=partial(self._ask, seats=[seat]),
        )

    def _submit(self, requests: Sequence[Request], seat: int | None) -> None:
        self._check(requests)
        for request in requests:
            self._enqueue(request, seat)
        self._turn(0)

    def _enqueue(self, request: Request, seat: int | None = None) -> None:
        cost = len(request.ids) + self._expected_length(request)
        ticket = Ticket(request=request, seat=seat, cost=cost, missing=set(range(request.n)))
        self._tickets[request.uid] = ticket
        self._queue.append(ticket)

    def _active(self) -> set[str]:
        return super()._active() | self._tickets.keys()

    def _busy(self) -> bool:
        return bool(self._tickets)

    def _advance(self, end: float | None) -> None:
        self._turn(None if end is None else max(0.0, end - time.monotonic()))

    def _drop(self, gone: set[str]) -> None:
        wires = {self._tickets.pop(uid).wire for uid in gone & self._tickets.keys()}
        self._queue = [ticket for ticket in self._queue if ticket.request.uid in self._tickets]
        for seat in self._seats:
            owed = [wire for wire in seat.owed if wire in wires]
            if owed:
                self._call(seat, "cancel", owed)
            for wire in owed:
                del seat.owed[wire]

    def _expected_length(self, request: Request) -> float:
        """Tokens of a completion: as this prompt's last ones, else the most it may have."""
        return self._lengths.get(request.key[:-1], request.sampling.max_tokens)

    def _dispatch(self) -> None:
        """Hand waiting requests to workers that have room, the longest first."""
        self._queue.sort(key=lambda ticket: -ticket.cost)
        given: dict[int, list[Request]] = {}
        kept: list[Ticket] = []
        for ticket in self._queue:
            seats = [
                seat
                for seat in self._seats
                if self._serves(seat)
                and ticket.seat in (None, seat.index)
                and seat.has_room(len(ticket.missing), self._window)
            ]
            if not seats:
                kept.append(ticket)
                continue
            seat = min(seats, key=lambda s: s.load)
            self._issues += 1
            ticket.wire = f"{ticket.request.uid}~{self._issues}"
            seat.owed[ticket.wire] = ticket
            given.setdefault(seat.index, []).append(replace(ticket.request, uid=ticket.wire))
        self._queue = kept
        for index, requests in given.items():
            wires = [request.uid for request in requests]
            self._call(self._seats[index], "submit", requests, detail=wires)

    def _receive(self, seat: Seat, call: PendingCall, completions: Sequence[Completion]) -> None:
        early = time.monotonic() - call.begun < _SLICE / 2
        seat.empty_polls = seat.empty_polls + 1 if early and not completions and seat.owed else 0
        if seat.empty_polls >= _EMPTY_POLLS:
            lost = [ticket.request.uid for ticket in seat.owed.values()]
            self._replace(seat, f"has nothing under way, but was given requests {lost[:3]}")
            return
        for completion in completions:
            ticket = seat.owed.get(completion.request)
            if ticket is None or completion.index not in ticket.missing:
                continue  # canceled, or returned before its worker was lost
            uid = ticket.request.uid
            self._done.append(replace(completion, request=uid))
            ticket.missing.discard(completion.index)
            seat.completions += 1
            seat.failures = 0
            prompt = ticket.request.key[:-1]
            old = self._lengths.get(prompt, float(len(completion)))
            self._lengths[prompt] = old + (len(completion) - old) / ticket.request.n
            if not ticket.missing:
                del seat.owed[completion.request], self._tickets[uid]

    # Calls

    def _call(self, seat: Seat, method: str, *args: Any, detail: Any = None) -> Future[Any]:
        future = seat.worker.call(method, *args)
        seat.calls[future] = PendingCall(method=method, begun=time.monotonic(), detail=detail)
        return future

    def _ask(self, method: str, seats: Sequence[Seat]) -> list[Any]:
        """What those that serve answer; whoever is lost meanwhile does not."""
        asked = [(seat, self._call(seat, method)) for seat in seats if self._serves(seat)]
        while any(future in seat.calls for seat, future in asked):
            self._turn(None)
        return [future.result() for _, future in asked if future.done() and not future.exception()]

    def _serves(self, seat: Seat) -> bool:
        """Whether it is up and has the weights published last."""
        return seat.up and (self._published is None or seat.loaded == self._publications)

    def _turn(self, limit: float | None) -> None:
        """Give out work, wait up to `limit` seconds (None: any) for one answer, take all there are.

        Returns early when a worker has to be given up.
        """
        for seat in self._seats:
            if seat.up and not self._serves(seat) and not seat.waits_for("load_weights"):
                assert self._published is not None  # else every worker that is up serves
                bundle, version = self._published
                detail = (self._publications, version)
                args = (bundle, version, self._in_flight)
                self._call(seat, "load_weights", *args, detail=detail)
        self._dispatch()
        for seat in self._seats:
            if seat.owed and not seat.waits_for("poll"):
                self._call(seat, "poll", _SLICE)
        pending = {future: seat for seat in self._seats for future in seat.calls}
        if not pending:
            return
        due = min(self._due(call) for seat in self._seats for call in seat.calls.values())
        left = max(0.0, due - time.monotonic())
        self._measure()
        done = wait(
            pending,
            timeout=left if limit is None else min(left, limit),
            return_when=FIRST_COMPLETED,
        ).done
        self._measure()
        for future in done:
            seat = pending[future]
            call = seat.calls.pop(future, None)  # None: the worker was replaced a moment ago
            if call is not None:
                self._take(seat, call, future)
        now = time.monotonic()
        for seat in self._seats:
            late = [c for f, c in seat.calls.items() if self._due(c) <= now and not f.done()]
            if late:
                self._replace(seat, f"gave no answer to {late[0].method} in time")

    def _due(self, call: PendingCall) -> float:
        """When (time.monotonic) an answer has to be there."""
        longest = max(self._timeout, _START) if call.method == "start" else self._timeout
        return call.begun + longest

    def _measure(self) -> None:
        """Add up the time since the last look, if anything was under way."""
        now = time.monotonic()
        if self._tickets:
            self._wall += (now - self._seen) * len(self._seats)
            self._worked += (now - self._seen) * sum(1 for seat in self._seats if seat.owed)
        self._seen = now

    def _take(self, seat: Seat, call: PendingCall, future: Future[Any]) -> None:
        error = future.exception()
        if error is not None:
            self._fail(seat, call, error)
        elif call.method == "start":
            seat.up, seat.first = True, False
        elif call.method == "poll":
            self._receive(seat, call, future.result())
        elif call.method == "load_weights":
            publication, version = call.detail
            self._acknowledge(seat, publication, version, future.result())

    def _acknowledge(self, seat: Seat, publication: int, version: Version, ack: Ack) -> None:
        if ack.version != version:
            raise WeightsError(
                f"{seat.worker.name} acknowledged weights {ack.version}, but {version} were sent; "
                "rollouts from these weights would train on wrong log-probs"
            )
        seat.ack, seat.loaded = ack, publication
        seat.refusals = 0

    # Loss

    def _fail(self, seat: Seat, call: PendingCall, error: BaseException) -> None:
        name, text = seat.worker.name, f"{type(error).__name__}: {error}"
        known = isinstance(error, GrpoError)
        if known and (call.method in ("submit", "sleep", "wake") or seat.first):
            # The caller's or the recipe's fault, and the same with any other worker.
            for wire in call.detail or ():
                ticket = seat.owed.pop(wire, None)
                if ticket is not None:
                    del self._tickets[ticket.request.uid]
            raise EngineError(f"{name}: {error}") from error
        if call.method == "load_weights":
            if known and call.detail[0] != self._publications:
                return  # of an older set, which nobody waits for; it is given the newest
            seat.refusals += 1
            if seat.refusals > 1:
                raise WeightsError(
                    f"{name} could not load weights {call.detail[1]}, nor could the worker it "
                    f"replaced; the last error was {text}"
                ) from error
        self._replace(seat, f"failed in {call.method} with {text}")

    def _replace(self, seat: Seat, reason: str) -> None:
        """Put a new worker in its place, and its unfinished requests back into the queue."""
        name = seat.worker.name
        seat.worker.kill()
        tickets = list(seat.owed.values())
        seat.owed.clear()
        seat.calls.clear()
        seat.first = seat.up = False
        seat.ack, seat.loaded = None, 0
        seat.empty_polls = 0
        seat.failures += 1
        if seat.failures >= _MAX_FAILURES:
            raise EngineError(
                f"{name} was lost {seat.failures} times without finishing a completion; the last "
                f"one {reason}"
            )
        for ticket in tickets:
            ticket.failures += 1
            if ticket.failures >= _MAX_REISSUES:
                raise EngineError(
                    f"request {ticket.request.uid!r} was with {ticket.failures} workers when they "
                    f"were lost; the last one, {name}, {reason}"
                )
        logger.warning("%s %s; replacing it, %d requests again", name, reason, len(tickets))
        self._queue.extend(tickets)
        self._counts["replaced"] += 1
        self._counts["reissued"] += len(tickets)
        seat.worker = self._start(seat.index)
        self._call(seat, "start")
