"""Recipes through engine=vllm: held-out figures before and after, as with the embedded engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RUNS = (
    ("parity-r1-zero", 0),
    ("parity-r1-zero", 1),
    ("parity-r1-zero", 2),
    ("smollm2-multiplication", 0),
)


def measure() -> dict[str, Any]:
    """Summaries of the runs; those that are finished already are read, not repeated."""
    found = {}
    for recipe, seed in RUNS:
        folder = Path(os.environ["GRPO_BENCH_RUNS"]) / f"{recipe}-vllm-{seed}"
        if not (folder / "summary.json").exists():
            train(recipe, folder, [f"run.seed={seed}", "rollout.engine=vllm"])
        found[f"{recipe}, seed {seed}"] = figures(folder)
    return {"engine": "vllm", "runs": found}


def train(recipe: str, folder: Path, overrides: list[str]) -> None:
    """`grpo train` in a process of its own."""
    command = [sys.executable, "-m", "grpo.cli", "train", f"recipes/{recipe}.yaml"]
    subprocess.run([*command, f"run.dir={folder}", *overrides], cwd=ROOT, check=True)


def figures(folder: Path) -> dict[str, Any]:
    """What a finished run says of itself."""
    summary = json.loads((folder / "summary.json").read_text())
    provenance = json.loads((folder / "provenance.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    shown = ("greedy", "pass1", "pass1_ci", "mean_length", "rewards")
    return {
        "before": {k: v for k, v in summary["before"].items() if k in shown},
        "after": {k: v for k, v in summary["after"].items() if k in shown},
        "gain": summary["gain"],
        "steps": summary["steps"],
        "seconds": summary["seconds"],
        "largest agreement/difference_mean": max(
            x.get("agreement/difference_mean", 0.0) for x in lines
        ),
        "largest agreement/z": max(x.get("agreement/z", 0.0) for x in lines),
        "commit": provenance["commit"],
        "command": " ".join(w for w in provenance["command"] if not w.startswith("run.dir=")),
    }
