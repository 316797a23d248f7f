"""The reward of docs/examples/stateful_reward.md, killed with SIGKILL and continued."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from grpo.config.config import load
from grpo.errors import RecipeError
from grpo.outside.code import plugins
from grpo.stages.wiring import build_rewards
from tests.examples.pages import write_files

METRIC = "rewards/brevity/mean"
KILL = """
import os, signal
from pathlib import Path

def once(step):
    marker = Path(__file__).with_suffix(".killed")
    if step.step == 4 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
"""


def at(step: int) -> Any:
    return SimpleNamespace(global_step=step)


def arguments(reward: Path, folder: Path, *more: str) -> list[str]:
    return [
        "parity-r1-zero",
        f"run.dir={folder}",
        "run.save_steps=2",
        "run.threads=1",
        "rollout.prompts_per_step=4",
        "rollout.num_generations=4",
        "learner.max_steps=5",
        "eval.num_tasks=4",
        "rewards=[{name: accuracy}, {name: '" + f"{reward}:Brevity'" + ", label: brevity}]",
        *more,
    ]


def grpo(*words: str) -> int:
    return subprocess.run([sys.executable, "-m", "grpo.cli", *words], check=False).returncode


def compared(folder: Path) -> list[float | None]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line).get(METRIC) for line in lines]


@pytest.fixture
def reward(tmp_path: Path) -> Path:
    return write_files("stateful_reward", tmp_path)["brevity.py"]


def test_it_compares_with_the_average_of_earlier_steps(reward: Path) -> None:
    brevity = plugins.load("reward", f"{reward}:Brevity", {"decay": 0.5})
    assert brevity([[1] * 10, [1] * 20], at(1)) == [None, None]
    assert brevity([[1] * 30], at(1)) == [None]  # the same step: nothing earlier yet
    # Step 1 had 10, 20 and 30 tokens: 20 on average.
    assert brevity([[1] * 10, [1] * 30], at(2)) == [0.5, -0.5]
    assert brevity([[1] * 80], at(2)) == [-1.0]
    # Step 2 had 40 on average: 0.5 * 20 + 0.5 * 40 = 30.
    assert brevity([[1] * 15], at(3)) == [0.5]


def test_a_killed_run_remembers_what_an_unbroken_run_does(reward: Path, tmp_path: Path) -> None:
    (tmp_path / "kill.py").write_text(KILL)
    callback = f"callbacks=[{{name: '{tmp_path / 'kill.py'}:once'}}]"
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    assert grpo("train", *arguments(reward, killed, callback)) == -signal.SIGKILL
    assert grpo("train", "--resume", str(killed)) == 0
    assert grpo("train", *arguments(reward, whole)) == 0

    values = compared(whole)
    assert values[0] is None
    assert None not in values[1:]
    assert compared(killed) == values


def test_several_processes_would_each_remember_a_part(reward: Path, tmp_path: Path) -> None:
    name, *overrides = arguments(reward, tmp_path, "rollout.backend=ray", "ray.verifiers=2")
    recipe = load(name, overrides)
    with pytest.raises(RecipeError, match="'brevity' remembers earlier steps"):
        build_rewards(recipe.stages[0], recipe)  # type: ignore[arg-type]
