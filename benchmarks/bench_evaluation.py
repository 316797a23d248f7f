"""The figures of an evaluation against closed forms, and GSM8K scored over recorded completions.

    python benchmarks/bench_evaluation.py [--data FOLDER] [--out FILE.json]

Outcomes are planted, so that every figure has a value that can be written down: pass@k over all
outcomes of a binomial, the bootstrap's variance, the coverage of its intervals on correlated
samples, maj@k by enumeration with ties. FOLDER holds gsm8k/test.jsonl as published (MIT): its
worked solutions become recorded completions, right as they are and wrong with another last number,
in the formats that models write. Writes benchmarks/results/evaluation.json; exits 1 if a bar is
missed. One thread, about a minute.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product
from math import comb, factorial, prod
from pathlib import Path
from typing import Any

import numpy as np
from record import merge, origin, versions

from grpo.data.published import gsm8k
from grpo.evaluation.statistics import (
    clustered_bootstrap,
    clustered_stderr,
    maj_at_k,
    paired_difference,
    pass_at_k,
)
from grpo.rewards.math.reward import Math
from grpo.types import Task

RESULTS = Path(__file__).parent / "results" / "evaluation.json"
FORMATS: dict[str, Callable[[str, str], str]] = {
    "box": lambda thought, answer: f"{thought}\nThe answer is $\\boxed{{{answer}}}$.",
    "tags": lambda thought, answer: f"<think>{thought}</think>\n<answer>{answer}</answer>",
    "thought, then box": lambda thought, answer: (
        f"<think>\\boxed{{0}}? {thought}</think> \\boxed{{{answer}}}"
    ),
    "last number": lambda thought, answer: f"{thought}\nThe answer is {answer}.",  # lenient alone
}


def check_pass_at_k() -> dict[str, Any]:
    """Largest |E[pass@k] - (1 - (1-p)^k)| over every outcome of Binomial(n, p), all k <= n."""
    worst, cases = 0.0, 0
    for n, p in product((1, 2, 4, 16, 64), (0.01, 0.3, 0.5, 0.9)):
        chances = [comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
        for k in range(1, n + 1):
            mean = sum(chance * pass_at_k(n, c, k) for c, chance in enumerate(chances))
            worst, cases = max(worst, abs(mean - (1 - (1 - p) ** k))), cases + 1
    return {"cases": cases, "largest error": worst, "bar": "1e-12", "passed": worst < 1e-12}


def check_majority() -> dict[str, Any]:
    """maj@k of three answers, one right, against the multinomial sum with ties drawn evenly."""
    chances = {"right": 0.5, "wrong": 0.3, "other": 0.2}
    worst = 0.0
    for k in range(1, 9):
        drawn = sum(
            prod(chances[a] for a in answers) * maj_at_k(answers, [a == "right" for a in answers])
            for answers in product(chances, repeat=k)
        )
        closed = 0.0
        for r in range(k + 1):
            for w in range(k + 1 - r):
                o = k - r - w
                ways = factorial(k) // (factorial(r) * factorial(w) * factorial(o))
                wins = (r == max(r, w, o)) / (r, w, o).count(max(r, w, o))
                closed += ways * 0.5**r * 0.3**w * 0.2**o * wins
        worst = max(worst, abs(drawn - closed))
    return {"k": "1 to 8", "largest error": worst, "bar": "1e-12", "passed": worst < 1e-12}


def planted(rng: np.random.Generator, tasks: int, samples: int) -> np.ndarray:
    """Right or wrong [tasks, samples] where tasks differ in difficulty: Beta(2, 2), mean 1/2."""
    return rng.random((tasks, samples)) < rng.beta(2, 2, size=(tasks, 1))


def check_variance() -> dict[str, Any]:
    """Width of the bootstrap's one-sigma interval against the analytic standard error."""
    found: dict[str, Any] = {}
    ratios: list[float] = []
    for tasks, samples in ((100, 4), (200, 16), (1000, 4)):
        values = planted(np.random.default_rng(tasks), tasks, samples).ravel()
        clusters = np.repeat(np.arange(tasks), samples)
        low, high = clustered_bootstrap(values, clusters, seed=0, level=0.682689)
        closed = clustered_stderr(values, clusters)
        ratios.append((high - low) / 2 / closed)
        found[f"{tasks} tasks of {samples}"] = {
            "bootstrap": (high - low) / 2,
            "closed form": closed,
            "without clusters": clustered_stderr(values, range(values.size)),
        }
    passed = all(abs(ratio - 1) < 0.04 for ratio in ratios)
    return {**found, "bar": "within 4%", "passed": passed}


