"""Where model code runs: one zygote, and guests forked from it that cannot touch the host.

`Sandbox` is the host's side. `LAYERS` lists the ways of confinement from the strongest down; which
of them hold on a machine is found out by `probe`, with actions that must be denied. None holding
is an error, unless the recipe says `sandbox: unsafe`.
"""

from __future__ import annotations

import atexit
import json
import os
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from grpo.errors import RewardError
from grpo.rewards.sandbox import bubblewrap, readable, wire
from grpo.rewards.sandbox.guest_memory import ROOM

LAYERS: dict[str, tuple[str, ...]] = {
    "landlock+namespaces": ("namespaces", "landlock", "seccomp"),
    "namespaces": ("namespaces", "seccomp"),
    "bubblewrap": ("bubblewrap", "seccomp"),
    "landlock": ("landlock", "seccomp"),
    "unsafe": ("unsafe",),
}
PRELOAD = (
    *("numpy", "collections", "heapq", "random", "typing", "decimal"),
    "grpo.rewards.sandbox.wire",
)
# numpy and BLAS would start one thread a core in every guest; hashes are fixed so that sets print
# in one order; no bytecode is written.
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
}
_START = (
    "import json,sys; config = json.loads(sys.argv[2]); sys.path[:] = config['path']; "
    "from grpo.rewards.sandbox.zygote import main; main(int(sys.argv[1]), config)"
)
_FIND = (  # what the zygote will have loaded, as JSON
    "import importlib,json,sys; config = json.loads(sys.argv[1]); sys.path[:] = config['path']; "
    "from grpo.rewards.sandbox import readable, zygote; "
    "[importlib.import_module(name) for name in config['preload']]; "
    "print(json.dumps(readable.loaded()))"
)
# Guests' memory is reserved before they are forked. A program and its tests run as a pair, and two
# pairs that had one guest each would wait for one another: the first takes both places.
_PLACES = {"candidate": 2, "tests": 0}
_PIDS = 1 << 32  # more than a pid can be: a guest's number is its zygote's, then its pid
LOST = -1  # wait status of a guest whose sandbox is gone
_TRIAL_SECONDS = 120  # a machine may be busy; what takes longer would only end in timeouts


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one guest may use."""

    cpu: int = 10  # seconds of processor time
    memory: int = 1 << 30  # bytes of address space, beyond the zygote's own
    files: int = 64  # open file descriptors
    tasks: int = 64  # threads


class Guest:
    """One confined process and the host's ends of its channels."""

    def __init__(self, sandbox: Sandbox, pid: int, channels: Sequence[socket.socket]) -> None:
        self.sandbox = sandbox
        self.pid = pid
        self.channels = channels
        self.owner = os.getpid()  # a forked child shares the channels and must not use them
        self.status: int | None = None

    def poll(self) -> int | None:
        """The wait status of a guest that ended by itself (LOST with its zygote), None before."""
        if self.status is None:
            self.status = self.sandbox.end(self.pid, kill=False)
        return self.status

    def end(self) -> int:
        """SIGKILL the guest, reap it and close the channels; its wait status."""
        for channel in self.channels:
            channel.close()
        if self.status is None:
            self.status = self.sandbox.end(self.pid, kill=True)
        return LOST if self.status is None else self.status


