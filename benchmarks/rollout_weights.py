"""Planted faults on the way of the weights into vLLM: with the guards on, and with them off.

With the guards on, the run has to stop at the delivery that the fault hits, with an error that
names what is wrong. With them off (`tests/rollout/vllm/faults.py` makes the engine acknowledge what
the learner expects) the same fault must let training go on: that is what the guards are for. What
the engine then samples with is compared with the learner: the difference nobody would have seen.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from grpo.config.config import load
from grpo.errors import GrpoError
from grpo.stages.wiring import build_parts, build_rl_sampler
from grpo.training.loop import TrainerParts, train_step
from tests.rollout.vllm.faults import ADAPTER_FAULTS, WEIGHTS_FAULTS, fault, guard_off

ROOT = Path(__file__).resolve().parent.parent
STEPS = 3
SETTINGS = [
    "rollout.engine=vllm",
    f"learner.max_steps={STEPS}",
    "eval.num_tasks=8",
    "rollout.prompts_per_step=8",
    "agreement.steps=0",  # the acknowledgment alone has to find them
]
ADAPTER = ["model.lora.rank=8", "learner.learning_rate=1e-2"]


def measure() -> dict[str, Any]:
    """For every fault: the error with the guards on, the steps taken with them off."""
    torch.set_num_threads(os.cpu_count() or 1)
    found: dict[str, Any] = {}
    for names, overrides in ((WEIGHTS_FAULTS, []), (ADAPTER_FAULTS, ADAPTER)):
        recipe = load(ROOT / "recipes" / "parity-r1-zero.yaml", [*SETTINGS, *overrides])
        (stage,) = recipe.stages
        sampler = build_rl_sampler(stage, recipe)
        try:
            for name in names:
                found[name] = {}
                for guarded in (True, False):
                    parts = build_parts(stage, recipe, sampler)
                    outcome = train(parts, sampler.engine, name, guarded)
                    parts.rollouts.close()
                    found[name]["guards on" if guarded else "guards off"] = outcome
        finally:
            sampler.engine.close()
    return {"model": "parity-base (0.86M), float32, vLLM CPU", "steps": STEPS, "faults": found}


def train(parts: TrainerParts, engine: Any, name: str, guarded: bool) -> dict[str, Any]:
    """Deliver once without the fault, then train with it; how far it came."""
    done: list[Any] = []
    parts.rollouts.deliver(parts.learner, 0)
    with ExitStack() as planted:
        if not guarded:
            planted.enter_context(
                guard_off(engine, lambda: parts.learner.version(), lambda: parts.learner.canary())
            )
        planted.enter_context(fault(engine, name))
        try:
            for step in range(1, STEPS + 1):
                done.append(train_step(parts, step))
        except GrpoError as error:
            kind = type(error).__name__
            return {"stopped in step": len(done) + 1, "error": f"{kind}: {error}"}
        except Exception as error:
            return {"crashed in step": len(done) + 1, "error": f"{type(error).__name__}: {error}"}
    gap = [step.metrics["sampling/sampling_logp_difference/mean"] for step in done]
    return {
        "steps taken": len(done),
        "mean |sampler - learner| log-prob by step": [round(x, 6) for x in gap],
    }
