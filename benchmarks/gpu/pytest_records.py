"""A plugin of pytest: a line of JSON in the file GRPO_TEST_RECORDS as each test begins and ends.

    {"test": "tests/x.py::test_y[1]", "began": true}
    {"test": "tests/x.py::test_y[1]", "outcome": "failed", "seconds": 1.2, "reason": "E ..."}

outcome: "passed", "failed" or "skipped". The session stops after an error of the card, which would
fail every test that follows in the same process. With GRPO_TEST_FIRST_ONLY, a file of which a test
has ended has no other, and the rest has one each.
"""

from __future__ import annotations

import itertools
import json
import os
from typing import Any

import pytest

LINES, LONGEST = 4, 500  # of a reason: lines and characters
CARD_ERRORS = ("CUDA error", "device-side assert", "CUBLAS_STATUS", "cudaError")


class Records:
    """Writes the lines."""

    def __init__(self, path: str, first_only: bool) -> None:
        self.path = path
        self.first_only = first_only
        self.reports: list[pytest.TestReport] = []
        self.session: pytest.Session | None = None

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self.session = session

    @pytest.hookimpl(trylast=True)  # once marks have chosen
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        if not self.first_only:
            return
        seen = {_file(json.loads(line)["test"]) for line in _lines(self.path)}
        kept: list[pytest.Item] = []
        for item in items:
            if _file(item.nodeid) not in seen:
                seen.add(_file(item.nodeid))
                kept.append(item)
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write(test=report.nodeid, outcome="failed", seconds=0.0, reason=reason(report))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.reports = []
        self._write(test=nodeid, began=True)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.reports.append(report)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        telling = [r for r in self.reports if r.failed] or [r for r in self.reports if r.skipped]
        outcome = telling[0].outcome if telling else "passed"
        said = reason(telling[0]) if telling else ""
        seconds = round(sum(report.duration for report in self.reports), 3)
        self._write(test=nodeid, outcome=outcome, seconds=seconds, reason=said)
        failures = [report.longreprtext for report in self.reports if report.failed]
        if any(e in text for text in failures for e in CARD_ERRORS) and self.session is not None:
            self.session.shouldstop = "an error of the card"

    def _write(self, **record: Any) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())


def reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """The first lines of the last error, or the reason of a skip.

    pytest ends an error with a comparison, cut short on a terminal and whole where CI is set, so
    that its first lines are the ones that are the same everywhere.
    """
    if isinstance(report.longrepr, tuple):  # skipped: file, line, reason
        return str(report.longrepr[2])
    lines = report.longreprtext.splitlines()
    blocks = itertools.groupby(lines, lambda line: line.startswith("E "))
    errors = [list(block) for is_error, block in blocks if is_error]
    telling = errors[-1][:LINES] if errors else lines[-LINES:]
    return "\n".join(line.rstrip() for line in telling)[:LONGEST]


def _lines(path: str) -> list[str]:
    with open(path, encoding="utf-8") as file:
        return file.readlines()


def _file(test: str) -> str:
    return test.split("::")[0]


def pytest_configure(config: pytest.Config) -> None:
    """Take part where the file is named."""
    path = os.environ.get("GRPO_TEST_RECORDS")
    if path:
        first_only = "GRPO_TEST_FIRST_ONLY" in os.environ
        config.pluginmanager.register(Records(path, first_only))
