"""The agreement gate: does it see a temperature that is off by 10%, and how often is it wrong?

The sampler is vLLM. The wrong one draws at 1.1 times the temperature that it was asked for and
reports the log-probs of the temperature asked, which is what makes the fault invisible to any
comparison of log-probs. It is planted under SmolLM2, and as many clean checks are made there. 200
clean checks, each with noise of its own, are made of the tiny parity model, whose checks take a
second; a false alarm is as likely there, or likelier, as its surprise comes in rare tokens.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from grpo.config.config import load
from grpo.errors import AgreementError
from grpo.learner.learner import TorchLearner
from grpo.stages.wiring import build_gate, build_parts, build_rl_sampler
from grpo.training.agreement import Z_LIMIT, AgreementGate
from grpo.training.probes import INFORMATION, TOKENS
from tests.rollout.vllm.faults import hotter_sampler

ROOT = Path(__file__).resolve().parent.parent
CLEAN, PLANTED, FACTOR = 200, 12, 1.1


def measure() -> dict[str, Any]:
    """Detections of the planted fault, false alarms of the right sampler, tokens per check."""
    torch.set_num_threads(os.cpu_count() or 1)
    return {
        "limit of |z|": Z_LIMIT,
        "information asked for": INFORMATION,
        "tokens at most": TOKENS,
        "parity-base, float32": _checks("parity-r1-zero", CLEAN, 0),
        "SmolLM2-135M-Instruct, bfloat16": _checks("smollm2-multiplication", PLANTED, PLANTED),
    }


def _checks(name: str, clean: int, planted: int) -> dict[str, Any]:
    recipe = load(ROOT / "recipes" / f"{name}.yaml", ["rollout.engine=vllm"])
    (stage,) = recipe.stages
    sampler = build_rl_sampler(stage, recipe)
    parts = build_parts(stage, recipe, sampler)
    gate = build_gate(stage, recipe.run, sampler)
    assert gate is not None
    learner: Any = parts.learner
    parts.rollouts.deliver(learner, 0)
    try:
        right = [_checked(gate, sampler.engine, learner, seed) for seed in range(clean)]
        with hotter_sampler(sampler.engine, FACTOR):
            hot = [_checked(gate, sampler.engine, learner, clean + seed) for seed in range(planted)]
    finally:
        parts.rollouts.close()
        sampler.engine.close()
    passed = [c for c in right if "error" not in c]
    z = np.array([c["agreement/z"] for c in passed])
    found: dict[str, Any] = {
        "clean checks": clean,
        "false alarms": clean - len(passed),
        "messages": [c["error"] for c in right if "error" in c],
        "largest |z| of a clean check": round(float(z.max()), 2),
        "mean square of z (1 for a right sampler)": round(float((z**2).mean()), 3),
        "tokens per check, median": float(np.median([c["agreement/tokens"] for c in passed])),
        "tokens per check, most": max(c["agreement/tokens"] for c in passed),
        "relative temperature error it would see": round(
            float(np.median([c["agreement/temperature_seen"] for c in passed])), 3
        ),
    }
    if planted:
        found |= {
            "planted temperature": FACTOR,
            "planted checks": planted,
            "caught within one check": sum("error" in c for c in hot),
            "message": next((c["error"] for c in hot if "error" in c), None),
        }
    return found


def _checked(gate: AgreementGate, engine: Any, learner: TorchLearner, seed: int) -> dict[str, Any]:
    try:
        seeded = replace(gate, probes=replace(gate.probes, seed=seed))
        return dict(seeded.check(engine, learner, step=1))
    except AgreementError as error:
        return {"error": str(error)}
