"""Are norm and gated activation as exact as another commit's, and sampler and learner as close?

    python benchmarks/formulas.py BASE

BASE (a commit) is checked out beside this one, and both are asked the same: the error of the
learner's formulas against float64 on the same numbers, and how far the learner's log-probs are from
the sampler's over some steps of parity-r1-zero in float32 and bfloat16 and of
smollm2-multiplication in bfloat16. Written to benchmarks/results/formulas.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from record import ROOT, merge, origin, versions

OUT = ROOT / "benchmarks" / "results" / "formulas.json"
SHORT = ["eval.num_tasks=2", "eval.num_samples=1", "parity.steps=0", "run.threads=1"]
RUNS = {
    "parity-r1-zero, float32": ("parity-r1-zero", ["learner.max_steps=8", "model.dtype=float32"]),
    "parity-r1-zero, bfloat16": ("parity-r1-zero", ["learner.max_steps=8", "model.dtype=bfloat16"]),
    "smollm2-multiplication, bfloat16": (
        "smollm2-multiplication",
        ["learner.max_steps=2", "learner.warmup_steps=0", "rollout.prompts_per_step=2"],
    ),
}
GAP = "sampling/sampling_logp_difference/"
ROWS, WIDTH = 512, 1536


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("base", nargs="?", help="the commit to compare with; none: errors, as JSON")
    base = parser.parse_args().base
    if base is None:
        print(json.dumps(errors()))
        return
    started = time.time()
    commit = git("rev-parse", base)
    with tempfile.TemporaryDirectory(prefix="formulas-") as folder:
        other = Path(folder) / "base"
        git("worktree", "add", "--quiet", "--detach", str(other), commit)
        (other / "models").mkdir(exist_ok=True)
        for model in (ROOT / "models").iterdir():
            (other / "models" / model.name).symlink_to(model.resolve())
        try:
            found = {who: asked(tree, Path(folder) / who) for who, tree in trees(other)}
        finally:
            git("worktree", "remove", "--force", str(other))
    told = origin(
        f"python benchmarks/formulas.py {commit[:10]}",
        time.time() - started,
        versions(("torch", "transformers")),
    )
    merge(OUT, commit[:10], found, told)
    print(json.dumps(found, indent=1))


def trees(other: Path) -> list[tuple[str, Path]]:
    """Both checkouts."""
    return [("base", other), ("this", ROOT)]


def asked(tree: Path, folder: Path) -> dict[str, Any]:
    """What the code of `tree` computes."""
    said = run([__file__], tree)
    gaps: dict[str, Any] = {}
    for name, (recipe, overrides) in RUNS.items():
        place = folder / name.replace(", ", "-")
        code = "import sys; from grpo.cli import main; sys.exit(main())"
        run(["-c", code, "train", recipe, *SHORT, *overrides, f"run.dir={place}"], tree)
        lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
        gaps[name] = {
            "mean": round(mean(line[f"{GAP}mean"] for line in lines), 6),
            "largest": max(line[f"{GAP}max"] for line in lines),
        }
    return {"error against float64": json.loads(said), "sampling_logp_difference": gaps}


def errors() -> dict[str, Any]:
    """{formula: mean and largest error, of a result's own size}, in float32 and bfloat16."""
    from grpo.kernels import layers

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, WIDTH, generator=generator) * 3
    weight = torch.randn(WIDTH, generator=generator)
    gate_up = torch.randn(ROWS, 2 * WIDTH, generator=generator) * 4
    found: dict[str, Any] = {}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        exact = torch.nn.functional.rms_norm(x.double(), (WIDTH,), weight.double(), 1e-5)
        found[f"norm, {name}"] = off(layers.rms_norm(x, weight, 1e-5, dtype)[0], exact)
        given = gate_up.to(dtype)
        gate, up = given.double().chunk(2, -1)
        exact = torch.nn.functional.silu(gate) * up
        found[f"gated activation, {name}"] = off(layers.swiglu(given), exact)
    return found


def off(found: torch.Tensor, exact: torch.Tensor) -> dict[str, float]:
    """Error over the size of each number."""
    error = (found.double() - exact).abs() / exact.abs()
    return {"mean": float(f"{error.mean():.4g}"), "largest": float(f"{error.max():.4g}")}


def run(arguments: list[str], tree: Path) -> str:
    """What a Python program says whose code is that of `tree`."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        env=environment,
        check=True,
        text=True,
        stdout=subprocess.PIPE,
    )
    return done.stdout


def git(*arguments: str) -> str:
    """What git says, from the root of this checkout."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
