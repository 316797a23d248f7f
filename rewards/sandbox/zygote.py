"""The process that model code is forked from: started once, holds nothing worth stealing.

It is a fresh interpreter with the modules guests need, inside its own namespaces where the machine
allows them. The host asks it over one socket to fork guests; each guest confines itself and then
serves one job (`GUESTS`). Nothing of the host's memory, environment or file descriptors is here,
and when the host goes away, however it goes, the zygote sees end-of-file and every guest dies.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any

from grpo.rewards.sandbox import bubblewrap, linux, readable, seccomp, wire

# What a guest runs once confined: name -> "module:function", called with its sockets.
GUESTS = {
    "math": "grpo.rewards.math.guest:serve",
    "candidate": "grpo.rewards.code.guest:serve_candidate",
    "tests": "grpo.rewards.code.guest:run_tests",
    "script": "grpo.rewards.code.guest:run_script",
    "probe": "grpo.rewards.sandbox.probe_guest:serve",
    "trial": "grpo.rewards.sandbox.trial:serve",
    "gym": "grpo.rewards.gym_guest:serve",
}
_TOGETHER = 384  # more threads that a user may have by them, where no guest is counted alone
GUEST_USER = 1_900_000_000  # user ids from here on belong to nobody; one a guest, by its pid


def main(handle: int, config: dict[str, Any]) -> None:
    """Serve the host on socket `handle` until it closes. `config` comes from `sandbox.Sandbox`."""
    host = socket.socket(fileno=handle)
    if sys.platform == "linux":
        linux.die_first()
    for name in config["preload"]:
        importlib.import_module(name)
    if "bubblewrap" in config["layers"]:
        bubblewrap.close_scratch()
    # What graders have loaded from elsewhere they may load more of.
    config["readable"] = readable.cover([*config["readable"], *readable.loaded()])
    layers = config["layers"]
    config["mapped"] = linux.address_space() if sys.platform == "linux" else 0
    if "namespaces" in layers:
        linux.enter_namespaces()
        init = os.fork()  # the first child is process 1 of the new namespace
        if init:
            host.close()
            with contextlib.suppress(KeyboardInterrupt):
                os.waitpid(init, 0)
            os._exit(0)
        linux.die_with_parent()
        linux.read_only_root(config["readable"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the host's to handle
    gc.collect()
    gc.freeze()
    _send(host, {"ready": os.getpid()})
    guests: set[int] = set()
    while True:
        try:
            body, handles, _, _ = socket.recv_fds(host, 1 << 16, 8)
        except InterruptedError:
            continue
        if not body:
            break
        request = json.loads(body)
        if request["do"] == "fork":
            pid = _fork(host, request, handles, config)
            guests.add(pid)
            _send(host, {"pid": pid})
        else:
            pid = request["pid"]
            ended = _reap(pid, request["do"] == "kill")
            if ended:
                guests.discard(pid)
            _send(host, ended)
        for fd in handles:
            os.close(fd)
    for pid in guests:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    os._exit(0)


def _send(host: socket.socket, message: dict[str, Any]) -> None:
    host.send(json.dumps(message).encode())


def _reap(pid: int, kill: bool) -> dict[str, Any]:
    """A guest's wait status, {} while it runs unless `kill` is set. Never waits for long."""
    if kill:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    try:
        found, status = os.waitpid(pid, 0 if kill else os.WNOHANG)
    except ChildProcessError:
        return {"status": -1}
    return {"status": status} if found else {}


def _fork(
    host: socket.socket, request: dict[str, Any], handles: Sequence[int], config: dict[str, Any]
) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        host.close()
        start = GUESTS[request["guest"]]
        module, _, function = start.partition(":")
        serve = getattr(importlib.import_module(module), function)
        os.setsid()
        _arrange_descriptors(handles)
        channels = [socket.socket(fileno=3 + i) for i in range(len(handles))]
        try:
            confine(request["limits"], config)
        except (OSError, ValueError) as error:
            wire.send(channels[0], {"unconfined": str(error)})
            raise
        code = serve(*channels) or 0
    finally:
        os._exit(code)


def _arrange_descriptors(handles: Sequence[int]) -> None:
    """0, 1, 2 on /dev/null; the job's handles at 3, 4, …; everything else closed."""
    null = os.open("/dev/null", os.O_RDWR)
    high = [os.dup2(fd, 200 + i) for i, fd in enumerate(handles)]
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    for i, fd in enumerate(high):
        os.dup2(fd, 3 + i)
    os.closerange(3 + len(handles), 4096)


def confine(limits: dict[str, Any], config: dict[str, Any]) -> None:
    """Give up, for good, all that the layers and limits do not leave. Raises OSError if one fails.

    limits: cpu (seconds), memory (bytes beyond what the zygote has mapped), files, tasks.
    """
    layers: Sequence[str] = config["layers"]
    os.chdir("/")
    os.umask(0o077)
    linux.limit("CORE", 0)
    linux.limit("FSIZE", 0)
    if sys.platform == "linux":
        linux.limit("MEMLOCK", 0)
        linux.limit("MSGQUEUE", 0)
        linux.limit("AS", config["mapped"] + limits["memory"])
    linux.limit("NOFILE", limits["files"])
    linux.limit("CPU", limits["cpu"])
    linux.limit("STACK", 64 << 20)
    if "unsafe" not in layers:
        _become_nobody(limits["tasks"], layers)
    if sys.platform == "linux":
        linux.die_with_parent()
    if "unsafe" in layers:
        return
    linux.no_new_privileges()
    linux.not_dumpable()
    if "landlock" in layers:
        linux.landlock(config["readable"])
    if "seccomp" in layers:
        seccomp.install(os.getpid())


def _become_nobody(tasks: int, layers: Sequence[str]) -> None:
    """Root becomes a user that nobody else is; everyone loses capabilities and gets a task limit.

    It is the guest's own where the kernel counts for it alone: RLIMIT_NPROC is a user's. An
    ordinary user's guests would use up that of each other, and right programs fail by it.

    Without namespaces a Python below /root would be out of that user's reach, so the right to read
    stays: Landlock allows no more than the library anyway.
    """
    uid = os.getuid()
    apart = "namespaces" in layers or "bubblewrap" in layers
    if uid == 0:
        linux.limit("NPROC", tasks)
        linux.become(GUEST_USER + os.getpid(), 0 if apart else linux.CAP_DAC_READ_SEARCH)
        return
    if apart and linux.counts_alone():
        linux.limit("NPROC", tasks)
    else:
        linux.limit("NPROC", linux.tasks_of(uid) + _TOGETHER)
    linux.become(os.getuid())
