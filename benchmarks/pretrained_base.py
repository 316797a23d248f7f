"""Does recipes/parity-pretrain.yaml re-create the base that is shipped?

    python benchmarks/pretrained_base.py [--seeds 0 1 2] [--runs FOLDER]

Pretrains a base per seed (finished runs are read, not repeated), evaluates each and the shipped
one on the held-out tasks of parity-r1-zero, and writes recipes/results/parity-pretrain.json. A
figure of the shipped base is re-created if it lies in the 95% prediction interval of one more base,
from the mean and standard deviation over the seeds (Student's t; with three seeds that is a wide
one, so the figures themselves are printed too).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from learning_curves import ROOT

from grpo.commands.eval_recipe import evaluate_model
from grpo.commands.train import train_recipe
from grpo.config.config import load
from grpo.rundir.provenance import provenance

FIGURES = ("greedy", "pass1", "mean_length")
STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # 97.5% quantile by number of seeds


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", default="runs")
    arguments = parser.parse_args()
    bases: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        folder = Path(arguments.runs) / f"parity-pretrain-seed{seed}"
        if not (folder / "summary.json").is_file():
            train_recipe(load("parity-pretrain", [f"run.seed={seed}", f"run.dir={folder}"]))
        summary = json.loads((folder / "summary.json").read_text())
        found = {"seed": seed, "loss": summary["loss"], "seconds": summary["seconds"]}
        bases.append(found | figures(folder / "model"))
    shipped = figures(ROOT / "recipes" / "assets" / "parity-base")
    intervals = {name: prediction([base[name] for base in bases]) for name in FIGURES}
    inside = {n: intervals[n][0] <= shipped[n] <= intervals[n][1] for n in FIGURES}
    result = {
        "command": "python benchmarks/pretrained_base.py --seeds "
        + " ".join(map(str, arguments.seeds)),
        **{key: value for key, value in provenance().items() if key != "command"},
        "shipped": shipped,
        "bases": bases,
        "prediction_interval": intervals,
        "shipped_inside": inside,
    }
    out = ROOT / "recipes" / "results" / "parity-pretrain.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    for base in [*bases, {"seed": "shipped", **shipped}]:
        print(base["seed"], {name: round(base[name], 4) for name in FIGURES})
    print("intervals", intervals, "shipped inside", inside)


def figures(model: Path) -> dict[str, Any]:
    """Held-out figures of one base."""
    found = evaluate_model(model, load("parity-r1-zero", ["eval.num_tasks=2048"]))
    return {name: found[name] for name in (*FIGURES, "pass1_ci")}


def prediction(values: list[float]) -> list[float]:
    """[low, high] of the 95% prediction interval of one more draw."""
    n = len(values)
    half = STUDENT_T[n] * float(np.std(values, ddof=1)) * (1 + 1 / n) ** 0.5
    return [round(float(np.mean(values)) - half, 4), round(float(np.mean(values)) + half, 4)]


if __name__ == "__main__":
    main()
