"""A whole run on one device in three types: it learns, and sampler and learner agree.

First suspicion: a gap between them alone is the engine's or the learner's kernels in that type
(test_engine, test_gradients and test_halves say which); accuracy alone, in float16, is the scaler.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from grpo.commands.train import train_recipe
from grpo.config.config import load
from grpo.outside.terminal.console import Console
from tests.gpu.memory import Peak


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_parity_learns_and_the_sampler_agrees(
    device: torch.device, tmp_path: Path, dtype: str
) -> None:
    """Forty steps; in a rehearsal two, which learn nothing that could be seen."""
    settings = [f"run.dir={tmp_path / 'run'}", "eval.num_tasks=128", f"model.dtype={dtype}"]
    if device.type == "cpu":
        settings += ["eval.num_tasks=8", "eval.num_samples=1", "learner.max_steps=2"]
        settings += ["rollout.prompts_per_step=4", "run.threads=1"]
    with Peak(device) as peak:
        summary = train_recipe(load("parity-r1-zero", settings), Console(quiet=True))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    name = "sampling/sampling_logp_difference/mean"
    gaps = [json.loads(line).get(name, 0.0) for line in lines]
    assert max(gaps) < (1e-3 if dtype == "float32" else 0.05)
    assert peak.bytes > 0
    assert summary["after"]["greedy"] >= 0.95