class Sandbox:
    """A zygote with given layers. Thread-safe; starts on the first fork; restarts if it died.

    Whenever it starts, a guest tries what graders need there (`trial`). RewardError where it
    fails: what a guest lacks would come back as wrong answers otherwise. `trial=False` is for
    those who look for themselves.
    """

    def __init__(self, tier: str, preload: Sequence[str] = PRELOAD, trial: bool = True) -> None:
        self.tier = tier
        self.layers = LAYERS[tier]
        self.preload = tuple(preload)
        self.trial = trial
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._starts = 0
        self._taken: dict[int, int] = {}  # bytes that each guest has reserved
        _OPEN.add(self)

    def fork(
        self, guest: str, limits: Limits, channels: Sequence[socket.socket], *ours: socket.socket
    ) -> Guest:
        """A guest. `channels` are its ends, which are closed here; `ours` are the host's.

        Waits until there is room for its memory. Raises RewardError when the zygote cannot be
        started.
        """
        amount = _PLACES.get(guest, 1) * limits.memory
        try:
            handles = [channel.fileno() for channel in channels]
            ROOM.take(amount)
            try:
                number = self._ask(_fork_request(guest, limits), handles, amount)["pid"]
                return Guest(self, number, ours)
            except BaseException:
                ROOM.give(amount)
                raise
        finally:
            for channel in channels:
                channel.close()

    def guest(self, name: str, limits: Limits) -> Guest:
        """A guest with one channel."""
        ours, theirs = socket.socketpair()
        try:
            return self.fork(name, limits, [theirs], ours)
        except BaseException:
            ours.close()
            raise

    def end(self, pid: int, kill: bool) -> int | None:
        """The wait status of a guest, after a SIGKILL if asked; None while it runs."""
        try:
            return self._ask({"do": "kill" if kill else "poll", "pid": pid}, []).get("status")
        except RewardError:
            return LOST  # the zygote is gone, and its guests with it

    def close(self) -> None:
        """End the zygote and every guest."""
        with self._lock:
            self._stop()

    def _ask(
        self, request: dict[str, Any], handles: Sequence[int], amount: int = 0
    ) -> dict[str, Any]:
        with self._lock:
            if request["do"] != "fork":
                start, request["pid"] = divmod(request["pid"], _PIDS)
                if start != self._starts:  # another process may have that pid by now
                    raise RewardError("the guest's sandbox is gone")
            for attempt in (1, 2):
                if self._control is None:
                    if request["do"] != "fork":
                        raise RewardError("the sandbox is closed")
                    self._start()
                answer = self._exchange(request, handles)
                if answer is not None:
                    return self._counted(request, answer, amount)
                self._stop()
                if request["do"] != "fork" or attempt == 2:
                    break
        raise RewardError("the sandbox's parent process ended; see `grpo doctor`")

    def _counted(
        self, request: dict[str, Any], answer: dict[str, Any], amount: int
    ) -> dict[str, Any]:
        """An answer with the number of a guest, whose memory is taken or given back here."""
        if request["do"] == "fork":
            number = self._starts * _PIDS + answer["pid"]
            self._taken[number] = amount
            return {"pid": number}
        if answer:
            ROOM.give(self._taken.pop(self._starts * _PIDS + request["pid"], 0))
        return answer

    def _exchange(self, request: dict[str, Any], handles: Sequence[int]) -> dict[str, Any] | None:
        """The zygote's answer to one request, None if it is gone. Needs the lock."""
        assert self._control is not None
        try:
            socket.send_fds(self._control, [json.dumps(request).encode()], list(handles))
            answer = self._control.recv(1 << 16)
        except OSError:
            return None
        return json.loads(answer) if answer else None

    def _start(self) -> None:
        # One request, one answer: a stream does where packets in sequence do not exist (macOS).
        packets = socket.SOCK_SEQPACKET if sys.platform == "linux" else socket.SOCK_STREAM
        ours, theirs = socket.socketpair(socket.AF_UNIX, packets)
        config = {
            "path": [os.path.abspath(entry) for entry in sys.path if entry],
            "preload": self.preload,
            "layers": self.layers,
            "readable": readable.installed(),
        }
        command = [sys.executable, "-I", "-c", _START, str(theirs.fileno()), json.dumps(config)]
        try:
            if "bubblewrap" in self.layers:
                shown = [*config["readable"], *self._find(config)]
                command = bubblewrap.command(shown) + command
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                env=_ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except RewardError:
            ours.close()
            raise
        except OSError as error:
            ours.close()
            raise RewardError(f"cannot start the sandbox: {error}") from error
        finally:
            theirs.close()
        if not ours.recv(1 << 16):
            errors = self._process.stderr.read() if self._process.stderr else b""
            ours.close()
            self._stop()
            last = errors.decode(errors="replace").strip().rpartition("\n")[2]
            raise RewardError(f"the sandbox ({self.tier}) did not start: {last}")
        self._control = ours
        self._starts += 1
        if self.trial:
            fault = self._try(config["readable"])
            if fault:
                self._stop()
                raise RewardError(
                    f"graders do not work in the sandbox ({self.tier}) with this Python "
                    f"environment, and right answers would be scored 0: {fault}. See `grpo doctor`"
                )

    def _try(self, installed: Sequence[str]) -> str:
        """What a confined guest finds wrong with the graders' surroundings, "" for nothing."""
        ours, theirs = socket.socketpair()
        limits = Limits(cpu=_TRIAL_SECONDS)
        deadline = time.monotonic() + _TRIAL_SECONDS
        with ours:
            with theirs:
                made = self._exchange(_fork_request("trial", limits), [theirs.fileno()])
            if made is None:
                return "the zygote ended"
            ours.settimeout(_TRIAL_SECONDS)
            try:
                paths = readable.samples(installed)
                wire.send(ours, {"readable": paths, "modules": self.preload})
                found = wire.receive(ours, deadline)
            except TimeoutError:
                found = {"faults": [f"nothing came of it within {_TRIAL_SECONDS} s"]}
            except (EOFError, OSError, wire.WireError) as error:
                found = {"faults": [f"the guest ended ({type(error).__name__})"]}
            self._exchange({"do": "kill", "pid": made["pid"]}, [])
        faults = [found["unconfined"]] if "unconfined" in found else found["faults"]
        more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
        return "; ".join(map(str, faults[:3])) + more

    def _find(self, config: dict[str, Any]) -> list[str]:
        """What the zygote will load besides installed packages: it starts with all it may see."""
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-c", _FIND, json.dumps(config)],
                env=_ENVIRONMENT,
                capture_output=True,
                check=True,
            )
            return json.loads(done.stdout)
        except subprocess.CalledProcessError as error:
            last = error.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            raise RewardError(f"the sandbox ({self.tier}) did not start: {last}") from error

    def _stop(self) -> None:
        control, self._control = self._control, None
        process, self._process = self._process, None
        ROOM.give(sum(self._taken.values()))
        self._taken.clear()
        if control is not None:
            control.close()
        if process is not None:
            try:
                process.wait(2)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stderr is not None:
                process.stderr.close()


def _fork_request(guest: str, limits: Limits) -> dict[str, Any]:
    return {"do": "fork", "guest": guest, "limits": asdict(limits)}


_OPEN: weakref.WeakSet[Sandbox] = weakref.WeakSet()


def _close_all() -> None:
    for sandbox in list(_OPEN):
        sandbox.close()


def _forget_all() -> None:
    # A forked child shares the parent's control sockets: two hosts must not talk over one of them.
    for sandbox in list(_OPEN):
        sandbox._lock = threading.Lock()  # pyright: ignore[reportPrivateUsage]
        control = sandbox._control  # pyright: ignore[reportPrivateUsage]
        sandbox._control = sandbox._process = None  # pyright: ignore[reportPrivateUsage]
        sandbox._taken.clear()  # pyright: ignore[reportPrivateUsage]
        if control is not None:
            control.close()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget_all)
