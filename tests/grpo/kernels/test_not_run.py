"""The count of tests that did not run as the processor lacks a unit, at the end of every run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TESTS = """
import pytest

@pytest.mark.skipif(True, reason="this processor has no matrix tiles (AMX)")
@pytest.mark.parametrize("case", range(3))
def test_tiles(case): pass

@pytest.mark.skipif(True, reason="no C++ compiler")
def test_compiled(): pass

@pytest.mark.skipif(True, reason="it is installed")
def test_other(): pass

def test_any(): pass
"""


def closing(folder: Path, tests: str, *options: str) -> str:
    """What a run of `tests` with our conftest says."""
    conftest = Path(__file__).parents[2] / "conftest.py"
    (folder / "conftest.py").write_text(conftest.read_text())
    (folder / "test_some.py").write_text(tests)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        *options,
        "-c",
        "/dev/null",
    ]
    done = subprocess.run(
        [*command, "--rootdir", folder, folder], capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_tests_that_did_not_run_are_counted_by_reason(tmp_path: Path) -> None:
    assert (
        "3 tests of compiled kernels did not run: this processor has no matrix tiles (AMX)\n"
        "1 test of compiled kernels did not run: no C++ compiler\n"
    ) in closing(tmp_path, TESTS, "-n2")


def test_nothing_is_said_where_all_ran(tmp_path: Path) -> None:
    assert "did not run" not in closing(tmp_path, "def test_any(): pass")
