"""One process at a time trains in a run's folder, and a dead one keeps nobody out."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grpo.errors import RunError
from grpo.rundir import claim
from grpo.rundir.claim import claimed

HOLD = """
import os, subprocess, sys, time
from pathlib import Path
from grpo.rundir.claim import claimed
with claimed(Path(sys.argv[1])):
    if sys.argv[2] == "fork" and os.fork() == 0:
        Path(sys.argv[1], "child").write_text(str(os.getpid()))
        time.sleep(60)
    if sys.argv[2] == "program":  # as the sandbox's zygote is started
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        Path(sys.argv[1], "child").write_text(str(child.pid))
    Path(sys.argv[1], "held").write_text(str(os.getpid()))
    time.sleep(60)
"""


def holder(folder: Path, child: str = "") -> subprocess.Popen[bytes]:
    """A process that has the folder, and maybe a child."""
    held = folder / "held"
    held.unlink(missing_ok=True)
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder), child])
    wanted = [held, *([folder / "child"] if child else [])]
    while not all(path.is_file() and path.read_text() for path in wanted):
        assert process.poll() is None
        time.sleep(0.01)
    return process


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "PATIENCE", 0.2)


def test_a_second_one_is_told_who_has_the_run(tmp_path: Path) -> None:
    process = holder(tmp_path)
    said = rf"by process {process.pid} on {socket.gethostname()} since \d{{4}}-\d\d-\d\d \d\d:"
    with pytest.raises(RunError, match=said), claimed(tmp_path):
        pass
    process.kill()
    process.wait()


@pytest.mark.parametrize("child", ["", "fork", "program"])
def test_a_killed_one_keeps_nobody_out_though_its_child_lives(tmp_path: Path, child: str) -> None:
    process = holder(tmp_path, child)
    process.kill()
    process.wait()
    with claimed(tmp_path) as said:
        assert said == ""
    if child:
        pid = int((tmp_path / "child").read_text())
        os.kill(pid, 0)  # it still runs
        os.kill(pid, signal.SIGKILL)


def test_a_stopped_one_still_has_it(tmp_path: Path) -> None:
    process = holder(tmp_path)
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(RunError, match=f"process {process.pid}"), claimed(tmp_path):
        pass
    process.kill()
    process.wait()


def test_a_forked_child_that_ends_lets_nothing_go(tmp_path: Path) -> None:
    with claimed(tmp_path):
        child = multiprocessing.get_context("fork").Process(target=int)
        child.start()
        child.join()
        (descriptor,) = claim._held
        pid = os.fork()
        if pid == 0:  # leaves the `with` too, as an error in a child would
            claim._release(tmp_path / claim.NAME, descriptor)
            os._exit(0)
        os.waitpid(pid, 0)
        with pytest.raises(RunError, match=f"process {os.getpid()}"), claimed(tmp_path):
            pass
    assert not (tmp_path / claim.NAME).exists()


def test_reading_the_lock_lets_nothing_go(tmp_path: Path) -> None:
    with claimed(tmp_path):
        (tmp_path / claim.NAME).read_text()  # a backup of the folder, say
        with pytest.raises(RunError, match="is being trained"), claimed(tmp_path):
            pass


def test_of_many_that_start_together_one_has_it(tmp_path: Path) -> None:
    # Each says that it is there and waits for the word: a slow machine starts them apart.
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom grpo.rundir import claim\n"
        "claim.PATIENCE = 0.0\nhere = Path(sys.argv[1])\n(here / sys.argv[2]).touch()\n"
        "while not (here / 'go').exists():\n    time.sleep(0.001)\n"
        "try:\n    with claim.claimed(here / 'new' / 'run'):\n"
        "        while not (here / 'end').exists():\n            time.sleep(0.001)\n"
        "except claim.RunError:\n    sys.exit(3)\n"
    )
    names = [f"ready-{number}" for number in range(6)]
    started = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path), name]) for name in names
    ]
    while not all((tmp_path / name).exists() for name in names):
        assert all(process.poll() is None for process in started)
        time.sleep(0.01)
    (tmp_path / "go").touch()
    end = time.monotonic() + 60
    while sum(process.poll() is None for process in started) > 1 and time.monotonic() < end:
        time.sleep(0.01)
    (tmp_path / "end").touch()
    assert sorted(process.wait() for process in started) == [0, 3, 3, 3, 3, 3]


def test_one_after_another_no_two_ever_have_it(tmp_path: Path) -> None:
    # The file is removed at the end, and the next one may have opened it just before.
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom grpo.rundir import claim\n"
        "claim.PATIENCE, claim._RETRY = 60.0, 0.0\n"
        "for _ in range(100):\n    with claim.claimed(Path(sys.argv[1])):\n"
        "        os.close(os.open(sys.argv[1] + '/inside', os.O_CREAT | os.O_EXCL))\n"
        "        os.unlink(sys.argv[1] + '/inside')\n"
    )
    started = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path)]) for _ in range(3)]
    assert [process.wait() for process in started] == [0, 0, 0]


def test_a_file_that_its_owner_removed_meanwhile_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    real = claim._take

    def take(descriptor: int) -> bool:
        if not taken:  # the owner ends between the opening and the lock
            (tmp_path / claim.NAME).unlink()
        taken.append(descriptor)
        return real(descriptor)

    monkeypatch.setattr(claim, "_take", take)
    with claimed(tmp_path):
        with pytest.raises(RunError, match="is being trained"), claimed(tmp_path):
            pass
        assert (tmp_path / claim.NAME).is_file()


def test_without_locks_the_owner_is_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = holder(tmp_path)

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(claim.fcntl, "flock", none)
    with pytest.raises(RunError, match=f"process {process.pid} "), claimed(tmp_path):
        pass
    process.kill()
    process.wait()
    with claimed(tmp_path):
        pass
    # another process that has the number of a dead one
    owner = {"pid": os.getppid(), "boot": claim._boot(), "started": 1}
    (tmp_path / claim.NAME).write_text(json.dumps(owner))
    with claimed(tmp_path):
        pass


def test_an_owner_elsewhere_that_left_its_name_is_said(tmp_path: Path) -> None:
    owner = {"pid": 7, "host": "another", "since": "2026-01-02 03:04:05", "boot": "x"}
    (tmp_path / claim.NAME).write_text(json.dumps(owner))
    with claimed(tmp_path) as said:
        assert "by process 7 on another since 2026-01-02 03:04:05 and did not end" in said


@pytest.mark.parametrize("left", ["", "{", "[]", "null", '{"pid": "x"}', "\x00\xff"])
def test_a_damaged_file_keeps_nobody_out(tmp_path: Path, left: str) -> None:
    (tmp_path / claim.NAME).write_text(left)
    with claimed(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"), claimed(tmp_path / "file" / "run"):
        pass
