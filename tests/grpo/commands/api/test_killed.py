"""A run of Python objects whose program was killed: how it goes on, and what the terminal says."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import grpo
from grpo import cli
from grpo.errors import RunError
from tests.grpo.commands.api.bad_calls import FOLDER
from tests.grpo.commands.api.left import weights

SETTINGS: dict[str, Any] = {
    "model": FOLDER,
    "max_steps": 4,
    "save_steps": 1,
    "num_generations": 2,
    "prompts_per_step": 2,
    "max_completion_length": 8,
    "learning_rate": 1e-3,
    "threads": 1,
    "eval": {"num_tasks": 1, "num_samples": 1},
}
MINE = """
import os, signal
ROWS = [{"prompt": f"{n * 2654435761 % 65536:016b}=", "answer": str(n % 2)} for n in range(24)]

def one(text):
    return text.count("1") / 10

def count(completions, trainer_state, **_):
    if trainer_state and trainer_state.global_step == 2 and "KILL" in os.environ:
        os.kill(os.getpid(), signal.SIGKILL)
    return [one(text) for text in completions]
"""


def module(folder: Path, source: str) -> Any:
    """A module with this source, from a file of its own."""
    folder.mkdir(exist_ok=True)
    (folder / "rewards_of_mine.py").write_text(source)
    spec = importlib.util.spec_from_file_location("mine", folder / "rewards_of_mine.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture
def killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> grpo.Run:
    """A run whose program ended by SIGKILL in its third step."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script.py").write_text(
        f"import sys\nsys.path[:0] = {sys.path!r}\n{MINE}\nimport grpo\n"
        f"grpo.train(dataset=ROWS, rewards=[count], dir='run', **{SETTINGS!r})\n"
    )
    environment = {**os.environ, "KILL": "1"}
    ended = subprocess.run(
        [sys.executable, "script.py"], env=environment, capture_output=True, text=True
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    return grpo.load_run("run")


def test_a_killed_run_goes_on_to_the_same_bits(killed: grpo.Run, tmp_path: Path) -> None:
    mine = module(tmp_path / "elsewhere", MINE)
    edited = module(tmp_path / "edited", MINE.replace("/ 10", "/ 20"))
    with pytest.raises(RunError, match=r"rewards=\[count\], dataset=….*test_killed\.py:\d+"):
        killed.resume()
    with pytest.raises(RunError, match=r"rewards=\[count\]"):
        killed.resume(rewards=["accuracy"], dataset=mine.ROWS)
    with pytest.raises(RunError, match=r"has changed: .*function count"):
        killed.resume(rewards=[edited.count], dataset=mine.ROWS)
    with pytest.raises(RunError, match=r"has changed: .*training rows"):
        killed.resume(rewards=[mine.count], dataset=mine.ROWS[::-1])
    with pytest.raises(RunError, match=r"learning_rate = 0.1: a run goes on with the settings"):
        killed.resume(rewards=[mine.count], dataset=mine.ROWS, learning_rate=0.1)
    killed.resume(rewards=[mine.count], dataset=mine.ROWS)
    whole = grpo.train(dataset=mine.ROWS, rewards=[mine.count], **SETTINGS)
    assert weights(killed) == weights(whole)


def test_the_terminal_says_one_sentence(
    killed: grpo.Run, capsys: pytest.CaptureFixture[str]
) -> None:
    object_of = "'dataset' is a Python object of the program that began the run"
    calls: list[tuple[list[str], int, str]] = [
        (["train", "--resume", "run"], 2, "(dataset, count); go on from there: grpo.load_run("),
        (["eval", "run"], 2, "has no trained model yet"),
        (["plan", "run/resolved.json"], 2, object_of),
        (["check", "run/resolved.json"], 2, object_of),
        (["show", "run"], 0, "reward"),
    ]
    for arguments, code, told in calls:
        assert cli.main(arguments) == code
        said = capsys.readouterr()
        assert told in said.out + said.err
        assert "Traceback" not in said.err
        if code:
            assert said.err.count("grpo: error:") == 1
