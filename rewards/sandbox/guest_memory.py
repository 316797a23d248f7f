"""The memory that all guests of this process may use together: reserved before each one is forked.

Every guest has a limit of its own, but many at once could still take a machine's memory from the
learner beside them. So the limits of those that run add up to no more than a share of what the
machine, or the control group of this process, has. A guest that finds no room waits. A guest that
is alone gets in, however much it asks for. First come, first served: a program that needs two
guests at once is not overtaken forever by programs that need one.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

SHARE = 0.5  # of the memory there is; the rest is the learner's and the engine's
_LOOK = 0.02  # seconds between two looks for an idle worker, while somebody waits


class Room:
    """Bytes of memory that guests have reserved, at most `total()`. Thread-safe."""

    def __init__(self, total: Callable[[], int]) -> None:
        self._total = total
        self._lenders: weakref.WeakSet[Lender] = weakref.WeakSet()
        self.empty()

    def empty(self) -> None:
        """Nothing is taken and nobody waits: the state of a process that has forked no guest."""
        self.taken = 0
        self._most = 0  # bytes; read once, when the first guest asks
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()

    def know(self, lender: Lender) -> None:
        """Remember somebody who may hold idle guests, for as long as it lives."""
        with self._changed:
            self._lenders.add(lender)

    def take(self, amount: int) -> None:
        """Reserve bytes, once all who came before have theirs and there is room.

        While it waits, idle workers are ended, one at a time. A request for 0 bytes never waits:
        it comes from a pair whose first guest has reserved for both.
        """
        if not amount:
            return
        ticket = object()
        with self._changed:
            self._most = self._most or self._total()
            self._waiting.append(ticket)
        try:
            while not self._enter(ticket, amount):
                if not self._shed(ticket):
                    with self._changed:
                        self._changed.wait(_LOOK)
        finally:
            with self._changed:
                self._waiting.remove(ticket)
                self._changed.notify_all()

    def _enter(self, ticket: object, amount: int) -> bool:
        with self._changed:
            fits = self.taken + amount <= self._most or not self.taken
            if self._waiting[0] is not ticket or not fits:
                return False
            self.taken += amount
            return True

    def _shed(self, ticket: object) -> bool:
        """Whether an idle guest was ended, for the first of those who wait."""
        with self._changed:
            lenders = list(self._lenders) if self._waiting[0] is ticket else []
        return any(lender.shed() for lender in lenders)

    def give(self, amount: int) -> None:
        """Return what was taken."""
        with self._changed:
            self.taken -= amount
            self._changed.notify_all()


class Lender(Protocol):
    """Something that keeps guests between two uses."""

    def shed(self) -> bool:
        """End one guest that waits for work; whether there was one."""
        ...


def memory(root: Path = Path("/")) -> int:
    """Bytes of memory this process can have: the machine's, or less by its control groups.

    Version 2 says so in memory.max, version 1 in memory.limit_in_bytes; each group above may say
    less (cgroups(7)). `root` holds proc and sys.
    """
    found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return found
    for line in groups:
        number, kinds, path = line.split(":", 2)
        if number == "0":
            top, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in kinds.split(","):
            top, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        place = top / path.strip("/")
        for group in (place, *place.parents):
            if group == top.parent:
                break
            try:
                text = (group / name).read_text(encoding="ascii").strip()
            except OSError:  # the group above the container's own, or one without the limit
                continue
            if text.isdigit():
                found = min(found, int(text))
    return found


ROOM = Room(lambda: int(SHARE * memory()))
os.register_at_fork(after_in_child=ROOM.empty)
