"""The runner of the GPU measurements: what is lost, what is run again, and what it says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PATHS = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks"), str(HERE)])
WAIT = 60.0  # seconds for what takes less than one on a machine that is not busy


def start(folder: Path, *modules: str, limit: float = 60.0, again: bool = False):
    folder.mkdir(exist_ok=True)
    once_more = "again" if again else "once"
    return subprocess.Popen(
        [sys.executable, str(HERE / "staged.py"), str(folder), str(limit), once_more, *modules],
        env=os.environ | {"PYTHONPATH": PATHS},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def call(folder: Path, *modules: str, **options: Any) -> tuple[int, str]:
    process = start(folder, *modules, **options)
    said, _ = process.communicate(timeout=WAIT)
    return process.returncode, said


def until(condition) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def ran(folder: Path) -> list[str]:
    return (folder / "ran").read_text().split()


def found(folder: Path, section: str) -> dict[str, Any]:
    return json.loads((folder / "gpu.json").read_text())[section]


def runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_every_kind_of_failure_is_recorded_and_the_others_go_on(tmp_path: Path) -> None:
    status, said = call(tmp_path, "staged_mixed")
    assert status == 1
    assert ran(tmp_path) == ["first", "bad", "second", "crash", "partly", "last"]
    section = found(tmp_path, "mixed")
    assert section["status"] == "finished, 7 steps (3 failed, 1 not run)"
    steps = section["steps"]
    assert steps["bad"]["reason"] == "ValueError: no such luck"
    assert "SIGKILL" in steps["crash"]["reason"]
    assert "last words" in steps["crash"]["reason"]
    assert (steps["card"]["status"], steps["card"]["result"]) == ("not run", {})
    assert steps["partly"]["result"]["answer"] == "HALF"
    assert steps["partly"]["reason"] == "one of two is wrong"
    assert steps["last"]["result"]["answer"] == "LAST"
    assert section["from"]["card"]["name"]
    assert section["from"]["versions"]["torch"]
    # an error may have broken the card for its process; a failure with figures has not
    processes = {name: found["result"].get("process") for name, found in steps.items()}
    assert processes["first"] != processes["second"]
    assert processes["partly"] == processes["last"]
    for step in ("first", "bad", "second", "crash", "card", "partly", "last"):
        assert f"mixed/{step}: begins" in said


def test_a_second_call_runs_only_what_is_open(tmp_path: Path) -> None:
    call(tmp_path, "staged_mixed")
    (tmp_path / "ran").unlink()
    call(tmp_path, "staged_mixed")  # a card may have come: only that step is looked at
    assert not (tmp_path / "ran").exists()
    status, _ = call(tmp_path, "staged_mixed", again=True)
    assert status == 1
    assert ran(tmp_path) == ["bad", "crash", "partly"]


def test_killed_in_the_middle_it_loses_the_step_in_progress(tmp_path: Path) -> None:
    process = start(tmp_path, "staged_mixed", "staged_long")
    until((tmp_path / "sleeper").exists)
    until(lambda: (tmp_path / "sleeper").read_text())
    sleeper = int((tmp_path / "sleeper").read_text())
    assert runs(sleeper)
    process.kill()
    process.communicate()
    until(lambda: not runs(sleeper))  # nothing goes on without the runner
    assert found(tmp_path, "mixed")["status"].startswith("finished")
    (tmp_path / "ran").unlink()
    (tmp_path / "go").touch()
    status, _ = call(tmp_path, "staged_long")
    assert status == 0
    assert ran(tmp_path) == ["long", "last"]
    section = found(tmp_path, "long")
    assert section["status"] == "finished, 3 steps"
    assert section["steps"]["first"]["result"]["answer"] == "FIRST"


def test_a_section_over_its_limit_is_cut_and_goes_on_in_the_next_call(tmp_path: Path) -> None:
    status, said = call(tmp_path, "staged_long", limit=5.0)
    assert status == 1
    assert found(tmp_path, "long")["status"] == "stopped at its limit after 1 of 3 steps"
    assert "stopped at its limit after 1 of 3 steps" in said
    assert not runs(int((tmp_path / "sleeper").read_text()))
    (tmp_path / "go").touch()
    call(tmp_path, "staged_long")
    assert ran(tmp_path) == ["first", "long", "long", "last"]


def test_a_step_that_had_the_whole_limit_failed(tmp_path: Path) -> None:
    call(tmp_path, "staged_endless", limit=5.0)
    section = found(tmp_path, "endless")
    assert section["steps"]["long"]["reason"] == "took longer than the 5 s that a section has"
    assert section["status"] == "stopped at its limit after 1 of 2 steps (1 failed)"
    call(tmp_path, "staged_endless")  # would wait for ever if it ran the first step once more
    assert ran(tmp_path) == ["long", "last"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, "staged_long")
    until(lambda: (tmp_path / "sleeper").exists() and (tmp_path / "sleeper").read_text())
    process.send_signal(number)
    said, _ = process.communicate(timeout=WAIT)
    assert process.returncode == 128 + number
    assert f"stopped by {number.name}; the same command goes on from here" in said
    assert "Traceback" not in said
    assert not runs(int((tmp_path / "sleeper").read_text()))
    assert found(tmp_path, "long")["status"] == "interrupted after 1 of 3 steps"


def test_two_runners_on_one_folder_refuse(tmp_path: Path) -> None:
    process = start(tmp_path, "staged_long")
    try:
        until((tmp_path / "sleeper").exists)
        status, said = call(tmp_path, "staged_long")
        assert status == 1
        assert "is being measured into by another process" in said
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=WAIT)


def test_figures_of_two_kinds_do_not_meet_in_a_folder(tmp_path: Path) -> None:
    call(tmp_path, "staged_mixed")
    kind = tmp_path / "state" / "kind.json"
    kind.write_text(kind.read_text().replace('"tiny": true', '"tiny": false'))
    status, said = call(tmp_path, "staged_mixed")
    assert status == 1
    assert "name another folder" in said


def test_a_module_that_cannot_be_loaded_is_said(tmp_path: Path) -> None:
    status, said = call(tmp_path, "staged_missing", "staged_mixed")
    assert status == 1
    assert "missing: cannot be loaded: ModuleNotFoundError" in said
    assert found(tmp_path, "mixed")["status"].startswith("finished")


def test_the_command_says_something_within_a_second(tmp_path: Path) -> None:
    began = time.monotonic()
    process = subprocess.Popen(
        [
            *(sys.executable, "benchmarks/bench_gpu.py", "card", "--device", "cpu", "--tiny"),
            *("--folder", str(tmp_path)),
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": PATHS},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline().startswith("measuring card into")
    seconds = time.monotonic() - began
    process.terminate()
    process.communicate(timeout=WAIT)
    assert seconds < 5.0  # 0.3 s where nothing else runs; importing torch alone takes longer
