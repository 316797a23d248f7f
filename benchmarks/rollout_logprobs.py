"""vLLM's log-probs against the learner's on fixed tokens while the weights are updated.

Two sets of tokens, made once by the first weights and kept: what vLLM samples at temperature 1 for
the prompts of the first step, and its greedy answers to held-out prompts. After each of 20 updates
the engine is given the new weights; after the first and the last it scores the tokens with its own
forward pass and kernels.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from grpo.config.config import load
from grpo.rollout.collect import collect
from grpo.stages.wiring import build_parts, build_rl_sampler
from grpo.training.loop import train_step
from grpo.types import Request, Row

ROOT = Path(__file__).resolve().parent.parent
UPDATES = 20
RATE = (
    3e-6  # R1-Zero's: the recipe's own moves the policy so far that its old answers grow unlikely
)


def measure() -> dict[str, Any]:
    """Mean and largest |difference| in nats after 1 and 20 updates, for both kinds of head."""
    torch.set_num_threads(os.cpu_count() or 1)
    return {
        "model": "SmolLM2-135M-Instruct, bfloat16",
        "learning rate": RATE,
        "head as the model": _updated([]),
        "head_dtype=float32": _updated(["rollout.engine_args.head_dtype=float32"]),
    }


def _updated(overrides: list[str]) -> dict[str, Any]:
    settings = ["rollout.engine=vllm", "rollout.prompts_per_step=4", "agreement.steps=0"]
    settings += ["learner.max_steps=60", f"learner.learning_rate={RATE}", "learner.warmup_steps=0"]
    recipe = load(ROOT / "recipes" / "smollm2-multiplication.yaml", [*settings, *overrides])
    (stage,) = recipe.stages
    sampler = build_rl_sampler(stage, recipe)
    parts = build_parts(stage, recipe, sampler)
    learner: Any = parts.learner
    rows: dict[str, list[Row]] = {}
    found: dict[str, Any] = {}
    loading: list[float] = []
    try:
        parts.rollouts.deliver(learner, 0)
        rows["greedy"] = _greedy(sampler)
        step = 0
        while learner.updates < UPDATES:
            step, before = step + 1, learner.updates
            done = train_step(parts, step)
            loading.append(done.metrics["time/weights"])
            drawn = [r for group in done.groups for r in group.rollouts]
            rows.setdefault("temperature 1", [_row(r.prompt, r.completion) for r in drawn])
            if learner.updates > before and learner.updates in (1, UPDATES):
                found[f"after {learner.updates}"] = {
                    name: _compare(sampler.engine, learner, some) for name, some in rows.items()
                }
    finally:
        parts.rollouts.close()
        sampler.engine.close()
    last, first = found[f"after {UPDATES}"], found["after 1"]
    return {
        **found,
        "ratio of the last to the first": {
            name: round(last[name]["mean |difference|"] / first[name]["mean |difference|"], 3)
            for name in rows
        },
        "seconds to deliver weights, read back": round(float(np.median(loading)), 2),
    }


def _greedy(sampler: Any) -> list[Row]:
    """Greedy answers to the held-out prompts."""
    prompts = sampler.prompts
    sampling = replace(sampler.sampling, temperature=0.0)
    requests = [
        Request(uid=str(i), ids=prompt.ids, n=1, sampling=sampling, key=(i,))
        for i, prompt in enumerate(prompts)
    ]
    answers = collect(sampler.engine, requests)
    return [_row(prompts[int(uid)], completion) for uid, (completion,) in answers]


def _row(prompt: Any, completion: Any) -> Row:
    ids = completion.ids
    weights = np.ones(len(ids), dtype=np.float32)
    return Row(
        group=0,
        prompt_ids=prompt.ids,
        ids=ids,
        mask=np.ones(len(ids), dtype=bool),
        columns={"weights": weights},
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
