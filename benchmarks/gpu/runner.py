"""Runs sections: a process and a limit each, results on disk as they come, resumed where cut."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from record import ROOT, commit, merge, versions

from gpu import results
from gpu.processes import end
from gpu.section import Section, Setup
from gpu.sections import load
from gpu.state import FAILED, State, claim_kind, is_open
from gpu.table import part, write_table
from grpo.errors import RunError

LIMIT = 8 * 60.0  # seconds of a section in one call
TAIL = 3  # lines of a log that explain an end without a word
AT_LIMIT, INTERRUPTED = "stopped at its limit", "interrupted"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one call measures, and where it goes.

    sections: {name: module} to run, in order. shown: all that the table has. page: None for
    figures that do not belong into the docs. limit: seconds of a section.
    """

    setup: Setup
    sections: Mapping[str, str]
    shown: Mapping[str, str]
    results: Path
    page: Path | None
    command: str
    limit: float = LIMIT


class Stopped(BaseException):
    """A signal asks for an end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def run(plan: Plan) -> int:
    """Measure; 0 where every step has its figures or needs what is not here, else 1.

    128 + the signal's number after SIGINT or SIGTERM. Raises RunError where another one measures
    in the folder, where it has figures of another kind, or where there is no card.
    """
    print(f"measuring {', '.join(plan.sections)} into {plan.setup.folder}", flush=True)
    with claimed(plan.setup.folder), stoppable():
        try:
            card = find_card(plan.setup)
            good = [run_section(name, plan, card) for name in plan.sections]
        except Stopped as stopped:
            print(f"stopped by {stopped}; the same command goes on from here", flush=True)
            return 128 + stopped.number
    return 0 if all(good) else 1


def find_card(setup: Setup) -> dict[str, Any]:
    """What is measured on. Raises RunError where that is no card, or not the folder's."""
    card = results.find_card(setup.device)
    if not card["name"]:
        raise RunError(
            f"--device = 'cuda', and torch sees no card here{without_cuda(card)}; "
            "--device cpu --tiny shows that every section runs"
        )
    claim_kind(setup, card["name"], versions(["torch"]).get("torch", "not installed"))
    print(f"on {card['name']}", flush=True)
    return card


def without_cuda(card: Mapping[str, Any]) -> str:
    """What to do where torch could see no card, whatever there is."""
    if card["CUDA"]:
        return ""
    return (
        ", as it is built without CUDA: `make gpu VENV=.venv-gpu` makes an environment with "
        "another torch"
    )


def run_section(name: str, plan: Plan, card: Mapping[str, Any]) -> bool:
    """Run what is open of a section and put it into the results. False where a step failed."""
    module = plan.sections[name]
    try:
        section = load(module)
        steps = section.steps(plan.setup)
    except Exception as error:
        print(f"== {name}: cannot be loaded: {type(error).__name__}: {error}", flush=True)
        return False
    state = State.of(plan.setup, name)
    todo = [s.name for s in steps if is_open(state.read(s.name), again=plan.setup.again)]
    print(f"== {name}: {section.title}; {len(todo)} of {len(steps)} steps to run", flush=True)
    began = time.monotonic()
    if todo:
        results.begin(state, plan.command, plan.setup, card)
    ending = INTERRUPTED
    try:
        ending = run_steps(section, module, todo, plan) if todo else ""
    finally:
        found = results.gather(steps, state, ending)
        merge(plan.results, name, found, found["from"])
        seconds = time.monotonic() - began
        print(f"== {name}: {found['status']}; {seconds:.0f} s", flush=True)
        print(part(name, module, {name: found}), flush=True)
    show(plan)
    return not ending and all(r["status"] != FAILED for r in found["steps"].values())


def run_steps(section: Section, module: str, todo: Sequence[str], plan: Plan) -> str:
    """Run steps in processes that end after a failure. How it ended early, else ""."""
    state = State.of(plan.setup, section.name)
    call = f"{os.getpid()} {datetime.now(UTC).isoformat()}"
    about = {"call": call, "commit": commit()}
    deadline = time.monotonic() + plan.limit
    left = list(todo)
    while left:
        state.begin("")
        status = run_child(module, left, plan, about, deadline)
        current = state.current or left[0]
        attempted = left.index(current) + 1
        if not _has_ended(state, current, call):
            if status is None and current != todo[0]:
                return AT_LIMIT  # it had only a part of the time: open for another call
            reason = _reason(status, section.name, plan)
            date = datetime.now(UTC).isoformat(timespec="seconds")
            record = {"status": FAILED, "reason": reason, "result": {}, "seconds": 0.0}
            state.write(current, {**record, "date": date, **about})
            print(f"   {section.name}/{current}: failed: {reason}", flush=True)
        if status is None:
            return AT_LIMIT if left[attempted:] else ""
        left = left[attempted:]
    return ""


def run_child(
    module: str, steps: Sequence[str], plan: Plan, about: Mapping[str, str], deadline: float
) -> int | None:
    """Run a section's process to its end. Its exit status; None where the limit ended it."""
    guard, held = os.pipe()
    setup = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(plan.setup).items()}
    job = {"module": module, "setup": setup, "steps": list(steps), "guard": guard, **about}
    process = subprocess.Popen(
        [sys.executable, "-m", "gpu.child", json.dumps(job)],
        cwd=ROOT,
        env=environment(plan.setup),
        stdin=subprocess.DEVNULL,
        pass_fds=(guard,),
        start_new_session=True,
    )
    try:
        return process.wait(timeout=max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return None
    finally:
        end(process)
        os.close(guard)
        os.close(held)


def environment(setup: Setup) -> dict[str, str]:
    """Of a section's process: the project of this checkout, no network, no card for "cpu"."""
    paths = [str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    found = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "LD_PRELOAD")}
    found |= {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(setup.threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if setup.device == "cpu":
        found["CUDA_VISIBLE_DEVICES"] = ""
    return found


def show(plan: Plan) -> None:
    """Write the page's tables again, where these figures belong there."""
    if plan.page is not None:
        try:
            write_table(plan.results, plan.page, plan.shown)
        except RunError as error:
            print(f"   the table was not written: {error}", flush=True)


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Within it no other process measures into `folder`, which is made.

    The lock is the kernel's and ends with the process. Raises RunError where another has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(
                f"--folder = {str(folder)!r} is being measured into by another process; wait until "
                "it has ended, or name another folder"
            ) from error
        yield


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Within it SIGINT and SIGTERM raise Stopped, once; what follows is a clean end."""

    def stop(number: int, _: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)

    before = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _has_ended(state: State, step: str, call: str) -> bool:
    record = state.read(step)
    return record is not None and record["call"] == call


def _reason(status: int | None, name: str, plan: Plan) -> str:
    """Why a step that said nothing ended."""
    if status is None:
        return f"took longer than the {plan.limit:.0f} s that a section has"
    how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
    log = plan.setup.folder / "logs" / f"{name}.log"
    lines = log.read_text(errors="replace").splitlines()[-TAIL:] if log.exists() else []
    return f"its process ended with {how}; last lines: {' / '.join(lines)}"
