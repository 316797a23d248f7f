"""Worker processes that can be killed: N confined guests, a deadline each, results in order.

A guest serves many requests and is replaced after `recycle` of them, after a deadline, or when it
dies. Everything is called from the host's threads, so a hang costs one slot for one deadline: the
event loop, the main thread and the other slots never wait for it.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from grpo.errors import RewardError
from grpo.rewards.sandbox import wire
from grpo.rewards.sandbox.guest_memory import ROOM
from grpo.rewards.sandbox.probe import choose
from grpo.rewards.sandbox.sandbox import Guest, Limits, Sandbox


class WorkerTimeout(Exception):
    """The worker did not answer in time and was killed. `stage` is the last one it reported."""

    def __init__(self, stage: str) -> None:
        super().__init__(stage)
        self.stage = stage


class WorkerDied(Exception):
    """The worker ended instead of answering: out of memory or processor time, or a crash."""

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(reason)
        self.stage = stage


class WorkerFault(Exception):
    """The grader in the worker failed, whatever the answer was; the worker was replaced."""


class _Slot:
    """One worker's place: its process, if it runs, and what it has served."""

    def __init__(self) -> None:
        self.guest: Guest | None = None
        self.served = 0


class Pool:
    """`workers` guests of one kind in one sandbox, and as many threads of the host (0: one a core).

    The sandbox, of the tier that `tier` chooses, starts on first use and loads `preload`.
    `recycle`: requests that one guest serves.
    """

    def __init__(
        self,
        guest: str,
        preload: Sequence[str],
        *,
        tier: str,
        limits: Limits,
        workers: int,
        recycle: int = 500,
    ) -> None:
        self.kind, self.preload, self.tier = guest, preload, tier
        self.limits, self.recycle = limits, recycle
        self.workers = workers = workers or os.cpu_count() or 1
        if workers < 1:
            raise RewardError(f"workers must be at least 1, not {workers}")
        self._slots: queue.LifoQueue[_Slot] = queue.LifoQueue()
        self._all = [_Slot() for _ in range(workers)]
        for slot in self._all:
            self._slots.put(slot)
        self._lock = threading.Lock()
        self._sandbox: Sandbox | None = None
        self._threads: ThreadPoolExecutor | None = None
        ROOM.know(self)

    def call(self, request: Any, timeout: float) -> dict[str, Any]:
        """The worker's answer to one request, within `timeout` s of a worker taking it.

        A worker may report stages, {"stage": name}, before it answers. One that had served others
        before and dies may have died of what they left in its memory: a fresh one is asked then.
        Raises WorkerTimeout, WorkerDied, WorkerFault, or RewardError where there is no sandbox.
        """
        slot = self._slots.get()
        try:
            used = slot.served > 0
            try:
                return self._call(slot, request, timeout)
            except WorkerDied:
                if not used:
                    raise
            return self._call(slot, request, timeout)
        finally:
            self._slots.put(slot)

    def _call(self, slot: _Slot, request: Any, timeout: float) -> dict[str, Any]:
        stage = ""
        if slot.guest is not None and slot.guest.owner != os.getpid():
            slot.guest = None
        guest = slot.guest = slot.guest or self.sandbox().guest(self.kind, self.limits)
        deadline = time.monotonic() + timeout
        try:
            channel = guest.channels[0]
            channel.settimeout(timeout)
            wire.send(channel, request)
            while "stage" in (answer := wire.receive(channel, deadline)):
                stage = str(answer["stage"])
        except TimeoutError as error:
            self._retire(slot)
            raise WorkerTimeout(stage) from error
        except (EOFError, OSError, wire.WireError) as error:
            self._retire(slot)
            raise WorkerDied(stage, type(error).__name__) from error
        slot.served += 1
        if slot.served >= self.recycle or "unconfined" in answer or "fault" in answer:
            self._retire(slot)
        if "unconfined" in answer:
            raise WorkerDied(stage, answer["unconfined"])
        if "fault" in answer:
            raise WorkerFault(answer["fault"])
        return answer

    def map(self, function: Callable[..., Any], *columns: Iterable[Any]) -> Iterator[Any]:
        """`function` of each row of arguments, `workers` at a time on the host; results in order.

        It may use `call` and `sandbox`.
        """

        def of_row(row: tuple[Any, ...]) -> Any:
            return function(*row)

        with self._lock:  # until all rows are handed over: `close` ends the threads
            threads = self._threads or ThreadPoolExecutor(self.workers, f"grpo-{self.kind}")
            self._threads = threads
            return threads.map(of_row, zip(*columns, strict=True))

    def shed(self) -> bool:
        """End one worker that has nothing to do; whether there was one."""
        idle: list[_Slot] = []
        try:
            while True:
                idle.append(self._slots.get_nowait())
                if idle[-1].guest is not None:
                    self._retire(idle[-1])
                    return True
        except queue.Empty:
            return False
        finally:
            for slot in reversed(idle):
                self._slots.put(slot)

    def close(self, *, at_once: bool = False) -> None:
        """End every worker and the sandbox; a later call starts them again.

        at_once: end what runs in the sandbox, instead of waiting for it.
        """
        with self._lock:
            threads, self._threads = self._threads, None
            sandbox, self._sandbox = self._sandbox, None
        if at_once and sandbox is not None:
            sandbox.close()
        if threads is not None:
            threads.shutdown(cancel_futures=True)
        for slot in self._all:
            self._retire(slot)
        if sandbox is not None:
            sandbox.close()

    def sandbox(self) -> Sandbox:
        """The sandbox, made when it is first asked for."""
        with self._lock:
            if self._sandbox is None:
                self._sandbox = Sandbox(choose(self.tier), self.preload)
            return self._sandbox

    def _retire(self, slot: _Slot) -> None:
        """End a slot's worker, if it has one."""
        guest, slot.guest, slot.served = slot.guest, None, 0
        if guest is not None:
            guest.end()
