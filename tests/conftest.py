"""Shared by all tests: threads of a process (one), no hub, no surprise from the surroundings."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter

# Before torch is imported anywhere: pytest-xdist runs one process per core, and two processes with
# two threads each on two cores run several times slower than one thread each.
os.environ["OMP_NUM_THREADS"] = os.environ.get("GRPO_TEST_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.pop("PYTHONWARNINGS", None)
# Bytecode is written, as users have it: Python may take it for a file that was edited since.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import pytest
from hypothesis import settings

sys.dont_write_bytecode = False

# A shell that starts tests in the background leaves Ctrl-C ignored, and some tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A shared machine makes single examples slow now and then; the examples themselves are fixed.
settings.register_profile("grpo", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("grpo")

# How a test of compiled kernels says why it cannot run here. Nothing emulates matrix tiles; where
# AVX512_BF16 or AVX-512 is missing, the same tests run on the code that is compiled instead.
_NO_KERNELS = ("Skipped: this processor has no ", "Skipped: no C++ compiler")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests of compiled kernels did not run, and why: a pass here covers less."""
    skipped = (report.longrepr for report in terminalreporter.stats.get("skipped", []))
    reasons = [found[2] for found in skipped if isinstance(found, tuple)]
    missing = Counter(reason for reason in reasons if reason.startswith(_NO_KERNELS))
    for reason, count in missing.items():
        tests = "1 test" if count == 1 else f"{count} tests"
        said = reason.removeprefix("Skipped: ")
        terminalreporter.write_line(
            f"{tests} of compiled kernels did not run: {said}", yellow=True, bold=True
        )
