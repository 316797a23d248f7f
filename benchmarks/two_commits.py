"""Is this commit as fast on a CPU as another one, and does it train the same weights?

    python benchmarks/two_commits.py BASE [--repeats 7] [--model models/smollm2-135m-instruct]

BASE (a commit) is checked out beside this one. The scripts of `perf/` here time the learner, the
engine and the hash of weights of both. A round is this commit, the base twice, and this commit
again, so that a machine that drifts favors neither; the ratio is the median over rounds. Beside it
stands `noise`, the second process of each commit over its first: ratios nearer to 1 than that say
nothing. Then each trains parity-r1-zero for a few steps in float32 and in bfloat16, and the files
of weights are compared. Written to benchmarks/results/two_commits.json.
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
from collections.abc import Sequence
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
                "speed": speed(arguments, other),
                "weights": {kind: weights(kind, other, Path(folder)) for kind in TRAINED},
            }
        finally:
            git("worktree", "remove", "--force", str(other))
    said = f"python benchmarks/two_commits.py {base[:10]} --repeats {arguments.repeats}"
    packages = versions(("torch", "transformers"))
    merge(RESULTS, base[:10], found, origin(said, time.time() - started, packages))
    for name, ratio in found["speed"].items():
        print(f"{name}: {ratio['this over base']:.3f} of the base's time, noise {ratio['noise']}")
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
        "hash of weights": ("hash_weights", real),
        "engine, tiny": ("gen_ours", {**tiny, **sample, "prompts": 32, "prompt": 17}),
    }


def speed(arguments: argparse.Namespace, other: Path) -> dict[str, Any]:
    """{workload: seconds of the four processes of every round, and the two ratios}."""
    plan = Plan(repeats=arguments.repeats, threads=os.cpu_count() or 1)
    order = {"this": ROOT, "base": other, "base again": other, "this again": ROOT}
    found: dict[str, Any] = {}
    for name, (script, settings) in workloads(arguments.model).items():
        settings = settings | {"model": str((ROOT / settings["model"]).resolve())}
        print(f"-- {name}", flush=True)
        contenders = [
            Contender(name=who, script=script, settings=settings, env={"PYTHONPATH": str(tree)})
            for who, tree in order.items()
        ]
        seconds = {who: record["seconds"] for who, record in contest(contenders, plan).items()}
        rounds = list(zip(*(seconds[who] for who in order), strict=True))
        found[name] = {
            "seconds": seconds,
            "this over base": median([(a + d) / (b + c) for a, b, c, d in rounds]),
            "noise": [
                median([d / a for a, _, _, d in rounds]),
                median([c / b for _, b, c, _ in rounds]),
            ],
        }
    return found


def median(values: Sequence[float]) -> float:
    """To four places."""
    return round(statistics.median(values), 4)


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
