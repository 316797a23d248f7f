"""One process at a time trains in a run's folder.

The lock is the kernel's (flock on `run.lock`). It ends with the process that holds it, however that
ends, so no stale lock can remain. Child processes do not keep it: started programs do not inherit
its open file (close-on-exec), and forked children close it at once. It works between containers of
one machine, and between machines on file systems that share locks (NFS, Lustre with `flock`). On a
file system without locks, the owner that the file names is looked up among this machine's
processes.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from grpo.errors import RunError

NAME = "run.lock"
PATIENCE = 2.0  # seconds for a killed process to end: it first gives its memory back
_RETRY = 0.05
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_held: set[int] = set()  # descriptors of this process


@contextmanager
def claimed(folder: Path) -> Iterator[str]:
    """Within it, `folder` (made if missing) is this process's to train in.

    Yields a warning about an owner on another machine that did not end in order, or "". Raises
    RunError, naming the owner, if the run is being trained.
    """
    path = folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(path, folder)
    except OSError as error:
        raise RunError(f"run.dir = {str(folder)!r} cannot be written: {error}") from error
    _held.add(descriptor)
    try:
        left = _owner(descriptor)
        _write(descriptor)
        yield _elsewhere(folder, left)
    finally:
        _release(path, descriptor)


def is_claimed(folder: Path) -> bool:
    """Whether a process trains in `folder` now."""
    try:
        descriptor = os.open(folder / NAME, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return not _take(descriptor)
    finally:
        os.close(descriptor)


def _locked(path: Path, folder: Path) -> int:
    """A descriptor of the file at `path`, locked. Raises RunError where another one is."""
    patience = time.monotonic() + PATIENCE
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            taken = _take(descriptor)
            if taken and _is_at(descriptor, path):
                return descriptor
            owner = _owner(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if taken:  # its owner has removed the file meanwhile
            continue
        if time.monotonic() > patience:
            raise RunError(
                f"run {str(folder)!r} is being trained {_by(owner)}; wait until that has ended, or "
                "stop it first (`grpo show` looks at a run meanwhile)"
            )
        time.sleep(_RETRY)


def _take(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return not _runs(_owner(descriptor))
    return True


def _release(path: Path, descriptor: int) -> None:
    """Remove the file and release the lock. A forked child has neither."""
    if descriptor not in _held:
        return
    _held.discard(descriptor)
    try:
        # before the lock ends, so that nobody else's file is removed
        if _is_at(descriptor, path):
            path.unlink(missing_ok=True)
    except OSError:  # the file stays, which blocks nobody
        pass
    finally:
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one that the path leads to."""
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(descriptor))


def _write(descriptor: int) -> None:
    now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
    owner |= {"boot": _boot(), "started": _started(os.getpid())}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(owner).encode(), 0)


def _owner(descriptor: int) -> dict[str, Any]:
    """The owner that the file names; {} if it cannot be read."""
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _by(owner: dict[str, Any]) -> str:
    if not owner:
        return "by another process"
    return f"by process {owner.get('pid')} on {owner.get('host')} since {owner.get('since')}"


def _elsewhere(folder: Path, owner: dict[str, Any]) -> str:
    """A warning if the last owner was on another machine, whose locks may be invisible here."""
    if not owner or owner.get("host") == socket.gethostname():
        return ""
    return (
        f"run {str(folder)!r} was being trained {_by(owner)} and did not end in order; if that "
        "process still runs, stop one of the two"
    )


def _runs(owner: dict[str, Any]) -> bool:
    """Whether the owner still runs on this machine, and its number is not another process now."""
    pid, started = owner.get("pid"), owner.get("started")
    if owner.get("boot") != _boot() or not isinstance(pid, int) or pid == os.getpid():
        return False
    return started is not None and _started(pid) == started


def _boot() -> str:
    """An id of this machine since its start; its host name where the kernel has no such id."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _started(pid: int) -> int | None:
    """When a process was started, in ticks after the machine's start; None if unknown."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])  # field 22 of proc(5); a name may hold spaces


def _forget() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
