"""SmolLM2 through two vLLM engines on Ray, and sampled one step ahead: short real runs.

The first STEPS steps of the recipe, with a small evaluation. With one_step_off the share of a step
in which engine and learner both worked is reported, and the step time beside that in turns; on one
machine both compute on the same cores.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from rollout_learning import train

STEPS, WARM_UP = 10, 2
SHORT = [f"learner.max_steps={STEPS}", "eval.num_tasks=4", "eval.num_samples=4"]
RUNS = {
    "rollout.engine=vllm rollout.workers=2 rollout.backend=ray": ["run.threads=2"],
    "schedule.mode=one_step_off": ["run.threads=1"],
    "schedule.mode=sync": ["run.threads=1"],
}


def measure() -> dict[str, Any]:
    """Medians over the steps after the first two."""
    found = {}
    for command, settings in RUNS.items():
        name = command.replace(" ", "-").replace("rollout.", "").replace("schedule.", "")
        folder = Path(os.environ["GRPO_BENCH_RUNS"]) / f"commands-{name}"
        if not (folder / "summary.json").exists():
            train("smollm2-multiplication", folder, [*SHORT, *settings, *command.split()])
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        found[command] = {
            "steps": len(lines),
            "settings": settings,
            **{
                key: round(float(np.median([line[key] for line in lines[WARM_UP:]])), 3)
                for key in (
                    "step_time",
                    "time/learn",
                    "time/weights",
                    "tokens_per_second",
                    "schedule/learner_idle",
                    "schedule/rollout_idle",
                    "schedule/overlap",
                    "staleness/max",
                    "sampling/ess",
                    "sampling/sampling_logp_difference/mean",
                )
            },
            "agreement/difference_mean at the start": lines[0].get("agreement/difference_mean"),
            "agreement/z at the start": lines[0].get("agreement/z"),
        }
    return {"recipe": "smollm2-multiplication", "runs": found}
