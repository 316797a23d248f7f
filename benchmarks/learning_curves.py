"""Run a recipe for several seeds and keep what came out: figures, curves, where they are from.

    python benchmarks/learning_curves.py RECIPE [--seeds 0 1 2] [--runs FOLDER] [section.key=value]

Writes recipes/results/<name>.json (summaries, curves, machine, versions, commit) and a PNG. Runs
that are finished already are read, not repeated, so a seed can be run elsewhere and collected here.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from grpo.commands.train import resume_run, train_recipe
from grpo.config.config import load

ROOT = Path(__file__).resolve().parent.parent
CURVES = {
    "reward": "reward",
    "accuracy": "accuracy (training)",
    "completions/mean_length": "mean length (tokens)",
    "frac_reward_zero_std": "groups without signal",
}

SHARES = ("accuracy", "frac_reward_zero_std")  # drawn from 0 to 1


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--collect", action="store_true", help="only read finished runs")
    arguments = parser.parse_intermixed_args()
    runs = [
        one_seed(arguments.recipe, seed, arguments.runs, arguments.overrides, arguments.collect)
        for seed in arguments.seeds
    ]
    name = load(arguments.recipe).name
    out = ROOT / "recipes" / "results" / name
    result = {
        "recipe": name,
        "command": f"python benchmarks/learning_curves.py {arguments.recipe} --seeds "
        + " ".join(map(str, [*arguments.seeds, *arguments.overrides])),
        "runs": [{key: run[key] for key in ("seed", "provenance", "summary")} for run in runs],
        "curves": [run["curves"] for run in runs],
    }
    out.parent.mkdir(exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    draw(runs, name, out.with_suffix(".png"))
    for run in runs:
        before, after = run["summary"]["before"], run["summary"]["after"]
        print(
            f"seed {run['seed']}: greedy {before['greedy']:.3f} -> {after['greedy']:.3f}, pass@1 "
            f"{before['pass1']:.3f} -> {after['pass1']:.3f} {after['pass1_ci']}, length "
            f"{before['mean_length']:.1f} -> {after['mean_length']:.1f}, gain "
            f"{run['summary']['gain']}, {run['summary']['seconds']:.0f} s"
        )


def one_seed(
    recipe: str, seed: int, runs: str, overrides: list[str], collect: bool
) -> dict[str, Any]:
    """Summary and curves of one seed, run, resumed or read as need be."""
    name = load(recipe).name
    folder = Path(runs) / f"{name}-seed{seed}"
    if not (folder / "summary.json").is_file():
        if collect:
            raise SystemExit(f"{folder} is not finished")
        if (folder / "resolved.json").is_file():
            resume_run(folder)
        else:
            train_recipe(load(recipe, [*overrides, f"run.seed={seed}", f"run.dir={folder}"]))
    last = max(folder.rglob("metrics.jsonl"), key=lambda path: path.stat().st_mtime)
    lines = [json.loads(line) for line in last.read_text().splitlines()]
    curves = {name: [round(line[name], 4) for line in lines if name in line] for name in CURVES}
    summary = json.loads((folder / "summary.json").read_text())
    summary["model"] = ""  # a path of the machine it was made on
    made = json.loads((folder / "provenance.json").read_text())
    made = {key: made[key] for key in ("commit", "versions", "machine")}
    return {"seed": seed, "provenance": made, "summary": summary, "curves": curves}


def draw(runs: list[dict[str, Any]], name: str, path: Path) -> None:
    """One panel a curve: thin lines are seeds, the thick one their mean."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    present = [key for key in CURVES if all(run["curves"][key] for run in runs)]
    figure, axes = plt.subplots(1, len(present), figsize=(3.6 * len(present), 3.0))
    for axis, key in zip(np.atleast_1d(axes), present, strict=True):
        series = [run["curves"][key] for run in runs]
        steps = range(1, min(map(len, series)) + 1)
        for values in series:
            axis.plot(range(1, len(values) + 1), values, color="tab:blue", alpha=0.35, lw=1)
        axis.plot(steps, np.mean([v[: len(steps)] for v in series], axis=0), color="tab:blue", lw=2)
        axis.set_title(CURVES[key], fontsize=10)
        axis.set_xlabel("step", fontsize=9)
        axis.grid(alpha=0.3)
        if key in SHARES:
            axis.set_ylim(-0.03, 1.03)
    seeds = ", ".join(str(run["seed"]) for run in runs)
    figure.suptitle(f"{name}, seeds {seeds}", fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
