"""Short versions of the recipes whose full curves are in recipes/results: they must learn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grpo.commands.train import train_recipe
from grpo.config.config import load
from grpo.outside.terminal.console import Console

ROOT = Path(__file__).resolve().parents[2]


def run(recipe: str, folder: Path, *overrides: str) -> dict[str, object]:
    settings = [f"run.dir={folder}", "run.threads=1", *overrides]
    return train_recipe(load(recipe, settings), Console(quiet=True))


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.timeout(300)
def test_parity_r1_zero_learns_to_think(tmp_path: Path) -> None:
    summary = run("parity-r1-zero", tmp_path / "run", "eval.num_tasks=128")
    before, after = summary["before"], summary["after"]
    assert before["greedy"] <= 0.65
    assert after["greedy"] >= 0.95
    assert after["mean_length"] >= 2 * before["mean_length"]
    assert summary["gain"]["ci"][0] > 0.3


@pytest.mark.timeout(300)
def test_a_random_reward_teaches_nothing(tmp_path: Path) -> None:
    summary = run(
        "parity-random-reward", tmp_path / "run", "eval.num_tasks=512", "learner.max_steps=20"
    )
    assert summary["gain"]["ci"][0] <= 0.03


@pytest.mark.timeout(300)
def test_multiplication_starts_to_learn_from_scratch(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(
        "multiplication-r1-zero",
        folder,
        "base.model.hidden_size=96",
        "base.model.num_layers=2",
        "base.learner.max_steps=120",
        "base.learner.batch_size=64",
        "rl.learner.max_steps=2",
        "rl.rollout.prompts_per_step=8",
        "rl.eval.num_tasks=16",
    )
    losses = [line["loss"] for line in metrics(folder / "base")]
    assert losses[0] > 2.5  # about log(22 characters) = 3.1
    assert losses[-1] < 1.5  # 1.13 when written: the form is learned, the products are not yet
    steps = metrics(folder / "rl")
    assert all(step["rewards/format/mean"] > 0.5 for step in steps)
    assert sum(step["optimizer_steps"] for step in steps) > 0


@pytest.mark.smollm2
@pytest.mark.timeout(1200)
def test_smollm2_improves_within_twelve_steps(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train_recipe(
        load(
            "smollm2-multiplication",
            [
                f"model.path={ROOT / 'models' / 'smollm2-135m-instruct'}",
                f"run.dir={folder}",
                "learner.max_steps=12",
                "eval.num_tasks=20",
                "eval.num_samples=2",
            ],
        ),
        Console(quiet=True),
    )
    lines = metrics(folder)
    rewards = [line["rewards/lenient/mean"] for line in lines]
    # 256 completions each; from about 0.2 to about 0.4 in the full runs.
    assert sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 0.05
    # bfloat16 sampler and learner read the same tokens nearly alike.
    name = "sampling/sampling_logp_difference/mean"  # absent from a step with every row dead
    assert all(line[name] < 0.1 for line in lines if name in line)
