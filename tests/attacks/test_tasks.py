"""The sandbox: how many threads a guest may have does not depend on its neighbors."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from grpo.rewards.sandbox import linux, zygote

USER = 12345  # nobody's
TASKS = 4
ABSENT, DUMPABLE = 77, 4


def _child(work: Callable[[], int]) -> int:
    """The pid of a process whose exit code is what `work` returns, 1 if that raises."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = work()
        finally:
            os._exit(code)
    return pid


def _code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _threads() -> int:
    """How many threads can be started, of up to 10."""
    wait = threading.Event()
    for count in range(10):
        try:
            threading.Thread(target=wait.wait, daemon=True).start()
        except RuntimeError:
            return count
    return 10


def _guest(ready: int, go: int) -> int:
    zygote._become_nobody(TASKS, ("namespaces",))  # pyright: ignore[reportPrivateUsage]
    os.write(ready, b"x")
    os.read(go, 1)  # until all are there
    return _threads()


def _started() -> int:
    if os.getuid() == 0:
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
        linux.prctl(DUMPABLE, 1)  # what makes /proc/self this user's own again
    uid, gid = os.getuid(), os.getgid()
    try:
        linux.unshare(linux.CLONE_NEWUSER)
        Path("/proc/self/uid_map").write_bytes(f"{uid} {uid} 1".encode())
        Path("/proc/self/setgroups").write_bytes(b"deny")
        Path("/proc/self/gid_map").write_bytes(f"{gid} {gid} 1".encode())
    except OSError:
        return ABSENT
    (here, ready), (go, start) = os.pipe(), os.pipe()
    guests = [_child(lambda: _guest(ready, go)) for _ in range(2 * TASKS)]
    os.close(ready)
    for _ in guests:
        os.read(here, 1)
    os.write(start, b"x" * len(guests))
    found = {_code(guest) for guest in guests}
    return found.pop() if len(found) == 1 else 50


def test_guests_of_an_ordinary_user_do_not_use_up_each_others_threads():
    found = _code(_child(_started))
    if found == ABSENT:
        pytest.skip("no user namespaces here")
    assert found == TASKS - 1  # the first is the guest itself
