"""A reward that does not return ends the run with a sentence instead of holding it up for ever.

A thread cannot be killed, so it depends on where the reward runs:

  main thread   plain functions: after its seconds a signal raises `_OutOfTime` inside the reward,
                whether it computes, sleeps or waits; once a second until it gives way
  elsewhere     verifiers: the reward runs in a helper thread that is left behind
  event loop    asynchronous rewards: cancelled, or left behind where they block the loop

What is left behind does not keep the process from ending. Code that cannot be interrupted on the
main thread (a call into C that does not return) ends the process `GRACE` seconds later. Only C code
that keeps Python's lock is beyond reach: then no other thread runs either.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from types import FrameType
from typing import Any, TypeVar, cast

from grpo.errors import RewardError
from grpo.errors.places import place_in
from grpo.outside.code.foreign import Passing

SECONDS = 600.0  # a call of a reward, where nobody says otherwise
UNWINDING = 2.0  # for a coroutine that was cancelled
GRACE = 30.0  # beyond the deadline, for code that does not give way
_LOOK = 0.25  # seconds between looks at what is under way on the main thread
_LEAVING = 5.0  # for the interpreter to shut down while something still hangs
_FAILED = 2  # exit code of every error that is reported on purpose
# One that nobody else uses; alarms are the rewards' own.
_SIGNAL = int(signal.SIGRTMIN) + 5 if hasattr(signal, "SIGRTMIN") else int(signal.SIGUSR2)

T = TypeVar("T")


class LateError(RewardError):
    """A reward did not return in time, and something of it may be running still."""


def late(name: str, seconds: float, place: str = "") -> LateError:
    """What is raised for a reward that did not answer in time."""
    where = f", when it was{place}" if place else ""
    return LateError(
        f"reward {name!r} did not return within {seconds:g} s{where}; if it is only slow, raise "
        "its `timeout`, the seconds that one call may take"
    )


def within(name: str, seconds: float, call: Callable[[], T]) -> T:
    """`call()`. Raises RewardError, which names the reward, after `seconds`."""
    if threading.current_thread() is threading.main_thread():
        return _here(name, seconds, call)
    return _elsewhere(name, seconds, call)


# On the main thread


class _Call:
    """A call under way on the main thread."""

    def __init__(self, name: str, seconds: float) -> None:
        self.name, self.seconds = name, seconds
        self.deadline = time.monotonic() + seconds
        self.asked = 0.0  # when it was last asked to give way
        self.place: str | None = None  # where it was when it was interrupted


class _OutOfTime(Passing):
    """Raised inside a reward by the signal."""


_calls: list[_Call] = []  # outermost first
_watchdog: threading.Thread | None = None


def _here(name: str, seconds: float, call: Callable[[], T]) -> T:
    if signal.getsignal(_SIGNAL) is not _interrupt:
        signal.signal(_SIGNAL, _interrupt)  # for good: a late signal has to find it
    _watch()
    mine = _Call(name, seconds)
    _calls.append(mine)
    try:
        found = call()
    except BaseException:
        if mine.place is None:
            raise
    else:
        if mine.place is None:
            return found
    finally:
        _calls.remove(mine)
    leave_behind()  # it may have threads of its own
    raise late(name, seconds, mine.place)


def _interrupt(_number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    for call in _calls:
        if now >= call.deadline:
            call.place = call.place or place_in(frame)
            raise _OutOfTime


def _watch() -> None:
    global _watchdog
    if _watchdog is None or not _watchdog.is_alive():
        _watchdog = threading.Thread(target=_keep_watch, name="grpo-deadlines", daemon=True)
        _watchdog.start()


def _keep_watch() -> None:
    main = threading.main_thread().ident
    while main is not None:
        now = time.monotonic()
        for call in tuple(_calls):
            if now >= call.deadline + GRACE:
                print(f"grpo: error: {late(call.name, call.seconds)}", file=sys.stderr)
                _end()
            if now >= call.deadline and now >= call.asked + 1:
                call.asked = now
                signal.pthread_kill(main, _SIGNAL)
        left = min((call.deadline - now for call in tuple(_calls)), default=_LOOK)
        time.sleep(min(max(left, 0.05), _LOOK))


# On other threads


class _Helper:
    """A thread that runs one call after another, and may be left behind in the middle of one."""

    def __init__(self) -> None:
        self._work: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
        self.thread = threading.Thread(target=self._run, name="grpo-helper", daemon=True)
        self.thread.start()

    def submit(self, call: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        self._work.put((call, future))
        return future

    def _run(self) -> None:
        while True:
            call, future = self._work.get()
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
            del call, future  # nothing of a group is kept while there is no other


_idle: deque[_Helper] = deque()


def _elsewhere(name: str, seconds: float, call: Callable[[], T]) -> T:
    try:
        helper = _idle.pop()
    except IndexError:
        helper = _Helper()
    future = helper.submit(call)
    try:
        return future.result(seconds)
    except TimeoutError:
        if future.done():  # the reward's own
            raise
        leave_behind()
        raise late(name, seconds, place_of_thread(helper.thread)) from None
    finally:
        if future.done():
            _idle.append(helper)


def place_of_thread(thread: threading.Thread) -> str:
    """Where a thread is in the user's code, as `grpo.outside.code.foreign.place_in` says it."""
    frames = sys._current_frames()  # pyright: ignore[reportPrivateUsage]
    return place_in(frames.get(cast(int, thread.ident)))


# Ending a process in which something hangs

_leaving: threading.Event | None = None


def leave_behind() -> None:
    """From here on the process ends even if a thread of a reward never does.

    When the interpreter shuts down it has `_LEAVING` seconds to do so: it waits for the threads of
    executors, those of a reward that hangs included.
    """
    global _leaving
    if _leaving is not None:
        return
    _leaving = leaving = threading.Event()

    def wait() -> None:
        leaving.wait()
        time.sleep(_LEAVING)
        _end()

    threading.Thread(target=wait, name="grpo-leaving", daemon=True).start()
    # before the interpreter waits for anything; `atexit` is only asked after that
    register: Any = getattr(threading, "_register_atexit", None)
    if register is not None:
        register(leaving.set)


def _end() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(_FAILED)


def _forget_all() -> None:
    # a forked child has none of the threads
    global _leaving, _watchdog
    _calls.clear()
    _idle.clear()
    _leaving = _watchdog = None


os.register_at_fork(after_in_child=_forget_all)
