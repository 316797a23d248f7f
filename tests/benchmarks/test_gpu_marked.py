"""Tests marked `gpu`: each is recorded, also one that takes its process along."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from gpu import marked

FIRST = """
import os, signal
import pytest

def test_good():
    assert os.environ.get("GRPO_GPU_TESTS") == "cpu"

def test_wrong():
    values = [1, 2]
    assert values == [1, 3], "two lines\\nof words"

@pytest.mark.skipif(True, reason="no such card")
def test_skipped():
    pass

def test_dies():
    os.kill(os.getpid(), signal.SIGSEGV)

def test_after():
    pass
"""
MARKS = """
import pytest

@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/gpu/" in str(item.path):
            item.add_marker(pytest.mark.CARD)
"""
SECOND = """
import os
import pytest

@pytest.mark.CARD
def test_card(clean):
    with open("ran", "a") as file:
        file.write("card ")
    with open("process", "w") as file:
        file.write(str(os.getpid()))
    assert 1 == 2

@pytest.fixture
def clean():
    yield
    raise RuntimeError("CUDA error: an illegal memory access was encountered")

@pytest.mark.CARD
@pytest.mark.vllm
def test_with_vllm():
    raise AssertionError

def test_on_every_machine():
    raise AssertionError

@pytest.mark.CARD
def test_in_a_new_process():
    with open("ran", "a") as file:
        file.write("new ")
    with open("process") as file:
        assert file.read() != str(os.getpid())
"""
# CARD becomes gpu in the files, so that this one is not taken for one of them
THIRD = "import pytest, no_such_module  # pytest.mark.CARD"
CONFIG = "[pytest]\naddopts = --import-mode=importlib\nmarkers =\n    gpu\n    vllm\n    ray\n"
NAMES = ["tests/gpu/test_b.py", "tests/a/test_a.py", "tests/z/test_c.py"]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in zip(NAMES, (FIRST, SECOND, THIRD), strict=True):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text.replace("CARD", "gpu"))
    (tmp_path / "pytest.ini").write_text(CONFIG)
    (tmp_path / "tests" / "gpu" / "conftest.py").write_text(MARKS.replace("CARD", "gpu"))
    (tmp_path / "tests" / "test_plain.py").write_text("def test_plain(): raise ValueError")
    benchmarks = Path(__file__).parents[2] / "benchmarks"
    monkeypatch.setenv("PYTHONPATH", f"{benchmarks}{os.pathsep}{benchmarks.parent}")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # none is needed; seconds each
    return tmp_path


def session(root: Path, again: bool = False, first_only: bool = False) -> marked.Session:
    return marked.Session(
        marked.files(root),
        root / "records.jsonl",
        on_cpu=True,
        again=again,
        first_only=first_only,
        root=root,
    )


def outcomes(tests: list[marked.Test]) -> dict[str, str]:
    return {test["test"].rpartition("::")[2]: test["outcome"] for test in tests}


def test_files_are_found_by_their_marks_those_for_cards_first(root: Path) -> None:
    assert marked.files(root) == NAMES


@pytest.mark.parametrize("ci", ["", "true"])  # pytest shows whole comparisons where it is set
def test_every_test_is_recorded_and_a_death_takes_one_along(
    root: Path, monkeypatch: pytest.MonkeyPatch, ci: str
) -> None:
    monkeypatch.setenv("CI", ci)
    monkeypatch.delenv("BUILD_NUMBER", raising=False)
    running = session(root)
    first = running.finish(NAMES[0])
    assert outcomes(first) == {
        "test_good": "passed",
        "test_wrong": "failed",
        "test_skipped": "skipped",
        "test_dies": "failed",
        "test_after": "passed",
    }
    reasons = {test["test"].rpartition("::")[2]: test["reason"] for test in first}
    assert "assert [1, 2] == [1, 3]" in reasons["test_wrong"]
    assert reasons["test_skipped"] == "Skipped: no such card"
    assert "SIGSEGV" in reasons["test_dies"]
    assert outcomes(running.finish(NAMES[1])) == {
        "test_card": "failed",
        "test_in_a_new_process": "passed",
    }
    (broken,) = running.finish(NAMES[2])
    assert (broken["test"], broken["outcome"]) == (NAMES[2], "failed")
    assert "no_such_module" in broken["reason"]


def test_a_second_call_runs_the_rest_only(root: Path) -> None:
    tests = [f"{NAMES[1]}::test_card", f"{NAMES[1]}::test_in_a_new_process"]
    known = {"test": tests[0], "outcome": "failed", "seconds": 1.0, "reason": "known"}
    lines = [json.dumps(known), json.dumps({"test": tests[1], "began": True}), '{"test": "torn']
    (root / "records.jsonl").write_text("\n".join(lines))
    (root / "process").write_text("another")
    found = session(root).finish(NAMES[1])
    assert outcomes(found) == {"test_card": "failed", "test_in_a_new_process": "passed"}
    assert found[0] == known
    assert (root / "ran").read_text() == "new "
    again = session(root, again=True).finish(NAMES[1])
    assert outcomes(again) == outcomes(found)
    assert "assert 1 == 2" in again[-1]["reason"]
    assert (root / "ran").read_text() == "new card "


def test_a_rehearsal_runs_one_test_a_file_also_when_it_goes_on(root: Path) -> None:
    cut = session(root, first_only=True)
    assert outcomes(cut.finish(NAMES[0])) == {"test_good": "passed"}
    if cut.process is not None:  # in a later file
        cut.process.wait()
    lines = (root / "records.jsonl").read_text().splitlines(keepends=True)
    (root / "records.jsonl").write_text("".join(line for line in lines if "test_good" in line))
    running = session(root, first_only=True)
    assert outcomes(running.finish(NAMES[0])) == {"test_good": "passed"}
    assert outcomes(running.finish(NAMES[1])) == {"test_card": "failed"}
