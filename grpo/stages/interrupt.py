"""Ctrl-C and SIGTERM while a stage trains: a step is finished and saved before it stops."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from grpo.rundir.log import RunLog


@contextmanager
def interruptible(log: RunLog) -> Iterator[Any]:
    """First Ctrl-C (or SIGTERM): finish the step, save, stop. Second: stop at once, unsaved."""
    asked: list[int] = []

    def handler(number: int, _frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        log.say("stopping after this step, then saving (interrupt again to stop at once)")

    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, handler)
    except ValueError:  # not the main thread (a notebook's worker): the caller's handlers stay
        pass
    try:
        yield lambda: bool(asked)
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
