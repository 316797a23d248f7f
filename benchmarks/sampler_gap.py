"""How far are a step's trained tokens from what the sampler said of them, honest or not?

    python benchmarks/sampler_gap.py [KIND …] [--runs runs/sampler-gap]

The figures behind the defaults of `agreement.max_step_difference` and `agreement.min_ess`, whose
limits are lifted here. Written to benchmarks/results/sampler_gap.json: per kind the smallest,
median and largest value of 25 steps of parity-r1-zero.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median

from record import merge, origin, versions

from grpo.commands.train import train_recipe
from grpo.config.config import load

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "sampler_gap.json"
LIFTED = ["agreement.steps=0", "agreement.max_step_difference=0", "agreement.min_ess=0"]
SHORT = ["learner.max_steps=25", "eval.num_tasks=8", "eval.num_samples=1"]
LIAR = f"rollout.engine={ROOT / 'benchmarks' / 'lying_engine.py'}:make"
FIGURES = ("sampling/sampling_logp_difference/mean", "sampling/ess")
KINDS = {
    "sync": [],
    "sync, engine in bfloat16": ["rollout.dtype=bfloat16"],
    "one step off": ["schedule.mode=one_step_off"],
    "four steps behind": ["schedule.mode=async", "schedule.max_staleness=4"],
    "lie: twice the temperature": [LIAR, "rollout.engine_args={how: hot}"],
    "lie: log-probs off by 3 nats": [LIAR, "rollout.engine_args={how: nats}"],
    "lie: other tokens": [LIAR, "rollout.engine_args={how: tokens}"],
    "lie: a tenth of the tokens are others": [LIAR, "rollout.engine_args={how: tenth}"],
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help="; ".join(KINDS))
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "sampler-gap")
    asked = parser.parse_args()
    for kind in asked.kinds or KINDS:
        started = time.perf_counter()
        folder = asked.runs / f"{kind.replace(' ', '-')}-{time.time_ns()}"
        overrides = [*SHORT, *LIFTED, *KINDS[kind]]
        train_recipe(load("parity-r1-zero", [*overrides, f"run.dir={folder}"]))
        text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.strip("\n").split("\n")]
        found = {"overrides": KINDS[kind]} | {
            name: {
                "least": round(min(values), 4),
                "median": round(median(values), 4),
                "most": round(max(values), 4),
            }
            for name in FIGURES
            if (values := [line[name] for line in lines if name in line])
        }
        command = f"python benchmarks/sampler_gap.py {kind!r}"
        told = origin(command, time.perf_counter() - started, versions(["torch", "transformers"]))
        merge(OUT, kind, json.loads(json.dumps(found).replace(f"{ROOT}/", "")), told)
        print(kind, {name: found[name] for name in FIGURES})


if __name__ == "__main__":
    main()
