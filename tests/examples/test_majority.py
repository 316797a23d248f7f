"""The data source of docs/data.md, as a reader copies it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from grpo.config.config import load
from grpo.errors import GrpoError
from grpo.outside.code import plugins
from grpo.stages import preflight
from tests.examples.pages import DOCS, write_files


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"{write_files('data', tmp_path, DOCS)['majority.py']}:Majority"


def test_its_answers_are_majorities_and_its_splits_are_disjoint(address: str) -> None:
    source = plugins.load("source", address, {"bits": 3})
    asked: dict[str, dict[str, str]] = {}
    for split in ("train", "heldout"):
        tasks = [source.task(split, index) for index in range(source.size(split))]
        asked[split] = {task.prompt: task.answer for task in tasks}
    assert asked["heldout"] == {"000=": "0"}
    right = {"001=": "0", "010=": "0", "011=": "1", "100=": "0", "101=": "1", "110=": "1"}
    assert asked["train"] == {**right, "111=": "1"}


def test_it_trains(address: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [
        "train",
        "parity-r1-zero",
        f"run.dir={run}",
        f"data.source={address}",
        "data.args={bits: 11}",
        "run.threads=1",
        "learner.max_steps=1",
        "rollout.prompts_per_step=4",
        "eval.num_tasks=4",
    ]
    subprocess.run([sys.executable, "-m", "grpo.cli", *words], check=True)
    lines = (run / "eval" / "after.jsonl").read_text().splitlines()
    assert {json.loads(line)["task"].partition("/")[0] for line in lines} == {"majority"}


def test_a_misspelled_argument_is_a_sentence(address: str) -> None:
    recipe = load("parity-r1-zero", [f"data.source={address}", "data.args={bit: 20}"])
    with pytest.raises(GrpoError, match="Did you mean 'bits'"):
        preflight.known(recipe)
