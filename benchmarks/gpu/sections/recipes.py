"""SmolLM2 learns the multiplication table: 40 steps of its recipe, with either engine."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from perf.contest import environment

from gpu.assets import SMOLLM2, model
from gpu.figures import failed_rows
from gpu.section import Result, Section, Setup, Step
from gpu.table import markdown, number
from gpu.turns import plan_of
from gpu.vllm_environment import ENVIRONMENT

GAP = "sampling/sampling_logp_difference/mean"  # TRL's name: |sampler - learner| a token
STEPS = 40
# {step: overrides}; vLLM's default of 0.45 of the card is more than a model this small needs
ENGINES: dict[str, dict[str, Any]] = {
    "torch": {},
    "vllm": {"rollout.engine": "vllm", "rollout.engine_args": {"gpu_memory_utilization": 0.3}},
}
TINY = {"rollout.prompts_per_step": 8, "eval.num_tasks": 8, "eval.num_samples": 1}


def steps(_: Setup) -> Sequence[Step]:
    """A step an engine; about 100 s each."""
    return [
        Step(
            name=engine,
            run=partial(train, engine=engine),
            needs=("smollm2", *(("vllm",) if engine == "vllm" else ())),
        )
        for engine in ENGINES
    ]


def train(setup: Setup, *, engine: str) -> Result:
    """The recipe from its start, as `grpo train` runs it. Raises RuntimeError where that fails."""
    name = "parity-r1-zero" if setup.tiny else "smollm2-multiplication"
    folder = setup.folder / "runs" / f"{name}-{engine}"
    shutil.rmtree(folder, ignore_errors=True)  # of a call that was cut
    overrides: dict[str, Any] = {
        "run.dir": str(folder),
        "run.threads": setup.threads,
        "model.path": str(model(setup, SMOLLM2)),
        "learner.max_steps": 2 if setup.tiny else STEPS,
        **ENGINES[engine],
        **(TINY if setup.tiny else {}),
    }
    if setup.device == "cpu":
        overrides.pop("rollout.engine_args", None)
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "grpo.cli", "train", name, *arguments(overrides)],
        env=environment(plan_of(setup)) | (ENVIRONMENT if engine == "vllm" else {}),
        stdin=subprocess.DEVNULL,
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"grpo train {name} ended with {done.returncode}; the log says why")
    return {"recipe": name, "wall seconds": round(seconds, 1), **outcome(folder)}


def arguments(overrides: Mapping[str, Any]) -> list[str]:
    """Overrides as the command line takes them."""
    return [
        f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in overrides.items()
    ]


def outcome(folder: Path) -> Result:
    """Accuracy before and after, time of the steps, and the gap between sampler and learner."""
    summary = json.loads((folder / "summary.json").read_text())
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    metrics = [line for line in map(json.loads, lines) if GAP in line]
    gaps = [line[GAP] for line in metrics]
    return {
        "steps": summary["steps"],
        "train seconds": round(summary["seconds"], 1),
        **{when: summary[when]["pass1"] for when in ("before", "after")},
        "greedy": [summary[when]["greedy"] for when in ("before", "after")],
        "gap, mean": sum(gaps) / len(gaps) if gaps else None,
        "gap, largest": max(gaps, default=None),
    }


def table(results: Mapping[str, Result]) -> str:
    """A row an engine."""
    heads = (
        "engine",
        "pass@1 before",
        "after",
        "steps",
        "seconds of the steps",
        "of the whole command",
        "gap of log-probs, mean and largest of a step",
    )
    return markdown(heads, _rows(results, len(heads)))


def _rows(results: Mapping[str, Result], width: int) -> Iterator[list[Any]]:
    for engine in ENGINES:
        yield from failed_rows(results, engine, [engine], width)
        found = results.get(engine, {})
        if "before" in found:
            yield [
                engine,
                number(found["before"], ".3f"),
                number(found["after"], ".3f"),
                number(found["steps"]),
                number(found["train seconds"], ".0f"),
                number(found["wall seconds"], ".0f"),
                f"{number(found['gap, mean'], '.2e')}, {number(found['gap, largest'], '.2e')}",
            ]


SECTION = Section(
    name="recipes",
    title="SmolLM2-135M learns to multiply: 40 steps of recipes/smollm2-multiplication.yaml",
    minutes=3.5,
    steps=steps,
    table=table,
)
