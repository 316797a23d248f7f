"""A loan in acts, each of which asserts what it shows; see `rehearse.py`."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kit.bundle import FILES, LARGEST
from kit.pieces import KitError, Manifest
from kit.work import Work, held

MARK = "GRPO_KIT_REHEARSAL"  # a variable that every process of a rehearsal has
FIRST_RESULT = 180.0  # seconds from the first piece, on two cores
RETURNS = 20.0  # seconds that a call may take
PATIENCE = 1800.0
TOP = ("manifest.json", "run.sh", "receive.pyz")


class Loan:
    """One machine without network: its Python, its folder, and what is carried to it."""

    def __init__(self, scratch: Path, python: str, sections: Sequence[str]) -> None:
        self.kit = scratch / "kit"
        self.work = Work.at(scratch / "work")
        self.box = scratch / "box"  # the folder that transfers go into
        self.sections = sections
        self.mark = secrets.token_hex(8)
        self.environment = {**os.environ, "PYTHON": python, MARK: self.mark}
        self.environment |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        self.box.mkdir()
        for name in TOP:
            shutil.copy(self.kit / name, self.box)

    def call(self, *arguments: str) -> tuple[int, str, float]:
        """Exit status, output and seconds of one call of run.sh."""
        began = time.monotonic()
        done = subprocess.run(
            [str(self.box / "run.sh"), *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
        )
        print(f"$ run.sh {' '.join(arguments)}\n{done.stdout}{done.stderr}", flush=True)
        return done.returncode, done.stdout + done.stderr, time.monotonic() - began

    def start(self) -> tuple[int, str, float]:
        """`run.sh start`, as on every such machine but for the arguments."""
        runner = ["--device", "cpu", "--tiny", "--threads", "1", *self.sections]
        return self.call("start", str(self.box), str(self.work.root), "--", *runner)

    def carry(self, *names: str) -> None:
        """Pieces arrive in the box."""
        for name in names:
            shutil.copy(self.kit / name, self.box)

    def records(self) -> dict[str, str]:
        """{section/step: record} of the steps on disk that are finished."""
        found = {}
        for path in (self.work.run / "state").glob("*/*.json"):
            text = path.read_text()
            if json.loads(text).get("status") == "done":
                found[f"{path.parent.name}/{path.stem}"] = text
        return found

    def in_progress(self) -> str:
        """A step that has begun and has no record yet, "" where there is none."""
        for path in (self.work.run / "state").glob("*/_current"):
            step = path.read_text()
            if step and not path.with_name(f"{step}.json").exists():
                return f"{path.parent.name}/{step}"
        return ""

    def processes(self) -> list[int]:
        """Everything that the loan has started, in whatever session."""
        sign, found = f"{MARK}={self.mark}".encode(), []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit() and int(folder.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if sign in (folder / "environ").read_bytes():
                        found.append(int(folder.name))
        return found

    def kill(self) -> int:
        """kill -9 to everything, until nothing is left; how many there were."""
        killed: set[int] = set()
        while alive := self.processes():
            for pid in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            killed |= set(alive)
            time.sleep(0.1)
        return len(killed)

    def until(self, holds: Callable[[], bool], what: str, seconds: float) -> float:
        """Wait; the seconds it took. Raises KitError where it does not come."""
        began = time.monotonic()
        while not holds():
            if time.monotonic() - began > seconds:
                self.call("status", str(self.work.root))
                raise KitError(f"{what}: not within {seconds:.0f} s")
            time.sleep(0.05)
        return time.monotonic() - began

    def has_seen(self, manifest: Manifest) -> bool:
        """Whether a runner that was called with every part has ended."""
        path = self.work.root / "seen"
        found = path.read_text().split() if path.exists() else []
        return {part.name for part in manifest.parts} <= set(found)

    def idle(self) -> bool:
        """Whether neither keeper nor runner runs."""
        return not any(held(self.work.root / f"{name}.lock") for name in ("keeper", "runner"))


def play(scratch: Path, python: str, sections: Sequence[str]) -> dict[str, Any]:
    """Every act; what was measured. Raises KitError where one does not show what it should."""
    loopback()
    loan = Loan(scratch, python, sections)
    try:
        return acts(loan, Manifest.read(loan.kit))
    finally:
        loan.kill()


def acts(loan: Loan, manifest: Manifest) -> dict[str, Any]:
    """The first piece alone, a kill, damage, lateness, disorder, and what is brought back."""
    first, *later = (piece.name for piece in manifest.pieces)
    loan.carry(first)
    status, _, seconds = loan.start()
    expect(status == 0 and seconds < RETURNS, f"start: status {status}, {seconds:.1f} s")
    waited = loan.until(lambda: bool(loan.records()), "the first result", FIRST_RESULT)
    measured: dict[str, Any] = {"seconds to the first result": round(seconds + waited, 1)}

    loan.until(lambda: bool(loan.in_progress()), "a step in progress", FIRST_RESULT)
    lost, kept = loan.in_progress(), loan.records()
    killed = loan.kill()
    expect(killed >= 2, f"{killed} processes were there to kill")
    measured["killed"] = {"processes": killed, "in progress": lost, "finished": sorted(kept)}

    half_and_damaged(loan, later)
    racing = [subprocess.Popen([*_start_command(loan)], env=loan.environment) for _ in range(3)]
    expect(all(each.wait(60) in (0, 1) for each in racing), "three calls of start at once")
    for name in reversed(later):
        loan.carry(name)
        status, said, _ = loan.call("add", str(loan.box), str(loan.work.root))
        expect(
            (status == 0 and f"{name}: taken" in said) or name in _arrived(loan), f"{name}: {said}"
        )
    loan.until(
        lambda: loan.idle() and loan.has_seen(manifest),
        "the end",
        PATIENCE,
    )

    after = loan.records()
    changed = [name for name, record in kept.items() if after.get(name) != record]
    expect(not changed, f"finished steps were run again: {changed}")
    expect(lost in after or _record(loan, lost) is not None, f"{lost} was not run again")
    _, table, _ = loan.call("status", str(loan.work.root))
    found = json.loads((loan.work.run / "gpu.json").read_text())
    wanted = list(loan.sections) or _sections()
    expect(set(wanted) <= set(found), f"sections without a table: {set(wanted) - set(found)}")
    expect(all(f"`{name}`:" in table for name in wanted), "a section is not in the table")
    failed = [
        f"{name}/{step}: {record['reason']}"
        for name in wanted
        for step, record in found[name]["steps"].items()
        if record["status"] == "failed"
    ]
    expect(not failed, f"steps failed: {'; '.join(failed)}")
    measured["sections"] = {
        name: {"status": found[name]["status"], "seconds": found[name]["from"]["seconds"]}
        for name in wanted
    }
    measured["brought back"] = brought_back(loan)
    return measured


def half_and_damaged(loan: Loan, later: Sequence[str]) -> None:
    """A damaged piece is refused by name and a half one waits; neither stops the others."""
    damaged, half = later[-1], later[0]
    content = bytearray((loan.kit / damaged).read_bytes())
    content[len(content) // 2] ^= 1
    (loan.box / damaged).write_bytes(content)
    if half != damaged:
        whole = (loan.kit / half).read_bytes()
        (loan.box / half).write_bytes(whole[: len(whole) // 2])
    status, said, _ = loan.start()
    expect(status == 1 and f"{damaged}: refused" in said, f"a damaged piece: {status}, {said}")
    expect(half == damaged or (f"{half}: " in said and "it waits" in said), f"half a piece: {said}")


def brought_back(loan: Loan) -> dict[str, int]:
    """`run.sh results`: {file: bytes}."""
    out = loan.work.root.parent / "out"
    status, said, _ = loan.call("results", str(out), str(loan.work.root))
    files = {path.name: path.stat().st_size for path in out.rglob("*") if path.is_file()}
    expect(status == 0 and "gpu.json" in files and "logs.tar.xz" in files, f"results: {said}")
    expect(len(files) <= FILES and max(files.values()) <= LARGEST, f"results: {files}")
    return files


def expect(holds: bool, what: str) -> None:
    """Raise KitError unless it holds."""
    if not holds:
        raise KitError(f"not as it should be: {what}")


def loopback() -> None:
    """Bring up the loopback of a fresh network namespace: servers of tests listen on it."""
    name = struct.pack("16sh", b"lo", 0x1 | 0x40)  # IFF_UP | IFF_RUNNING
    with socket.socket() as door, contextlib.suppress(PermissionError):
        fcntl.ioctl(door, 0x8914, name)  # SIOCSIFFLAGS


def _start_command(loan: Loan) -> list[str]:
    return [str(loan.box / "run.sh"), "start", str(loan.box), str(loan.work.root)]


def _arrived(loan: Loan) -> list[str]:
    return [piece.name for piece in loan.work.arrived()]


def _record(loan: Loan, step: str) -> str | None:
    path = loan.work.run / "state" / f"{step}.json"
    return path.read_text() if path.exists() else None


def _sections() -> list[str]:
    from gpu.sections import SECTIONS

    return list(SECTIONS)
