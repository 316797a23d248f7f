"""The parity gate: does it see a temperature that is off by 10%, and how often is it wrong?

The sampler is vLLM on SmolLM2. The wrong one draws at 1.1 times the temperature that it was asked
for and reports the log-probs of the temperature asked, which is what makes the fault invisible to
any comparison of log-probs. 200 clean checks are made with different noise.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from grpo.config import load
from grpo.errors import ParityError
from grpo.learner import TorchLearner
from grpo.parity import INFORMATION, Z_LIMIT, Gate
from grpo.stages.wiring import build_gate, build_parts, build_sampler
from tests.rollout.faults import hotter_sampler

ROOT = Path(__file__).resolve().parent.parent
CLEAN, PLANTED, FACTOR = 200, 20, 1.1


def measure() -> dict[str, Any]:
    """Detections of the planted fault, false alarms of the right sampler, tokens per check."""
    torch.set_num_threads(os.cpu_count() or 1)
    recipe = load(ROOT / "recipes" / "smollm2-multiplication.yaml", ["rollout.engine=vllm"])
    (stage,) = recipe.stages
    sampler = build_sampler(stage, recipe, stage.model.path)
    parts = build_parts(stage, recipe, stage.model.path, sampler)
    gate = build_gate(stage, recipe.run, sampler)
    assert gate is not None
    parts.rollouts.deliver(parts.learner, 0)
    try:
        clean = [_checked(gate, sampler.engine, parts.learner, seed) for seed in range(CLEAN)]
        with hotter_sampler(sampler.engine, FACTOR):
            hot = [
                _checked(gate, sampler.engine, parts.learner, CLEAN + seed)
                for seed in range(PLANTED)
            ]
    finally:
        parts.rollouts.close()
        sampler.engine.close()
    z = np.array([c["parity/z"] for c in clean if "parity/z" in c])
    return {
        "model": "SmolLM2-135M-Instruct, bfloat16, vLLM CPU",
        "limit of |z|": Z_LIMIT,
        "information asked for": INFORMATION,
        "clean checks": CLEAN,
        "false alarms": sum("error" in c for c in clean),
        "largest |z| of a clean check": round(float(z.max()), 2),
        "mean square of z (1 for a right sampler)": round(float((z**2).mean()), 3),
        "tokens per check": {
            "median": float(np.median([c["parity/tokens"] for c in clean if "error" not in c])),
            "most": max(c["parity/tokens"] for c in clean if "error" not in c),
        },
        "planted temperature": FACTOR,
        "planted checks": PLANTED,
        "caught within one check": sum("error" in c for c in hot),
        "message": next((c["error"] for c in hot if "error" in c), None),
    }


def _checked(gate: Gate, engine: Any, learner: TorchLearner, seed: int) -> dict[str, Any]:
    try:
        return dict(replace(gate, seed=seed).check(engine, learner, step=1))
    except ParityError as error:
        return {"error": str(error)}
