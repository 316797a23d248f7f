"""Steps whose length and end are known, and the runner on sections of them.

python staged.py FOLDER LIMIT AGAIN MODULE...
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from gpu.runner import Plan, run
from gpu.section import Result, Section, Setup, Step
from gpu.table import markdown, step_rows


def noted(setup: Setup, name: str) -> None:
    """Leave a line, so that a test sees how often a step ran."""
    with open(setup.folder / "ran", "a") as file:
        file.write(name + "\n")


def good(name: str) -> Step:
    """A step that has its figure at once."""

    def measure(setup: Setup) -> Result:
        noted(setup, name)
        return {"answer": name.upper(), "process": os.getpid()}

    return Step(name=name, run=measure)


def bad(setup: Setup) -> Result:
    """Raises, with a message of two lines."""
    noted(setup, "bad")
    raise ValueError("no such\nluck")


def crash(setup: Setup) -> Result:
    """Its process dies without a word of Python."""
    noted(setup, "crash")
    print("last words", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def partly(setup: Setup) -> Result:
    """Has a figure, and failed."""
    noted(setup, "partly")
    return {"answer": "HALF", "process": os.getpid(), "failed": "one of two is wrong"}


def long(setup: Setup) -> Result:
    """Lasts until the file `go` is there, beside a process with a session of its own."""
    noted(setup, "long")
    sleeper = subprocess.Popen(["sleep", "600"], start_new_session=True)
    (setup.folder / "sleeper").write_text(str(sleeper.pid))
    while not (setup.folder / "go").exists():
        time.sleep(0.02)
    sleeper.kill()
    sleeper.wait()
    return {"answer": "LONG"}


def section(name: str, steps: list[Step]) -> Section:
    """A section with a table of its steps' answers."""

    def table(results):
        labels = {step.name: step.name for step in steps}
        return markdown(("step", "answer"), step_rows(results, labels, lambda r: r["answer"]))

    return Section(name=name, title=name.title(), minutes=1, steps=lambda _: steps, table=table)


def plan(folder: Path, *modules: str, limit: float = 60.0, again: bool = False) -> Plan:
    """A call on sections of these modules, on the CPU."""
    sections = {module.removeprefix("staged_"): module for module in modules}
    setup = Setup(device="cpu", tiny=True, assets=folder, folder=folder, threads=1, again=again)
    return Plan(
        setup=setup,
        sections=sections,
        shown=sections,
        results=folder / "gpu.json",
        page=None,
        command="test",
        limit=limit,
    )


if __name__ == "__main__":
    where, seconds, once_more, *names = sys.argv[1:]
    asked = plan(Path(where), *names, limit=float(seconds), again=once_more == "again")
    sys.exit(run(asked))