def check_coverage(worlds: int = 400) -> dict[str, Any]:
    """How often the 95% interval holds the truth: a mean, and a difference of two models."""
    tasks, samples = 100, 4
    clusters = np.repeat(np.arange(tasks), samples).tolist()
    hits: Counter[str] = Counter()
    for world in range(worlds):
        rng = np.random.default_rng(world)
        values = planted(rng, tasks, samples).ravel()
        low, high = clustered_bootstrap(values, clusters, seed=world, resamples=1000)
        hits["mean"] += low <= 0.5 <= high
        low, high = clustered_bootstrap(values, range(values.size), seed=world, resamples=1000)
        hits["mean, samples taken for independent"] += low <= 0.5 <= high
        # The same tasks; model b is right 0.1 more often on each.
        p = 0.9 * rng.beta(2, 2, size=(tasks, 1))
        a, b = (rng.random((tasks, samples)) < rate for rate in (p, p + 0.1))
        _, low, high = paired_difference(
            b.mean(axis=1).tolist(),
            a.mean(axis=1).tolist(),
            list(range(tasks)),
            seed=world,
            resamples=1000,
        )
        hits["paired difference"] += low <= 0.1 <= high
    shares = {name: count / worlds for name, count in hits.items()}
    fair = (shares["mean"], shares["paired difference"])
    passed = all(0.92 <= share <= 0.98 for share in fair)
    return {"worlds": worlds, **shares, "bar": "0.92 to 0.98 with clusters", "passed": passed}


def check_gsm8k(file: Path) -> dict[str, Any]:
    """Verdicts on recorded completions of every test question against their labels."""
    source = gsm8k(path=str(file), heldout_fraction=1.0)
    tasks = [source.task("heldout", i) for i in range(source.size("heldout"))]
    found: dict[str, Any] = {"questions": len(tasks), "completions": 0}
    agree = 0
    for extraction in ("strict", "lenient"):
        reward = Math(extraction=extraction, workers=1)
        try:
            for name, write in FORMATS.items():
                if name == "last number" and extraction == "strict":
                    continue
                texts, labels = recorded(tasks, write)
                twice = [task for task in tasks for _ in range(2)]
                scores = reward.verify_all(texts, twice)
                right = [(s.value == 1.0) == label for s, label in zip(scores, labels, strict=True)]
                found[f"{extraction}, {name}"] = sum(right) / len(right)
                found["completions"] += len(right)
                agree += sum(right)
        finally:
            reward.close()
    found["agreement"] = agree / found["completions"]
    return {**found, "bar": "1.0", "passed": agree == found["completions"]}


def recorded(
    tasks: Sequence[Task], write: Callable[[str, str], str]
) -> tuple[list[str], list[bool]]:
    """A right and a wrong completion of every task, with their labels."""
    rng = np.random.default_rng(0)
    texts: list[str] = []
    labels: list[bool] = []
    for task in tasks:
        thought = str(task.columns["solution"]).rpartition("####")[0].strip()
        gold = str(task.answer)
        moved = float(gold) + int(rng.integers(1, 10)) * (1 if rng.random() < 0.5 else -1)
        wrong = str(int(moved)) if moved.is_integer() else str(moved)
        texts += [write(thought, gold), write(thought, wrong)]
        labels += [True, False]
    return texts, labels


def main() -> int:
    """Run everything; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with gsm8k/test.jsonl")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    checks: dict[str, Callable[[], dict[str, Any]]] = {
        "pass@k": check_pass_at_k,
        "maj@k": check_majority,
        "bootstrap variance": check_variance,
        "coverage": check_coverage,
    }
    file = arguments.data / "gsm8k" / "test.jsonl" if arguments.data else None
    if file is not None and file.is_file():
        checks["gsm8k"] = lambda: check_gsm8k(file)
    else:
        print("left out: GSM8K (--data FOLDER with gsm8k/test.jsonl)", file=sys.stderr)
    passed = True
    for name, check in checks.items():
        began = time.perf_counter()
        found = check()
        passed &= found["passed"]
        print(f"{name}: {json.dumps(found)}", flush=True)
        command = "python benchmarks/bench_evaluation.py --data FOLDER"
        made = origin(command, time.perf_counter() - began, versions(["numpy", "math-verify"]))
        merge(arguments.out, name, found, made)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
