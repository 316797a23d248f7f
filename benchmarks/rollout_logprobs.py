"""vLLM's log-probs against the learner's on fixed tokens while the weights are updated.

The tokens are completions of the recipe's training prompts, drawn once from the first weights and
kept. After each of 20 updates the engine is given the new weights; after the first and the last it
scores the tokens with its own forward pass and kernels.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from grpo.config import load
from grpo.loop import train_step
from grpo.stages.wiring import build_parts, build_sampler
from grpo.types import Row

ROOT = Path(__file__).resolve().parent.parent
UPDATES = 20


def measure() -> dict[str, Any]:
    """Mean and largest |difference| in nats after 1 and after 20 updates."""
    torch.set_num_threads(os.cpu_count() or 1)
    overrides = ["rollout.engine=vllm", f"learner.max_steps={UPDATES}", "parity.steps=0"]
    recipe = load(ROOT / "recipes" / "smollm2-multiplication.yaml", overrides)
    (stage,) = recipe.stages
    sampler = build_sampler(stage, recipe, stage.model.path)
    parts = build_parts(stage, recipe, stage.model.path, sampler)
    rows: list[Row] = []
    found: dict[str, Any] = {}
    loading: list[float] = []
    try:
        parts.rollouts.deliver(parts.learner, 0)
        for step in range(1, UPDATES + 1):
            done = train_step(parts, step)
            loading.append(done.metrics["time/weights"])
            rows = rows or [_row(r) for group in done.groups for r in group.rollouts]
            assert parts.learner.updates == step, "every step has to be an update"
            if step in (1, UPDATES):
                found[f"after {step}"] = _compare(sampler.engine, parts.learner, rows)
    finally:
        parts.rollouts.close()
        sampler.engine.close()
    last, first = (found[f"after {n}"]["mean |difference|"] for n in (UPDATES, 1))
    return {
        "model": "SmolLM2-135M-Instruct, bfloat16",
        **found,
        "ratio of the last to the first": round(last / first, 3),
        "seconds to deliver weights, read back": round(float(np.median(loading)), 2),
    }


def _row(rollout: Any) -> Row:
    ids = rollout.completion.ids
    one = np.ones(len(ids), dtype=np.float32)
    return Row(
        group=0,
        prompt_ids=rollout.prompt.ids,
        ids=ids,
        mask=one.astype(bool),
        logprobs=one,
        advantages=one,
        weights=one,
    )


def _compare(engine: Any, learner: Any, rows: list[Row]) -> dict[str, Any]:
    started = time.perf_counter()
    sampler_N = np.concatenate(
        [engine.logprobs([*r.prompt_ids, *r.ids.tolist()])[len(r.prompt_ids) - 1 :] for r in rows]
    )
    seconds = time.perf_counter() - started
    learner_N = np.concatenate(learner.logprobs(rows))
    difference_N = np.abs(sampler_N - learner_N)
    return {
        "tokens": len(difference_N),
        "mean |difference|": float(difference_N.mean()),
        "largest |difference|": float(difference_N.max()),
        "seconds of scoring": round(seconds, 1),
    }
