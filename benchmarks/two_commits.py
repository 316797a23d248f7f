"""Is this commit as fast on a CPU as another one, and does it train the same weights?

    python benchmarks/two_commits.py BASE [--repeats 7] [--model models/smollm2-135m-instruct]

BASE (a commit) is checked out beside this one. The scripts of `perf/` here time the learner, the
engine and whole steps of both, in turns in one run; medians and their ratio. Then each trains
parity-r1-zero for a few steps in float32 and in bfloat16, and the files of weights are
compared. Written to benchmarks/results/two_commits.json, section by section. The section `noise`
is this commit against itself: ratios nearer to 1 than that say nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perf.contest import Contender, Plan, contest
from record import ROOT, merge, origin, versions

RESULTS = ROOT / "benchmarks" / "results" / "two_commits.json"
TINY = "recipes/assets/parity-base"
SHORT = ["learner.max_steps=4", "eval.num_tasks=8", "eval.num_samples=1"]
TRAINED = {"float32": [*SHORT, "model.dtype=float32"], "bfloat16": [*SHORT, "model.dtype=bfloat16"]}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("base", help="the commit to compare with")
    parser.add_argument("--repeats", type=int, default=7, help="rounds of each; medians count")
    parser.add_argument("--model", default="models/smollm2-135m-instruct")
    arguments = parser.parse_args()
    started = time.time()
    with tempfile.TemporaryDirectory(prefix="two-commits-") as folder:
        other = Path(folder) / "base"
        git("worktree", "add", "--quiet", "--detach", str(other), arguments.base)
        try:
            base = git("rev-parse", arguments.base)
            found = {
                "base": base,
                "speed": speed(arguments, {"this": ROOT, "base": other}),
                "noise": speed(arguments, {"this": ROOT, "base": ROOT}),
                "weights": {kind: weights(kind, other, Path(folder)) for kind in TRAINED},
            }
        finally:
            git("worktree", "remove", "--force", str(other))
    said = f"python benchmarks/two_commits.py {base[:10]} --repeats {arguments.repeats}"
    packages = versions(("torch", "transformers"))
    merge(RESULTS, base[:10], found, origin(said, time.time() - started, packages))
    for name, ratio in found["speed"].items():
        print(f"{name}: {ratio['this over base']:.3f} of the base's time", end="; ")
        print(f"this commit against itself {found['noise'][name]['this over base']:.3f}")
    for kind, same in found["weights"].items():
        print(f"weights in {kind}: {'the same bytes' if same['same'] else 'OTHER BYTES'}")


def workloads(model: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """name -> script of perf/ and what it is given; the tiny model where it is mostly overhead."""
    learn = {"groups": 4, "samples": 8, "prompt": 44, "completion": 64, "kind": "fixed", "dead": 0}
    long = {**learn, "groups": 2, "prompt": 400, "completion": 192, "kind": "lognormal"}
    sample = {"prompts": 8, "samples": 8, "prompt": 44, "completion": 64, "kind": "fixed"}
    budget = {"tokens_per_micro_batch": 4096}
    real, tiny = {"model": model, "dtype": "bfloat16"}, {"model": TINY, "dtype": "float32"}
    short = {**learn, "groups": 32, "prompt": 17, "completion": 24}
    return {
        "learner, short prompts": ("learn_ours", {**real, **budget, "rollouts": learn}),
        "learner, long prompts": ("learn_ours", {**real, **budget, "rollouts": long}),
        "engine": ("gen_ours", {**real, **sample}),
        "learner, tiny": ("learn_ours", {**tiny, **budget, "rollouts": short}),
        "engine, tiny": ("gen_ours", {**tiny, **sample, "prompts": 32, "prompt": 17}),
    }


def speed(arguments: argparse.Namespace, trees: Mapping[str, Path]) -> dict[str, Any]:
    """{workload: both contenders, and the median over rounds of this one's time over the base's}.

    Rounds are compared one by one: what slows the machine down slows both contenders of a round.
    """
    plan = Plan(repeats=arguments.repeats, threads=os.cpu_count() or 1)
    found: dict[str, Any] = {}
    for name, (script, settings) in workloads(arguments.model).items():
        settings = settings | {"model": str((ROOT / settings["model"]).resolve())}
        print(f"-- {name}", flush=True)
        result = contest(
            [
                Contender(
                    name=who,
                    script=script,
                    settings=settings,
                    env={"PYTHONPATH": str(tree)},
                )
                for who, tree in trees.items()
            ],
            plan,
        )
        this, base = (result[who]["seconds"] for who in ("this", "base"))
        ratios = [a / b for a, b in zip(this, base, strict=True)]
        found[name] = {
            **{who: {k: r[k] for k in ("median", "seconds")} for who, r in result.items()},
            "this over base": round(statistics.median(ratios), 4),
        }
    return found


def weights(kind: str, other: Path, folder: Path) -> dict[str, Any]:
    """SHA-256 of the trained weights of both, and whether they are equal."""
    hashes = {who: trained(kind, tree, folder / f"{who}-{kind}") for who, tree in trees(other)}
    return {**hashes, "same": len(set(hashes.values())) == 1}


def trees(other: Path) -> list[tuple[str, Path]]:
    """Both checkouts."""
    return [("this", ROOT), ("base", other)]


def trained(kind: str, tree: Path, run: Path) -> str:
    """Train with the code of `tree`; the hash of the model's weights."""
    subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from grpo.cli import main; sys.exit(main())",
            "train",
            "parity-r1-zero",
            f"run.dir={run}",
            *TRAINED[kind],
        ],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    digest = hashlib.sha256()
    for file in sorted((run / "model").glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def git(*arguments: str) -> str:
    """What git says, from the root of this checkout."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
