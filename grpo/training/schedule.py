"""Sampling and learning, in turns or at once: the same loop, another distance between them.

Steps count from 1. The batch of step k may be begun once the weights of step k - 1 - staleness are
in the engine:

    sync            staleness 0: sampling and learning take turns
    one_step_off    staleness 1: a batch is sampled while the one before it is learned from; new
                    weights wait until it is whole, so every batch is of one version
    async           staleness max_staleness: new weights are loaded between two tokens, and a
                    completion goes on under them with a second segment (AReaL, 2505.24298)

With staleness 0 there is no second thread, and async is sync. Otherwise a thread of its own drives
the engine; nothing else touches the engine while that thread has work (`quiet` waits until it has
none). Rewards that are not thread-safe are scored by the thread that calls `take`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from grpo.errors import EngineError
from grpo.rewards.compose import RewardSet
from grpo.training.batch_json import from_json, to_json
from grpo.training.delivery import Deliveries
from grpo.training.drawing import RolloutSpec
from grpo.training.gathering import Batch, BatchAssembler
from grpo.types import (
    Ack,
    Completion,
    Engine,
    InFlight,
    Learner,
    Metrics,
    Prompt,
    Score,
    TrainerState,
    Version,
)

POLL = 0.05  # seconds between looks at commands while the engine is busy
EMPTY_POLLS = 200  # polls in a row that come back empty at once: the engine has lost something
T = TypeVar("T")


class RolloutScheduler:
    """Scored batches from an engine, and the way by which weights reach it.

    Use: deliver, then take and deliver in turns for the steps up to `last`. A `colocated` engine
    shares its device with the learner, and sleeps while that learns. `precision`: the coarser type
    of engine and learner; it says how far apart their canaries may be.
    """

    def __init__(
        self,
        spec: RolloutSpec,
        engine: Engine,
        rewards: RewardSet,
        *,
        last: int,
        staleness: int = 0,
        in_flight: InFlight = "finish",
        colocated: bool = False,
        precision: str = "bfloat16",
    ) -> None:
        self._spec, self.engine, self.rewards = spec, engine, rewards
        self.staleness = staleness
        self._in_flight: InFlight = in_flight
        self._deliveries = Deliveries(staleness=staleness, precision=precision)
        self._colocated = colocated and not staleness
        self._last = last
        self._learned = 0  # steps whose weights are in the engine
        self._next = 1  # step of the next batch to begin
        self._assembling: dict[int, BatchAssembler] = {}
        self._ready: dict[int, Batch] = {}
        self._scorer = (
            ThreadPoolExecutor(rewards.parallel, "grpo-rewards") if rewards.threadsafe else None
        )
        self._for_caller: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._command: tuple[Future[Any], Callable[[], Any]] | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._paused = self._closed = False
        self._empty_polls = 0
        self._waited = self._busy = 0.0  # seconds the learner waited, the engine worked

    # What the learner's side calls

    def take(self, step: int) -> Batch:
        """The batch of `step`, waited for. Raises whatever sampling or scoring raised."""
        begun = min(self._last, self._learned + 1 + self.staleness)
        if step > begun:
            raise ValueError(f"the batch of step {step} is not begun before deliver; up to {begun}")
        started = time.perf_counter()
        if self.staleness:
            self._start()
            self._wait(lambda: step in self._ready)
        else:
            while step not in self._ready:
                self._pump(None)
            if self._colocated:
                self.engine.sleep()
        self._waited += time.perf_counter() - started
        batch = self._ready.pop(step)
        ages = self._deliveries.ages(batch.groups, step)
        return replace(batch, metrics=batch.metrics | ages)

    def deliver(self, learner: Learner, steps_done: int) -> Version:
        """Hand the learner's weights, of so many steps, to the engine; which ones those are.

        Raises WeightsError naming the engine and what is wrong with its acknowledgment.
        """
        started = time.perf_counter()
        version = self._deliveries.send(learner, steps_done, partial(self._load, learner))
        with self._changed:
            self._learned = steps_done
            self._next = max(self._next, steps_done + 1)
            self._changed.notify_all()
        self._waited += time.perf_counter() - started
        return version

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Inside, nothing is under way and the engine is the caller's.

        Batches that were begun are finished first; no further one is begun.
        """
        with self._changed:
            self._paused = True
        try:
            if self._thread is not None:
                self._wait(lambda: not self._assembling)
            yield
        finally:
            with self._changed:
                self._paused = False
                self._changed.notify_all()

    def take_metrics(self, seconds: float) -> Metrics:
        """How the last `seconds` of one step were spent; starts counting anew."""
        waited, busy = self._waited, self._busy
        self._waited = self._busy = 0.0
        learner_idle = min(1.0, waited / seconds)
        rollout_idle = max(0.0, 1.0 - busy / seconds)
        return {
            "schedule/learner_idle": learner_idle,
            "schedule/rollout_idle": rollout_idle,
            "schedule/overlap": max(0.0, 1.0 - learner_idle - rollout_idle),
        }

    def state(self) -> dict[str, Any]:
        """What `restore` needs beside `position`. Call it inside `quiet`: scores are whole then."""
        remembered = self.rewards.state()
        return {
            "next": self._next,
            "ready": [to_json(batch) for _, batch in sorted(self._ready.items())],
            "known": self._deliveries.state(),
            "curriculum": self._spec.curriculum.state() if self._spec.curriculum else None,
            **({"rewards": remembered} if remembered else {}),
        }

    @property
    def position(self) -> int:
        """The place in the task order up to which prompts were drawn. Ask inside `quiet`."""
        return self._spec.tasks.position

    def restore(self, state: dict[str, Any], position: int, keep_batches: bool = True) -> None:
        """Go on where `state` and `position` were taken, before the first `deliver`.

        keep_batches: whether what was sampled ahead still counts; if not, its tasks are drawn anew.
        """
        self._next = state["next"]
        ready = state["ready"]
        if ready and not keep_batches:
            self._next = min(batch["step"] for batch in ready)
            drawn = [group["position"] for batch in ready for group in batch["groups"]]
            position = min(drawn, default=position)
            ready = []
        self._spec.tasks.position = position
        self._ready = {b["step"]: from_json(b, self._spec) for b in ready}
        self._deliveries.restore(state["known"])
        if self._spec.curriculum is not None and state.get("curriculum") is not None:
            self._spec.curriculum.restore(state["curriculum"])
        self.rewards.restore(state.get("rewards", {}))

    def close(self) -> None:
        """Stop the thread and cancel what is under way; the engine is the caller's to close."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        if self._scorer is not None:
            self._scorer.shutdown(cancel_futures=True)
        owed = [uid for assembler in self._assembling.values() for uid in assembler.owed]
        if owed:
            self.engine.cancel(owed)

    # Between the threads

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="grpo-rollouts", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        try:
            while not self._closed:
                self._serve_command()
                with self._changed:
                    if not (self._may_begin() or self._assembling or self._command):
                        self._changed.wait(POLL)
                        continue
                self._pump(POLL)
        except BaseException as error:
            with self._changed:
                self._failure = error
                if self._command is not None:
                    self._command[0].set_exception(error)
                self._changed.notify_all()

    def _serve_command(self) -> None:
        # Weights that may not change in the middle of a batch wait until it is whole, and until
        # the one that the weights before them are to sample is: which weights sample a batch must
        # not depend on whether the learner or this thread is quicker.
        waits = self._in_flight == "finish" and (self._assembling or self._may_begin())
        if self._command and not waits:
            (future, call), self._command = self._command, None
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
            with self._changed:
                self._changed.notify_all()

    def _call(self, call: Callable[[], T]) -> T:
        """The result of `call`, run by whoever drives the engine."""
        if self._thread is None:
            return call()
        future: Future[T] = Future()
        with self._changed:
            self._command = (future, call)
            self._changed.notify_all()
        self._wait(future.done)
        return future.result()

    def _load(self, learner: Learner, version: Version) -> Ack:
        def load() -> Ack:
            if self._colocated:
                self.engine.wake()
            return self.engine.load_weights(learner.weights(), version, self._in_flight)

        return self._call(load)

    def _wait(self, until: Callable[[], bool]) -> None:
        """Wait for the thread; meanwhile score what only this thread may score."""
        while True:
            while self._for_caller:
                future, call = self._for_caller.popleft()
                _settle(future, call)
            with self._changed:
                if until():
                    return
                if self._failure is not None:
                    raise self._failure
                if not self._for_caller:
                    self._changed.wait(POLL)

    # Sampling

    def _may_begin(self) -> bool:
        allowed = min(self._last, self._learned + 1 + self.staleness)
        return not self._paused and self._next <= allowed

    def _begin(self) -> BatchAssembler | None:
        """The next batch, if it may be begun; from here on `quiet` waits for it.

        Batches of one version come one after another, so that what the engine has beside a
        completion is the same in every run.
        """
        with self._changed:
            if not self._may_begin() or (self._in_flight == "finish" and self._assembling):
                return None
            assembler = self._assembling[self._next] = BatchAssembler(self._spec, self._next)
            self._next += 1
            return assembler

    def _pump(self, timeout: float | None) -> None:
        """Begin what may begin, sort in what has come, finish what is whole."""
        while assembler := self._begin():
            self.engine.submit(assembler.more())
        if any(g.under_way for g in self._assembling.values()):
            self._poll(timeout)
        else:  # every completion is there, and the scores are not
            scores = [future for g in self._assembling.values() for future in g.scores]
            wait(scores, timeout=POLL)
        for step, assembler in list(self._assembling.items()):
            uids = assembler.stragglers()
            if uids:
                self.engine.cancel(uids)
            requests = assembler.more()
            if requests:
                self.engine.submit(requests)
            if not (assembler.under_way or requests) and all(f.done() for f in assembler.scores):
                self._finish(step, assembler)

    def _poll(self, timeout: float | None) -> None:
        started = time.perf_counter()
        completions = self.engine.poll(timeout)
        seconds = time.perf_counter() - started
        self._busy += seconds
        for completion in completions:
            step = int(completion.request.partition("/")[0])
            if step not in self._assembling:
                raise EngineError(f"a completion of {completion.request!r} was not asked for")
            self._deliveries.check(completion, step)
            self._assembling[step].add(completion, self._score)
        at_once = seconds < (timeout or POLL) / 2
        self._empty_polls = self._empty_polls + 1 if at_once and not completions else 0
        if (timeout is None and not completions) or self._empty_polls > EMPTY_POLLS:
            steps = [step for step, g in self._assembling.items() if g.under_way]
            raise EngineError(f"the engine lost completions of the batches of steps {steps}")

    def _finish(self, step: int, assembler: BatchAssembler) -> None:
        batch = assembler.batch()
        logged = self.rewards.take_metrics() | self.engine.take_metrics()
        with self._changed:
            del self._assembling[step]
            self._ready[step] = replace(batch, metrics=batch.metrics | logged)
            self._changed.notify_all()

    def _score(
        self, prompt: Prompt, completions: Sequence[Completion], step: int
    ) -> Future[list[Score]]:
        def call() -> list[Score]:
            return self.rewards.score(prompt, completions, TrainerState(global_step=step))

        if self._scorer is not None:
            return self._scorer.submit(call)
        future: Future[list[Score]] = Future()
        if self._thread is None:
            future.set_result(call())
        else:
            with self._changed:
                self._for_caller.append((future, call))
                self._changed.notify_all()
        return future


def _settle(future: Future[Any], call: Callable[[], Any]) -> None:
    try:
        future.set_result(call())
    except BaseException as error:
        future.set_exception(error)
        if not isinstance(error, Exception):  # Ctrl-C is this thread's, and not a score
            raise
