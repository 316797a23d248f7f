"""Processes that end with all that they have started, also what has a session of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from pathlib import Path

PATIENCE = 30.0  # seconds for a killed process to be gone


def descendants(pid: int) -> list[int]:
    """Every process that came from `pid` and runs now, the nearest first."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                # "pid (name) state parent ...", where the name may hold anything
                parents[int(folder.name)] = int(
                    (folder / "stat").read_text().rpartition(")")[2].split()[1]
                )
    found = [pid]
    for ancestor in found:  # grows as it is read
        found += [child for child, parent in parents.items() if parent == ancestor]
    return found[1:]


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that leads a group, its group, and what has left the group."""
    others = descendants(process.pid)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    kill(others)
    # one that hangs in the driver of a card may never end, and must not hold up the others
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=PATIENCE)


def kill(pids: list[int]) -> None:
    """SIGKILL to each of them that is still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def end_with(descriptor: int) -> None:
    """End this process, which leads a group, with the one that holds the other end of a pipe.

    Nobody writes to it; it is read to its end, which comes however the other process ends.
    """
    os.set_inheritable(descriptor, False)

    def watch() -> None:
        os.read(descriptor, 1)
        kill(descendants(os.getpid()))
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
