"""What a learner's step costs in copies and waits, by kind of step; writes the table of them.

python -m tests.device.learner_counts     from the repository's root, after a change for the better
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from grpo.method.advantage import reward_matrix
from grpo.method.table import ADVANTAGES
from grpo.method.weighted_rows import make_rows
from grpo.types import LoraSpec, Row, Sampling

from ..grpo.rows import group
from .card import make_learner
from .counting import Counting

TABLE = Path(__file__).with_name("learner_counts.json")
CUT = {"tokens_per_micro_batch": 160}
SCENARIOS: dict[str, dict[str, Any]] = {
    "shared prompts, in parts": {},
    "shared prompts, FlexAttention": {"flex": True},
    "shared prompts, Qwen3": {"model": "qwen3"},
    "padded rows": {"config": {"share_prompts": False}},
    "float16, scaled loss": {"dtype": "float16"},
    "beta > 0": {"algorithm": {"beta": 0.1}},
    "LoRA": {"lora": LoraSpec(rank=4)},
    "gradient checkpointing": {"config": {"gradient_checkpointing": True}},
    "top-entropy tokens and bonus": {
        "algorithm": {"loss_args": {"top_entropy_quantile": 0.2, "entropy_coef": 0.1}}
    },
    "num_iterations 2": {"algorithm": {"num_iterations": 2}},
    "top-p": {"truncation": Sampling(top_p=0.9)},
    "top-k and min-p": {"truncation": Sampling(top_k=5, min_p=0.01)},
    "sequence ratios, masked": {
        "algorithm": {
            "loss_type": "gspo",
            "loss_args": {"off_policy_mask_threshold": 0.5},
            "sampling_correction": "sequence_mask",
        }
    },
}


def some_rows(loss_type: str = "dapo") -> list[Row]:
    """Three groups of different sizes, several micro-batches of them."""
    groups = [
        group(0, 30, [40, 17, 22, 31], [1.0, 0.0, 0.0, 1.0]),
        group(1, 6, [9, 5, 5], [1.0, 1.0, 0.0]),
        group(2, 60, [33, 8, 36, 20, 20], [0.0, 0.5, 1.0, 0.0, 0.0]),
    ]
    advantages = ADVANTAGES["grpo"].function(reward_matrix(groups))
    return make_rows(groups, advantages, loss_type=loss_type, max_completion_length=64)


def measure(scenario: dict[str, Any]) -> tuple[dict[str, float], Counting]:
    """Counts of the second step, whose kinds of memory are all there, and every event of it."""
    settings = {**scenario, "config": {**CUT, **scenario.get("config", {})}}
    with pytest.MonkeyPatch.context() as patch:
        learner = make_learner(patch, **settings)
        rows = some_rows(learner.algorithm.loss_type)
        with Counting():
            learner.step(rows)
        with Counting() as mode:
            metrics = learner.step(rows)
    cuts, steps = int(metrics["learner/micro_batches"]), int(metrics["optimizer_steps"])
    totals = mode.totals()
    return {
        "micro_batches": cuts,
        "optimizer_steps": steps,
        "blocking_copies": totals["blocking upload"],
        "copies": totals["upload"],
        "downloads": totals["download"],
        "synchronizations": totals["synchronization"],
        "operations": mode.operations,
    }, mode


def main() -> None:
    """Measure everything and write the table."""
    table = {name: measure(scenario)[0] for name, scenario in SCENARIOS.items()}
    TABLE.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    print(TABLE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
