"""The process of one section: its open steps in order, each on disk the moment it ends.

    python -m gpu.child JOB    (JSON: module, setup, steps, call, commit, guard)

What steps print goes to the section's log; lines on their beginning and end go to the terminal. The
process ends after a step that raised (a broken CUDA context fails everything that follows), and
with the runner, however that ends.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from gpu.needs import missing
from gpu.processes import end_with
from gpu.section import Section, Setup, Step
from gpu.sections import load
from gpu.state import DONE, FAILED, NOT_RUN, State

AFTER_ERROR = 3  # exit status: a step raised, others are left
LONGEST_REASON = 600  # characters


def main() -> None:
    """Run the steps that the job names."""
    job = json.loads(sys.argv[1])
    end_with(job["guard"])
    setup = Setup(
        **{
            name: Path(value) if name in ("assets", "folder") else value
            for name, value in job["setup"].items()
        }
    )
    section = load(job["module"])
    terminal = _to_log(setup.folder / "logs" / f"{section.name}.log")
    about = {"call": job["call"], "commit": job["commit"]}
    steps = {step.name: step for step in section.steps(setup)}
    for name in job["steps"]:
        if not run(section, steps[name], setup, about, terminal):
            _leave(AFTER_ERROR)
    _leave(0)


def run(
    section: Section, step: Step, setup: Setup, about: dict[str, Any], terminal: TextIO
) -> bool:
    """Run one step and put what came of it on disk. False where it raised."""
    state = State.of(setup, section.name)
    state.begin(step.name)
    _say(terminal, f"   {section.name}/{step.name}: begins")
    print(f"--- {step.name}", flush=True)
    began = time.perf_counter()
    found = attempt(step, setup)
    seconds = round(time.perf_counter() - began, 3)
    date = datetime.now(UTC).isoformat(timespec="seconds")
    state.write(step.name, {**found, "seconds": seconds, "date": date, **about})
    ending = "" if found["status"] == DONE else f": {found['reason']}"
    _say(terminal, f"   {section.name}/{step.name}: {found['status']} in {seconds:.1f} s{ending}")
    _free()
    return found["status"] != FAILED or bool(found["result"])


def attempt(step: Step, setup: Setup) -> dict[str, Any]:
    """Status, reason and result of a step."""
    try:
        reason = missing(step.needs, setup)
        if reason:
            return {"status": NOT_RUN, "reason": reason, "result": {}}
        result = step.run(setup)
    except Exception as error:
        traceback.print_exc()
        return {"status": FAILED, "reason": sentence(error), "result": {}}
    reason = result.pop("failed", "")
    status = FAILED if reason else DONE
    return {"status": status, "reason": reason, "result": result}


def sentence(error: BaseException) -> str:
    """An error in a line."""
    said = " ".join(f"{type(error).__name__}: {error}".split())
    return said if len(said) <= LONGEST_REASON else f"{said[:LONGEST_REASON]} ..."


def _to_log(path: Path) -> TextIO:
    """Standard output and error go to the log; what was standard output is returned."""
    terminal = os.fdopen(os.dup(1), "w")
    path.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    return terminal


def _say(terminal: TextIO, line: str) -> None:
    with contextlib.suppress(OSError):  # a terminal that went away stops no measurement
        terminal.write(line + "\n")
        terminal.flush()


def _free() -> None:
    """Let the next step find the memory as the first one did."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        # after an error of the card even these raise, and the process ends in any case
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def _leave(status: int) -> None:
    """End without waiting for threads that libraries leave behind."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
