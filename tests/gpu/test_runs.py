"""Whole runs on the card: killed and resumed, fine-tuned, evaluated, with graders that run code.

First suspicion: a resumed run has other bytes, look at test_learner (steps) and at `the_same_twice`
of test_engine (sampling) first, and only if they pass at the checkpoint; a grader fails, the
sandbox's process, which one that holds a card has started (it is a fresh interpreter, no fork of
it); fine-tuning, accelerate's and TRL's own settings for a card.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from grpo.commands.train import resume_run, train_recipe
from grpo.config.config import from_dict, load
from grpo.outside.terminal.console import Console
from grpo.recipes import __file__ as recipes_file
from grpo.rewards.code.reward import Code
from grpo.rundir import ledger
from grpo.types import Task
from tests.grpo.tiny_bases import LETTERS, save_tiny_base

QUIET = Console(quiet=True)
ROOT = Path(__file__).parents[2]
BASE = str(Path(recipes_file).parent / "assets" / "parity-base")
SHORT = [
    *("eval.num_tasks=8", "eval.num_samples=1", "rollout.prompts_per_step=4", "run.threads=1"),
    *("learner.max_steps=7", "run.save_steps=2", "run.seed=5"),
]


def lines(folder: Path) -> list[dict[str, Any]]:
    """Of metrics.jsonl, without what a clock decides."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("time", "step_time", "tokens_per_second", "learner/tokens_per_second")
    return [
        {
            name: value
            for name, value in line.items()
            if name not in timed and not name.startswith(("time/", "schedule/"))
        }
        for line in found
    ]


