"""Whole steps of ours through the wiring of a recipe: sample, score, learn, deliver weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from grpo.commands.memory import keep_freed_memory
from grpo.config.config import load
from grpo.config.schema import RLStage
from grpo.stages.wiring import build_parts, build_rl_sampler
from grpo.training.loop import train_step
from perf.learning import TOKENS_PER_MICRO_BATCH
from perf.worker import Settings, now, serve

ROOT = Path(__file__).resolve().parent.parent.parent
REWARD = f"{Path(__file__).resolve().parent / 'reward.py'}:coin"


def recipe_of(settings: Settings) -> Any:
    """The recipe both sides take their prompts from, at the sizes asked for."""
    overrides = {
        "model.path": settings["model"],
        "rollout.engine": settings.get("engine", "torch"),
        "rollout.engine_args": json.dumps(settings.get("engine_args", {})),
        "rollout.prompts_per_step": settings["prompts"],
        "rollout.num_generations": settings["samples"],
        "rollout.max_completion_length": settings["completion"],
        "learner.learning_rate": 1e-6,
        "learner.max_steps": 1000,
        "learner.tokens_per_micro_batch": settings.get(
            "tokens_per_micro_batch", TOKENS_PER_MICRO_BATCH
        ),
        "agreement.steps": 0,
        "run.threads": settings["threads"],
    }
    found = load(
        ROOT / "recipes" / settings["recipe"],
        [f"{key}={value}" for key, value in overrides.items()],
    )
    stage = found.stages[0]
    assert isinstance(stage, RLStage)
    spec = stage.rewards[0].model_copy(update={"name": REWARD, "args": {}, "label": "coin"})
    stage = stage.model_copy(update={"rewards": (spec,)})
    return found.model_copy(update={"stages": (stage,)})


def prepare(settings: Settings) -> Any:
    """Everything a step uses; a repetition is one step."""
    keep_freed_memory()  # as `grpo train` does
    recipe = recipe_of(settings)
    (stage,) = recipe.stages
    sampler = build_rl_sampler(stage, recipe)
    # Every completion takes all its tokens, as on the other side.
    sampler = replace(sampler, sampling=replace(sampler.sampling, eos_ids=()))
    parts = build_parts(stage, recipe, sampler)
    parts.rollouts.deliver(parts.learner, 0)
    step = 0

    def repetition() -> dict[str, Any]:
        nonlocal step
        step += 1
        started = now(settings)
        done = train_step(parts, step)
        seconds = now(settings) - started
        shown = ("time/rollout", "time/learn", "time/weights", "frac_reward_zero_std")
        made = sum(len(r.completion) for g in done.groups for r in g.rollouts)
        prompt = sum(len(g.prompt.ids) for g in done.groups) / len(done.groups)
        return {
            "seconds": seconds,
            "tokens": made,
            "prompt_tokens": prompt,
            **{name: done.metrics[name] for name in shown},
        }

    return repetition


if __name__ == "__main__":
    serve(prepare)
