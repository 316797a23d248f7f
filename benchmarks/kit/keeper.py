"""The process in the background: unpacks what has come, and calls the runner until all is said.

There is at most one for a folder. It unpacks parts as they come, also while the runner measures,
and calls the runner again when a part has come since the last call: a step that lacked something is
open then. Killed at any moment, it goes on from the folder when it is started again; the runner
keeps what it has measured by itself.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from datetime import datetime
from pathlib import Path

from kit.pieces import KitError, Part, unpack
from kit.work import Work, lock

RUNNER = ("benchmarks", "bench_gpu.py")
PAUSE = 0.3  # seconds between two looks


def keep(work: Work) -> None:
    """Unpack and run until there is nothing to do; return at once where another keeper does."""
    keeper = Keeper(work)
    refused = 0
    while refused < 5:  # `status` holds the lock for a moment too
        with lock(work.root / "keeper.lock", wait=False) as got:
            while got is not None and keeper.look():
                time.sleep(PAUSE)
        if got is None:
            refused += 1
            time.sleep(PAUSE)
            continue
        # What came between the last look and the end of the lock found this keeper there.
        if not keeper.has_work():
            return


class Keeper:
    """What a keeper knows: the runner, with what it was called, and what could not be unpacked."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.runner: subprocess.Popen[bytes] | None = None
        self.called = ""
        self.broken: set[str] = set()

    def look(self) -> bool:
        """Do what can be done now. False where nothing runs and nothing is left to do."""
        work = self.work
        # one at a time: the first ones are enough to begin, and large ones take half a minute
        ready = [part for part in work.ready() if part.name not in self.broken]
        if ready:
            self._unpack(ready[0])
        if self.runner is not None and self.runner.poll() is not None:
            say(work, f"the runner ended with status {self.runner.returncode}")
            if self.runner.returncode in (0, 1):  # by itself; after a signal it is called again
                (work.root / "seen").write_text(f"{self.called}\n{self.runner.returncode}")
            self.runner = None
        if self.runner is None and self._is_due():
            wanted = _call(work)
            work.link_models()  # also those of a part whose keeper was killed
            self.runner = _start(work)
            self.called = wanted if self.runner is not None else self.called
            return True
        return self.runner is not None or len(ready) > 1

    def has_work(self) -> bool:
        """Whether a part can be unpacked, or the runner was not called with what is here."""
        if any(part.name not in self.broken for part in self.work.ready()):
            return True
        return self._is_due()

    def _is_due(self) -> bool:
        return self.work.can_run() and _call(self.work) not in (self.called, _seen(self.work))

    def _unpack(self, part: Part) -> None:
        began = time.monotonic()
        try:
            self.work.make_env()
            unpack(self.work.manifest, part, self.work.pieces, self.work.parts / part.name)
            self.work.link_models()
        except (KitError, OSError) as error:
            self.broken.add(part.name)
            say(self.work, f"not unpacked: {part.name}: {error}")
        else:
            say(self.work, f"unpacked {part.name} in {time.monotonic() - began:.1f} s")


def _call(work: Work) -> str:
    """With what the runner would be called now."""
    return " ".join([part.name for part in work.unpacked()] + work.arguments)


def _seen(work: Work) -> str:
    """With what the last runner that ended by itself was called."""
    path = work.root / "seen"
    return path.read_text().partition("\n")[0] if path.exists() else ""


def forget_failure(work: Work) -> None:
    """Let the runner be called again unless it has done all: it may have come to a limit."""
    path = work.root / "seen"
    if path.exists() and not path.read_text().endswith("\n0"):
        path.unlink()


def _start(work: Work) -> subprocess.Popen[bytes] | None:
    """Call the runner, which holds a lock for as long as it lives; None where one still does."""
    with lock(work.root / "runner.lock", wait=False) as got:
        if got is None:
            return None  # the keeper that called it was killed
        command = [str(work.python), *command_of(work)]
        say(work, f"the runner begins: {_call(work)}")
        with open(work.logs / "runner.log", "ab") as log:
            return subprocess.Popen(
                command,
                cwd=work.project,
                env=environment(work),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(got.fileno(),),
                start_new_session=True,
            )


def command_of(work: Work, *more: str) -> list[str]:
    """The runner's command line, after Python."""
    where = ["--folder", str(work.run), "--assets", str(work.assets)]
    return [str(Path(*RUNNER)), *where, *more, *work.arguments]


def environment(work: Work) -> dict[str, str]:
    """The runner's variables: no network is asked for, and g++ compiles where there is no c++."""
    found = {**os.environ, **work.manifest.environment}
    found |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    found["PATH"] = f"{work.env / 'bin'}{os.pathsep}{found.get('PATH', os.defpath)}"
    if "CXX" not in found and not shutil.which("c++") and shutil.which("g++"):
        found["CXX"] = "g++"
    return found


def say(work: Work, line: str) -> None:
    """A line in the keeper's log."""
    with open(work.logs / "keeper.log", "a") as log:
        log.write(f"{datetime.now():%H:%M:%S} {line}\n")
