"""One script of TRL's under both imports: the curves over seeds, and how fast each trains.

    python benchmarks/trl_dropin.py [--task parity|length] [--seeds 0 1 2]

Every seed trains once under each import, in turns, in a process of its own with two threads. At
every logged step the 95% intervals of the two means over seeds (Student's t) should overlap. The
speed is that of the steps after the first, in which libraries are still loaded. Writes
benchmarks/results/trl_dropin.json, a section a task, and trl_dropin_TASK.png. The task `length`
needs models/smollm2-135m-instruct.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import record

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("trl", "grpo")
CURVES = {
    "reward": "reward",
    "completions/mean_length": "mean length (tokens)",
    "loss": "loss",
}
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 8: 2.365, 10: 2.262}  # 97.5%
BAR = 4.0  # times as fast

# The script, as a user of TRL writes it. PACKAGE is the only word that differs.
SCRIPT = """
import torch
from datasets import Dataset
from PACKAGE import GRPOConfig, GRPOTrainer

torch.set_num_threads(2)

def parity(completions, answer, **kwargs):
    return [float(f"<answer>{a}</answer>" in c) for c, a in zip(completions, answer)]

def near_40_characters(completions, **kwargs):
    return [-abs(40 - len(c[0]["content"])) / 40 for c in completions]

numbers = [n * 2654435761 % 65536 for n in range(1, 2049)]
if TASK == "parity":
    rows = [{"prompt": f"{n:016b}=", "answer": str(n.bit_count() % 2)} for n in numbers]
    reward = parity
else:
    things = "rain bread iron music trees money salt glass sleep birds".split()
    questions = [f"What is {a}, and what has it to do with {b}?" for a in things for b in things]
    rows = [{"prompt": [{"role": "user", "content": question}]} for question in questions]
    reward = near_40_characters

trainer = GRPOTrainer(
    model=MODEL,
    reward_funcs=reward,
    args=GRPOConfig(
        output_dir="out",
        seed=SEED,
        bf16=False,
        use_cpu=True,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        gradient_checkpointing=False,
        **SETTINGS,
    ),
    train_dataset=Dataset.from_list(rows),
)
trainer.train()
history = trainer.state.log_history
"""
TASKS: dict[str, dict[str, Any]] = {
    "parity": {
        "MODEL": str(ROOT / "recipes" / "assets" / "parity-base"),
        "SETTINGS": {
            "num_generations": 8,
            "per_device_train_batch_size": 128,
            "max_completion_length": 32,
            "max_steps": 20,
            "learning_rate": 3e-4,
        },
    },
    "length": {
        "MODEL": str(ROOT / "models" / "smollm2-135m-instruct"),
        "SETTINGS": {
            "num_generations": 8,
            "per_device_train_batch_size": 16,
            "max_completion_length": 48,
            "max_steps": 6,
            "learning_rate": 2e-5,
        },
    },
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=list(TASKS), default="parity")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--one", choices=PACKAGES, help="train one seed here and print its log")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(trained(given.one, given.task, given.seeds[0])))
        return
    began, load = time.time(), os.getloadavg()
    runs: dict[str, list[list[dict[str, Any]]]] = {package: [] for package in PACKAGES}
    for seed in given.seeds:
        for package in PACKAGES if seed % 2 == 0 else PACKAGES[::-1]:
            runs[package].append(alone(package, given.task, seed))
            print(f"seed {seed}, {package}: {seconds(runs[package][-1]):.1f} s", flush=True)
    found = compared(runs) | {
        "seeds": given.seeds,
        "settings": TASKS[given.task]["SETTINGS"],
        "load": {"before": round(load[0], 1), "after": round(os.getloadavg()[0], 1)},
    }
    command = f"python benchmarks/trl_dropin.py --task {given.task}"
    versions = record.versions(("torch", "transformers", "trl"))
    origin = record.origin(command, time.time() - began, versions)
    record.merge(RESULTS / "trl_dropin.json", given.task, found, origin)
    draw(found["curves"], RESULTS / f"trl_dropin_{given.task}.png", given.task)
    print(
        f"{found['overlapping']} of {found['compared']} intervals overlap; "
        f"{found['times_as_fast']:.2f}x as fast as TRL (bar: {BAR}x), load {load[0]:.1f}"
    )


def trained(package: str, task: str, seed: int) -> list[dict[str, Any]]:
    """The log of one training here, a line a step."""
    names: dict[str, Any] = {"TASK": task, "SEED": seed, **TASKS[task]}
    Path("script.py").write_text(SCRIPT.replace("PACKAGE", package))
    history = runpy.run_path("script.py", init_globals=names)["history"]
    return [line for line in history if "reward" in line]


def alone(package: str, task: str, seed: int) -> list[dict[str, Any]]:
    """The same in a process and a folder of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--one", package, "--task", task]
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "2",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [*command, "--seeds", str(seed)],
            cwd=folder,
            env=environment,
            text=True,
            capture_output=True,
            check=False,
        )
    if done.returncode:
        raise SystemExit(f"{package}, seed {seed} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def seconds(lines: Sequence[dict[str, Any]]) -> float:
    """Of all steps but the first."""
    return sum(line["step_time"] for line in lines[1:])


def compared(runs: dict[str, list[list[dict[str, Any]]]]) -> dict[str, Any]:
    """Curves with intervals, how many overlap, and the ratio of the times."""
    curves: dict[str, Any] = {}
    overlapping = total = 0
    for name in CURVES:
        both = {
            package: interval([[x[name] for x in run] for run in runs[package]])
            for package in PACKAGES
        }
        low, high = (np.array([both[p][bound] for p in PACKAGES]) for bound in ("low", "high"))
        meets = low.max(axis=0) <= high.min(axis=0) + 1e-12
        overlapping, total = overlapping + int(meets.sum()), total + len(meets)
        curves[name] = both | {"apart_at": [int(step) + 1 for step in np.flatnonzero(~meets)]}
    times = {package: [round(seconds(run), 2) for run in runs[package]] for package in PACKAGES}
    ratio = float(np.median(times["trl"]) / np.median(times["grpo"]))
    return {
        "curves": curves,
        "compared": total,
        "overlapping": overlapping,
        "seconds": times,
        "times_as_fast": round(ratio, 2),
    }


def interval(values: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    """Mean over runs and its 95% interval, at every step. values: [runs, steps]."""
    found = np.array(values, dtype=float)
    half = STUDENT[len(found)] * found.std(axis=0, ddof=1) / math.sqrt(len(found))
    mean = found.mean(axis=0)
    return {
        key: [round(float(v), 5) for v in line]
        for key, line in (("mean", mean), ("low", mean - half), ("high", mean + half))
    }


def draw(curves: dict[str, Any], file: Path, title: str) -> None:
    """A panel a figure, both packages with their intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(CURVES), 3), layout="constrained")
    figure.suptitle(f"{title}: mean over seeds and 95% interval")
    for axis, (name, label) in zip(figure.subplots(1, len(CURVES)), CURVES.items(), strict=True):
        for package, color in zip(PACKAGES, ("tab:orange", "tab:blue"), strict=True):
            one = curves[name][package]
            steps = range(1, len(one["mean"]) + 1)
            axis.plot(steps, one["mean"], color=color, label=package)
            axis.fill_between(steps, one["low"], one["high"], color=color, alpha=0.2)
        axis.set_xlabel("step")
        axis.set_title(label)
        axis.legend()
    figure.savefig(file, dpi=100)


if __name__ == "__main__":
    main()
