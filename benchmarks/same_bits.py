"""Does one seed give one model? Six runs of each kind, three at a time on all cores.

    python benchmarks/same_bits.py [KIND …] [--runs 6] [--at-once 3] [--folder runs/same-bits]

Each run is a process of its own with as many threads as the machine has cores, so that the runs
disturb one another as much as they can. Written: how many different models and metrics came out,
to benchmarks/results/same_bits.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from record import merge, origin, versions

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "same_bits.json"
SHORT = ["learner.max_steps=6", "eval.num_tasks=16", "eval.num_samples=2"]
SMOLLM2 = "smollm2-multiplication"
# kind -> (recipe, overrides, environment)
KINDS: dict[str, tuple[str, Sequence[str], dict[str, str]]] = {
    "parity, whole recipe": ("parity-r1-zero", [], {}),
    "without compiled kernels": ("parity-r1-zero", SHORT, {"GRPO_NATIVE": "0"}),
    "bfloat16": ("parity-r1-zero", [*SHORT, "model.dtype=bfloat16"], {}),
    "prompts not shared": ("parity-r1-zero", [*SHORT, "learner.share_prompts=false"], {}),
    "gspo, KL, four optimizer steps": (
        "parity-r1-zero",
        [
            *SHORT,
            "algorithm.loss_type=gspo",
            "algorithm.beta=0.01",
            "algorithm.num_iterations=2",
            "algorithm.num_minibatches=2",
        ],
        {},
    ),
    "one step off": ("parity-r1-zero", [*SHORT, "schedule.mode=one_step_off"], {}),
    "adapter": ("parity-r1-zero", [*SHORT, "model.lora.rank=4"], {}),
    "SmolLM2, bfloat16": (
        SMOLLM2,
        ["learner.max_steps=2", "rollout.prompts_per_step=4", "eval.num_tasks=4"],
        {},
    ),
}
TIMED = ("time", "step_time", "tokens_per_second", "learner/tokens_per_second")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--runs", type=int, default=6)
    parser.add_argument("--at-once", type=int, default=3)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "same-bits")
    asked = parser.parse_args()
    threads = os.cpu_count() or 1
    apart = 0
    for kind in asked.kinds or KINDS:
        started = time.perf_counter()
        folder = asked.folder / kind.replace(" ", "-").replace(",", "")
        shutil.rmtree(folder, ignore_errors=True)
        with ThreadPoolExecutor(asked.at_once) as pool:
            jobs = [
                pool.submit(one_run, kind, folder / str(i), asked.seed, threads)
                for i in range(asked.runs)
            ]
            runs = [job.result() for job in jobs]
        models, metrics = ({run[part] for run in runs} for part in ("model", "metrics"))
        recipe, overrides, environment = KINDS[kind]
        found = {
            "recipe": recipe,
            "overrides": list(overrides),
            "environment": environment,
            "seed": asked.seed,
            "at once": asked.at_once,
            "threads of each": threads,
            "different models": len(models),
            "different metrics": len(metrics),
            "runs": runs,
        }
        command = f"python benchmarks/same_bits.py {kind!r} --runs {asked.runs}"
        told = origin(command, time.perf_counter() - started, versions(["torch", "transformers"]))
        merge(OUT, kind, found, told)
        apart += len(models) > 1 or len(metrics) > 1
        print(f"{kind}: {len(models)} model(s), {len(metrics)} metrics of {len(runs)} runs")
    sys.exit(bool(apart))


def one_run(kind: str, folder: Path, seed: int, threads: int) -> dict[str, str]:
    """Hashes of the trained model and of the metrics that no clock decides."""
    recipe, overrides, environment = KINDS[kind]
    command = [sys.executable, "-m", "grpo.cli", "train", recipe, *overrides]
    command += [f"run.seed={seed}", f"run.dir={folder}", f"run.threads={threads}"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        # threads that wait for one another without spinning: three runs at once end some day
        env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(
            f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}"
        )
    model = (folder / "model" / "model.safetensors").read_bytes()
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").strip("\n").split("\n")
    steady = [
        {k: v for k, v in json.loads(line).items() if not k.startswith(("time", "schedule/"))}
        for line in lines
    ]
    plain = [{k: v for k, v in line.items() if k not in TIMED} for line in steady]
    return {
        "model": hashlib.sha256(model).hexdigest(),
        "metrics": hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest(),
    }


if __name__ == "__main__":
    main()
