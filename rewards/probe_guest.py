"""Actions that a confined process must not be able to do, and a few that it must.

Each probe really tries: a layer that is configured but does not hold shows up as a success here.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import Any

from grpo.rewards import readable, wire

_PTRACE_SEIZE = 0x4206  # attaches without stopping the process


def _read(path: str) -> None:
    with open(path, "rb") as stream:
        stream.read(1)


def _write(path: str) -> None:
    with open(path, "wb") as stream:
        stream.write(b"x")


def _connect() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
        channel.sendto(b"x", ("127.0.0.1", 9))


def _abstract() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.bind("\0grpo-probe")


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def _ptrace(pid: int) -> None:
    import ctypes

    if ctypes.CDLL(None, use_errno=True).ptrace(_PTRACE_SEIZE, pid, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")


def _thread() -> None:
    seen: list[int] = []
    thread = threading.Thread(target=seen.append, args=(1,))
    thread.start()
    thread.join(2)
    if not seen:
        raise OSError("the thread did not run")


def _import() -> None:
    importlib.import_module("colorsys")  # nothing has loaded it yet: it is read from disk


def _read_all(paths: Sequence[str]) -> None:
    faults = readable.unreadable([*paths, *readable.loaded()])
    if faults:
        more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise OSError(faults[0] + more)


def _discard() -> None:
    with open(os.devnull, "w", encoding="ascii") as stream:  # programs silence themselves with it
        stream.write("x")


def _memory() -> None:
    bytearray(64 << 30)


def serve(channel: socket.socket) -> None:
    """Answer {"denied": {name: reason or None}, "works": {…}}; None means it went through."""
    given = wire.receive(channel)
    denied: dict[str, Callable[[], Any]] = {
        "read a file": lambda: _read(given["secret"]),
        "list a folder": lambda: os.listdir(os.path.dirname(given["secret"])),
        "write a file": lambda: _write(os.path.join(os.path.dirname(given["secret"]), "written")),
        "write in /tmp": lambda: _write("/tmp/grpo-probe"),
        "write in /dev/shm": lambda: _write("/dev/shm/grpo-probe"),
        "read /proc": lambda: _read(f"/proc/{given['pid']}/environ"),
        "send a packet": _connect,
        "open a local socket": _abstract,
        "start a process": _fork,
        "run a program": lambda: subprocess.run(["/bin/true"], check=True),
        "signal the host": lambda: os.kill(given["pid"], signal.SIG_DFL),
        "trace the host": lambda: _ptrace(given["pid"]),
        "raise its limits": _raise_limits,
        "allocate 64 GiB": _memory,
    }
    works: dict[str, Callable[[], Any]] = {
        "import": _import,
        "start a thread": _thread,
        "write to /dev/null": _discard,
        "read the installed packages": lambda: _read_all(given["readable"]),
    }
    wire.send(
        channel,
        {
            "denied": {name: _outcome(action) for name, action in denied.items()},
            "works": {name: _outcome(action) for name, action in works.items()},
        },
    )


def _raise_limits() -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (hard + 60, hard + 60))


def _outcome(action: Callable[[], Any]) -> str | None:
    try:
        action()
    except (OSError, MemoryError, ValueError, ImportError, subprocess.SubprocessError) as error:
        return f"{type(error).__name__}: {error}"
    return None
