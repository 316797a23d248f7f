"""Actions that a confined process must not be able to do, and a few that it must.

There is one for each kind of attack that is known. Each really tries, so a layer that is configured
but does not hold shows up here as a success.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import Any

from grpo.rewards.sandbox import readable, wire
from grpo.rewards.sandbox.bubblewrap import SCRATCH
from grpo.rewards.sandbox.syscalls import REFUSED

_PTRACE_SEIZE = 0x4206  # attaches without stopping the process
FOLDERS = ("/", "/tmp", "/var/tmp", "/dev", "/dev/shm", "/run", SCRATCH, ".")
# fcntl(2) and ioctl(2): by each of these the kernel would send signals for the process
_F_SETFL, _F_SETOWN, _F_SETSIG, _F_SETLEASE, _F_NOTIFY = 4, 8, 10, 1024, 1026
_O_ASYNC = 0x2000
_FIOASYNC, _FIOSETOWN, _SIOCSPGRP = 0x5452, 0x8901, 0x8902


def _read(path: str) -> None:
    with open(path, "rb") as stream:
        stream.read(1)


def _write(path: str) -> None:
    with open(path, "wb") as stream:
        stream.write(b"x")


def _everywhere(
    make: Callable[[str], Any], name: str, remove: Callable[[str], None] = os.unlink
) -> None:
    """Try in every folder there may be, and remove what was made. OSError if all refuse."""
    refused: OSError | None = None
    for folder in FOLDERS:
        path = os.path.join(folder, name)
        try:
            make(path)
        except OSError as error:
            refused = error
            continue
        with contextlib.suppress(OSError):  # what was made counts, also where it has to stay
            remove(path)
        return
    assert refused is not None
    raise refused


def _create(path: str) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))  # empty: no limit on size counts


def _create_socket(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as channel:
        channel.bind(path)


def _nameless(path: str) -> None:
    os.close(os.open(os.path.dirname(path), os.O_TMPFILE | os.O_RDWR))


def _connect() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
        channel.sendto(b"x", ("127.0.0.1", 9))


def _abstract() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.bind("\0grpo-probe")


def _datagrams() -> None:
    for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM):
        end.close()


def _send_address() -> None:
    one, other = socket.socketpair()
    with one, other:
        one.sendto(b"x", "\0grpo-probe")


def _send_descriptor() -> None:
    one, other = socket.socketpair()
    with one, other:
        socket.send_fds(one, [b"x"], [0])


def _control(command: int, argument: int, call: str = "fcntl") -> None:
    import fcntl

    one, other = socket.socketpair()
    with one, other:
        if call == "ioctl":
            fcntl.ioctl(one, command, argument.to_bytes(4, "little"))
        else:
            fcntl.fcntl(one, command, argument)


def _watch_folder() -> None:
    import fcntl

    handle = os.open(os.path.dirname(os.__file__), os.O_RDONLY)
    try:
        fcntl.fcntl(handle, _F_NOTIFY, 1)
    finally:
        os.close(handle)


def _lease() -> None:
    import fcntl

    with open(os.__file__, "rb") as stream:
        fcntl.fcntl(stream, _F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(stream, _F_SETLEASE, fcntl.F_UNLCK)


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def _ptrace(pid: int) -> None:
    import ctypes

    if ctypes.CDLL(None, use_errno=True).ptrace(_PTRACE_SEIZE, pid, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")


def _calls() -> list[str]:
    """The calls that nobody needs and that the kernel itself answered, with arguments of 0."""
    import ctypes
    import errno

    library = ctypes.CDLL(None, use_errno=True)
    zeros = [ctypes.c_long(0)] * 5
    reached: list[str] = []
    for name, number in REFUSED.get(platform.machine(), {}).items():
        ctypes.set_errno(0)
        result = library.syscall(ctypes.c_long(number), *zeros)
        if result >= 0 or ctypes.get_errno() not in (errno.ENOSYS, errno.EPERM):
            reached.append(name)
    return reached


def _thread() -> None:
    seen: list[int] = []
    thread = threading.Thread(target=seen.append, args=(1,))
    thread.start()
    thread.join(2)
    if not seen:
        raise OSError("the thread did not run")


def _import() -> None:
    importlib.import_module("colorsys")  # nothing has loaded it yet: it is read from disk


def _pair() -> None:
    one, other = socket.socketpair()  # asyncio's loops wake themselves with one
    with one, other:
        one.setblocking(False)
        one.sendall(b"x")
        if other.recv(1) != b"x":
            raise OSError("nothing came through")


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


def _raise_limits() -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (hard + 60, hard + 60))


def serve(channel: socket.socket) -> None:
    """Answer {"denied": {name: reason or None}, "works": {…}}; None means it went through."""
    given = wire.receive(channel)
    secret, name, pid, itself = given["secret"], given["name"], given["pid"], os.getpid()
    denied: dict[str, Callable[[], Any]] = {
        "read a file": lambda: _read(secret),
        "list a folder": lambda: os.listdir(os.path.dirname(secret)),
        "open a file without reading it": lambda: os.close(os.open("/", os.O_PATH)),
        "change its folder": lambda: os.chdir("/"),
        "write a file": lambda: _write(os.path.join(os.path.dirname(secret), "written")),
        "create a file": lambda: _everywhere(_create, name),
        "create a folder": lambda: _everywhere(os.mkdir, name, os.rmdir),
        "create a link": lambda: _everywhere(lambda path: os.symlink("elsewhere", path), name),
        "create a named pipe": lambda: _everywhere(os.mkfifo, name),
        "create a socket": lambda: _everywhere(_create_socket, name),
        "create a file without a name": lambda: _everywhere(_nameless, name),
        "read /proc": lambda: _read(f"/proc/{pid}/environ"),
        "send a packet": _connect,
        "open a local socket": _abstract,
        "make a pair of datagram sockets": _datagrams,
        "send to an address": _send_address,
        "send a descriptor": _send_descriptor,
        "start a process": _fork,
        "run a program": lambda: subprocess.run(["/bin/true"], check=True),
        "signal the host": lambda: os.kill(pid, signal.SIG_DFL),
        "own a socket's signals": lambda: _control(_F_SETOWN, itself),
        "own a socket's signals (ioctl)": lambda: _control(_FIOSETOWN, itself, "ioctl"),
        "own a socket's signals (group)": lambda: _control(_SIOCSPGRP, itself, "ioctl"),
        "choose a socket's signal": lambda: _control(_F_SETSIG, signal.SIGURG),
        "switch on a socket's signals": lambda: _control(_F_SETFL, _O_ASYNC),
        "switch on a socket's signals (ioctl)": lambda: _control(_FIOASYNC, 1, "ioctl"),
        "have a folder watched": _watch_folder,
        "lease a file": _lease,
        "trace the host": lambda: _ptrace(pid),
        "raise its limits": _raise_limits,
        "allocate 64 GiB": _memory,
    }
    works: dict[str, Callable[[], Any]] = {
        "import": _import,
        "start a thread": _thread,
        "talk to itself": _pair,
        "write to /dev/null": _discard,
        "read the installed packages": lambda: _read_all(given["readable"]),
    }
    outcomes = {what: _outcome(action) for what, action in denied.items()}
    reached = _calls()
    outcomes |= {f"call {call}": None for call in reached}
    if not reached:
        outcomes["call what no program needs"] = "OSError: not there"
    tried = {what: _outcome(action) for what, action in works.items()}
    wire.send(channel, {"denied": outcomes, "works": tried})


def _outcome(action: Callable[[], Any]) -> str | None:
    try:
        action()
    except (OSError, MemoryError, ValueError, ImportError, subprocess.SubprocessError) as error:
        return f"{type(error).__name__}: {error}"
    return None
