"""parity-r1-zero in three types: whether it learns on a card, how fast, and how exactly.

Sampler and learner are one model computed in two ways; the gap is the difference of their log-probs
of sampled tokens, in nats.
"""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gpu.counts import peak_gb
from gpu.section import Result, Section, Setup, Step
from gpu.table import markdown, number, step_rows

DTYPES = ("float32", "bfloat16", "float16")
TINY = (
    *("learner.max_steps=2", "rollout.prompts_per_step=4", "rollout.num_generations=4"),
    *("eval.num_tasks=8", "eval.num_samples=1"),
)
GAP = "sampling/sampling_logp_difference"


def _run(dtype: str) -> Callable[[Setup], Result]:
    def measure(setup: Setup) -> Result:
        from grpo.commands.train import train_recipe
        from grpo.config.config import load
        from grpo.outside.terminal.console import Console

        folder = setup.folder / "parity" / dtype
        shutil.rmtree(folder, ignore_errors=True)  # of a step that was cut
        settings = [f"run.dir={folder}", f"model.dtype={dtype}", f"run.threads={setup.threads}"]
        recipe = load("parity-r1-zero", [*settings, *(TINY if setup.tiny else ())])
        summary = train_recipe(recipe, Console())
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        steps = [json.loads(line) for line in lines]
        return {
            "seconds": summary["seconds"],
            "steps": summary["steps"],
            "before": summary["before"]["greedy"],
            "after": summary["after"]["greedy"],
            "peak_gb": peak_gb(setup),
            **figures(steps),
        }

    return measure


def figures(steps: Sequence[Mapping[str, Any]]) -> Result:
    """Gaps and speeds of a run's steps; the first, which warms up, does not count for speed.

    mean_gap: the largest mean of a step. Speeds are medians of steps: completion tokens a second
    of sampling and scoring, tokens a second of the learner as it counts them.
    """
    warm = [step for step in steps[1:] or steps if "learner/tokens_per_second" in step]
    means = [step[f"{GAP}/mean"] for step in steps if f"{GAP}/mean" in step]
    largest = [step[f"{GAP}/max"] for step in steps if f"{GAP}/max" in step]
    sampled = [step["completions/num_tokens"] / step["time/rollout"] for step in warm]
    learned = [step["learner/tokens_per_second"] for step in warm]
    return {
        "mean_gap": max(means, default=None),
        "largest_gap": max(largest, default=None),
        "engine_tokens_per_second": statistics.median(sampled) if sampled else None,
        "learner_tokens_per_second": statistics.median(learned) if learned else None,
        "step_seconds": [step["step_time"] for step in steps],
    }


def _steps(_: Setup) -> list[Step]:
    return [Step(name=dtype, run=_run(dtype)) for dtype in DTYPES]


def _table(results: Mapping[str, Result]) -> str:
    heads = ("", "steps", "time", "accuracy", "largest gap", "largest mean of a step")
    heads += ("learner, tokens/s", "engine, tokens/s", "peak GB")
    rows = step_rows(
        results,
        {dtype: dtype for dtype in DTYPES},
        lambda r: r["steps"],
        lambda r: number(r["seconds"], ".1f", " s"),
        lambda r: f"{r['before']:.3f} to {r['after']:.3f}",
        lambda r: number(r["largest_gap"], ".2g"),
        lambda r: number(r["mean_gap"], ".2g"),
        lambda r: number(r["learner_tokens_per_second"]),
        lambda r: number(r["engine_tokens_per_second"]),
        lambda r: number(r["peak_gb"], ".2f"),
    )
    return markdown(heads, rows)


SECTION = Section(
    name="parity", title="parity-r1-zero, three types", minutes=2.5, steps=_steps, table=_table
)
