"""Learner ranks started on Ray: the same run as with one rank, and no rank waits for a dead one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from grpo.commands import train
from grpo.commands.train import train_recipe
from grpo.config.config import load
from grpo.errors import RecipeError, RunError

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore::Warning")]

SETTINGS = [
    "learner.max_steps=2",
    "eval.num_tasks=8",
    "eval.num_samples=1",
    "agreement.steps=0",
    "rollout.prompts_per_step=8",
    "run.threads=2",
]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def test_two_ranks_on_ray_learn_what_one_does(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    train.train(load("parity-r1-zero", [*SETTINGS, f"run.dir={one}"]))
    summary = train.train(load("parity-r1-zero", [*SETTINGS, f"run.dir={two}", "ray.learners=2"]))
    assert summary["steps"] == 2
    base = load_file(Path(load("parity-r1-zero").stages[0].model.path) / "model.safetensors")
    ours, theirs = weights(two), weights(one)
    assert max(float((ours[n] - base[n]).abs().max()) for n in base) > 1e-5
    for name in base:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=0)
    metrics = [json.loads(line) for line in (two / "metrics.jsonl").read_text().splitlines()]
    assert len(metrics) == 2
    assert json.loads((two / "resolved.json").read_text())["run"]["threads"] == 1


def test_an_error_of_a_rank_ends_all(tmp_path: Path) -> None:
    (tmp_path / "resolved.json").write_text("{}")
    recipe = load("parity-r1-zero", [*SETTINGS, f"run.dir={tmp_path}", "ray.learners=2"])
    with pytest.raises(RunError, match="already holds a run"):
        train.train(recipe)
    assert not ray.is_initialized()


def test_ranks_that_were_not_started_are_an_error(tmp_path: Path) -> None:
    recipe = load("parity-r1-zero", [*SETTINGS, f"run.dir={tmp_path}", "ray.learners=2"])
    with pytest.raises(RecipeError, match=r"ray\.learners = 2, but 1 learner ranks"):
        train_recipe(recipe)
