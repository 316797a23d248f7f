"""`grpo train` on parity: steps, logs, ledger and checkpoint, without the held-out evaluations."""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path
from typing import Any

from grpo.commands.train import train_recipe
from grpo.config.config import load
from grpo.outside.terminal.console import Console
from perf.worker import Settings, serve


def prepare(settings: Settings) -> Any:
    """A repetition is a run of its own, from the shipped base."""
    steps = settings["steps"]

    def repetition() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            overrides = {
                "run.dir": f"{folder}/run",
                "run.threads": settings["threads"],
                "learner.max_steps": steps,
                "eval.num_tasks": 16,
                "eval.num_samples": 1,
            }
            recipe = load("parity-r1-zero", [f"{k}={v}" for k, v in overrides.items()])
            summary = train_recipe(recipe, Console(file=io.StringIO()))
            metrics = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
        last = json.loads(metrics[-1])
        return {
            "seconds": summary["seconds"],
            "steps": summary["steps"],
            "accuracy": last["rewards/accuracy/mean"],
            "frac_reward_zero_std": last["frac_reward_zero_std"],
        }

    return repetition


if __name__ == "__main__":
    serve(prepare)
