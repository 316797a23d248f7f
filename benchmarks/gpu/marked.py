"""Runs tests chosen by their marks, each recorded as it ends, so that a kill keeps those.

One pytest for all files, as starting it takes longer than most tests; it goes on in the background
while the file before is written down. A test in which it dies has failed, and the others go on in a
new one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from record import ROOT

MARKED = "gpu and not vllm and not ray"
FINAL = (0, 1, 5)  # pytest's exit status: all passed, some failed, none selected
POLL = 0.1  # seconds
Test = dict[str, Any]


def files(root: Path = ROOT, *, mark: str = "gpu", under: str = "tests") -> list[str]:
    """Those `under` a folder with tests of that mark, relative to `root`; those for cards first.

    A folder of the mark's name, as tests/gpu, marks all that is in it.
    """
    folder = root / "tests" / mark
    found = [
        path
        for path in (root / under).rglob("test_*.py")
        if folder in path.parents or f"mark.{mark}" in path.read_text()
    ]
    names = [str(path.relative_to(root)) for path in found]
    return sorted(names, key=lambda name: (not name.startswith("tests/gpu/"), name))


class Session:
    """The tests of some files, in that order, and what is known of them in the file `records`.

    chosen: an expression of marks. again: those that failed in an earlier call are run once more.
    environment: what the tests see besides. first_only: one test a file.
    """

    def __init__(
        self,
        files: Sequence[str],
        records: Path,
        *,
        on_cpu: bool,
        chosen: str = MARKED,
        again: bool = False,
        first_only: bool = False,
        environment: Mapping[str, str] | None = None,
        root: Path = ROOT,
    ) -> None:
        self.files = list(files)
        self.records = records
        self.on_cpu = on_cpu
        self.chosen = chosen
        self.again = again
        self.first_only = first_only
        self.environment = dict(environment or {})
        self.root = root
        self.process: subprocess.Popen[bytes] | None = None
        self.known = 0  # tests that had ended when the process began
        self.over = False  # nothing is left to run

    def finish(self, file: str) -> list[Test]:
        """Outcomes of a file's tests, once all of them have ended; those of earlier calls count.

        Files are finished in order. Raises RuntimeError where pytest itself fails.
        """
        while not self.over:
            if self.process is None and not self._start(file):
                break
            status = self._wait(file)
            if status is None:  # the session is in a later file
                break
            self.process = None
            lost = in_progress(self.records)
            if lost:
                reason = f"the process ended with {_how(status)}: {self._last_words()}"
                self._add(test=lost, outcome="failed", seconds=0.0, reason=reason)
            elif status in FINAL:
                self.over = True
            elif len(ended(self.records)) == self.known:
                raise RuntimeError(f"pytest ended with {_how(status)}: {self._last_words()}")
        return [test for test in ended(self.records) if _of(test, file)]

    def _start(self, file: str) -> bool:
        """Run what has not ended of `file` and those after it. False where none can be imported."""
        kept = [t for t in ended(self.records) if not (self.again and t["outcome"] == "failed")]
        self.again = False
        self._keep(kept)  # not what was in progress when the machine went away
        known = [test["test"] for test in kept]
        self.known = len(known)
        # a file that cannot be imported is recorded by its name
        wanted = [f for f in self.files[self.files.index(file) :] if f not in known]
        if not wanted:
            return False
        command = [sys.executable, "-m", "pytest", *wanted]
        command += ["-m", self.chosen, "-q", "-p", "no:cacheprovider", "-p", "gpu.pytest_records"]
        command += ["--continue-on-collection-errors", *(f"--deselect={test}" for test in known)]
        environment = os.environ | self.environment | {"GRPO_TEST_RECORDS": str(self.records)}
        if self.on_cpu:
            environment["GRPO_GPU_TESTS"] = "cpu"
        if self.first_only:
            environment["GRPO_TEST_FIRST_ONLY"] = "1"
        with self._output.open("wb") as out:
            self.process = subprocess.Popen(
                command, cwd=self.root, env=environment, stdout=out, stderr=subprocess.STDOUT
            )
        return True

    def _wait(self, file: str) -> int | None:
        """pytest's exit status; None once it has begun with a later file."""
        assert self.process is not None
        later = self.files[self.files.index(file) + 1 :]
        while True:
            status = self.process.poll()
            if status is not None:
                return status
            if any(_of({"test": in_progress(self.records)}, each) for each in later):
                return None
            time.sleep(POLL)

    @property
    def _output(self) -> Path:
        return self.records.with_suffix(".log")

    def _last_words(self) -> str:
        return " / ".join(self._output.read_text(errors="replace").strip().splitlines()[-3:])

    def _keep(self, tests: Sequence[Test]) -> None:
        self.records.parent.mkdir(parents=True, exist_ok=True)
        self.records.write_text("".join(json.dumps(test) + "\n" for test in tests))

    def _add(self, **test: Any) -> None:
        with self.records.open("a") as file:
            file.write(json.dumps(test) + "\n")


def ended(records: Path) -> list[Test]:
    """The tests of a file of records that came to their end."""
    return [record for record in _lines(records) if "outcome" in record]


def in_progress(records: Path) -> str:
    """The test that began last and has not ended; "" where there is none."""
    lines = _lines(records)
    return lines[-1]["test"] if lines and "began" in lines[-1] else ""


def _lines(records: Path) -> list[Test]:
    """Whole lines; the last one is torn where a kill met it."""
    text = records.read_text() if records.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def _of(test: Test, file: str) -> bool:
    return test["test"].split("::")[0] == file


def _how(status: int) -> str:
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