def killed(arguments: list[str], log: Path, after: int) -> None:
    """`grpo train` on the command line, killed once `log` has that many lines."""
    said = log.parent.parent / "said"
    with said.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "grpo.cli", "train", *arguments],
            stdout=file,
            stderr=file,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        try:
            deadline = time.monotonic() + 100
            while not log.exists() or len(log.read_bytes().splitlines()) < after:
                assert process.poll() is None, said.read_text()[-2000:]
                assert time.monotonic() < deadline, said.read_text()[-2000:]
                time.sleep(0.002)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_a_killed_run_ends_in_the_same_bytes(device: torch.device, tmp_path: Path) -> None:
    """SIGKILL while the card is at work, then on from the checkpoint, in another process."""
    more = [*SHORT, "schedule.mode=one_step_off", "algorithm.beta=0.01"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train_recipe(load("parity-r1-zero", [*more, f"run.dir={whole}"]), QUIET)
    killed(["parity-r1-zero", *more, f"run.dir={cut}"], cut / "metrics.jsonl", 3)
    assert not (cut / "summary.json").exists()
    resume_run(cut, QUIET)
    for ours, wanted in zip(lines(cut), lines(whole), strict=True):
        differing = [name for name in wanted if ours.get(name) != wanted[name]]
        assert differing == [], f"step {wanted['step']}"
    for step in range(1, 8):
        ours, wanted = (ledger.shard(run / "ledger", step).read_bytes() for run in (cut, whole))
        assert ours == wanted, f"ledger of step {step}"
    for name in ("model/model.safetensors", "eval/after.jsonl"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed")
@pytest.mark.filterwarnings("ignore::FutureWarning:transformers.*")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_fine_tuning(device: torch.device, tmp_path: Path, dtype: str) -> None:
    """Letters in order are learned: the loss falls, weights stay float32, and bytes repeat."""
    if dtype == "float16" and device.type == "cpu":
        pytest.skip("the stage refuses float16 on a CPU")
    base = save_tiny_base(tmp_path / "base")
    rng = np.random.default_rng(1)
    words = ["".join(rng.choice(list(LETTERS), 4)) for _ in range(30)]
    rows = [json.dumps({"prompt": w, "completion": "".join(sorted(w))}) for w in words]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")

    def run(name: str, **settings: Any) -> Path:
        stage = {
            "kind": "sft",
            "model": {"path": base, "dtype": dtype},
            "data": {"path": str(tmp_path / "rows.jsonl")},
            "learner": {"batch_size": 8, "max_steps": 12, "learning_rate": 1e-2, **settings},
        }
        where = {"dir": str(tmp_path / name), "threads": 1, "save_steps": 5}
        train_recipe(from_dict({"name": "tiny", "run": where, "stages": [stage]}), QUIET)
        return tmp_path / name

    first = run("first")
    losses = [line["loss"] for line in lines(first) if "loss" in line]
    assert losses[-1] < 0.9 * losses[0]
    model = AutoModelForCausalLM.from_pretrained(first / "model")
    assert model.dtype == torch.float32
    again = run("again")
    one, other = (folder / "model" / "model.safetensors" for folder in (first, again))
    assert one.read_bytes() == other.read_bytes()


def test_an_evaluation(device: torch.device, tmp_path: Path) -> None:
    """A model beside itself: equal figures from the same noise, and those of a run of its own."""
    stage = {
        "kind": "eval",
        "name": "final",
        "models": [BASE, BASE],
        "data": {"source": "parity", "template": "raw", "max_prompt_length": 32},
        "rewards": [{"name": "accuracy"}],
        "num_tasks": 12,
        "num_samples": 2,
        "max_completion_length": 28,
    }
    run = {"dir": str(tmp_path / "run"), "threads": 1, "seed": 3}
    train_recipe(from_dict({"name": "eval", "run": run, "stages": [stage]}), QUIET)
    files = sorted((tmp_path / "run" / "eval").glob("*.jsonl"))
    assert files
    for file in files:
        found = [json.loads(line) for line in file.read_text().splitlines()]
        assert {line["mode"] for line in found} == {"greedy", "sample"}
        assert len(found) == 12 * (1 + 2)
    assert len({file.read_bytes() for file in files}) == 1


def test_code_is_judged_beside_a_card(device: torch.device) -> None:
    """The sandbox starts after the card was used, and its guests after threads were."""
    used = torch.randn(64, 64, device=device, requires_grad=True)
    (used @ used).sum().backward()
    reward = Code(workers=2, timeout=5.0)
    try:
        tests = {"asserts": ["assert f(1) == 2", "assert f(10) == 11"]}
        for program, wanted in (("x + 1", "correct"), ("2", "wrong")):
            text = f"<think>x</think>\n```python\ndef f(x): return {program}\n```"
            task = Task(uid="t", prompt="q", columns={"tests": tests})
            assert reward.verify(text, task).status == wanted
    finally:
        reward.close()
    (used @ used).sum().backward()
    assert used.grad is not None
    assert bool(used.grad.isfinite().all())


REWARD = """
def seen(completions, **_):
    return [float(sum(map(ord, text)) % 5) for text in completions]
"""


def test_a_run_whose_grader_is_a_sandbox(device: torch.device, tmp_path: Path) -> None:
    """Programs of a model that writes none are wrong, and no grader fails."""
    tests = json.dumps({"asserts": ["assert f(1) == 2"]})
    rows = [
        json.dumps({"prompt": f"{number:016b}=", "answer": "0", "tests": tests})
        for number in range(1, 33)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    (tmp_path / "mine.py").write_text(REWARD)
    settings = [
        *(f"run.dir={tmp_path / 'run'}", "data.source=file", *SHORT, "learner.max_steps=2"),
        f"data.args={{path: {tmp_path / 'rows.jsonl'}, heldout_fraction: 0.3}}",
        f"rewards=[{{name: code}}, {{name: '{tmp_path / 'mine.py'}:seen'}}]",
    ]
    train_recipe(load("parity-r1-zero", settings), QUIET)
    found = lines(tmp_path / "run")
    assert {line["rewards/code/mean"] for line in found} == {0.0}
    assert max(line["grad_norm"] for line in found) > 0
