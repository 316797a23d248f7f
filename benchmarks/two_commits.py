"""Is this commit as fast on a CPU as another one?

    python benchmarks/two_commits.py BASE [WORD …] [--repeats 7] [--model FOLDER]
    make bench AGAINST=BASE SECTIONS="tiny start" REPEATS=3

BASE (a commit) is checked out beside this one, and the two are contenders in one run. Each is
measured by its own scripts of `perf/`, which know where its files are; the start of a command, by
that command. A round is this commit, the base twice, and this commit again, so that a machine that
drifts favors neither; the ratio is the median over rounds. Beside it stands `noise`, the second
process of each commit over its first: ratios nearer to 1 than that say nothing. With a WORD, only
the workloads with it in their names. Whether both train the same weights: same_bytes.py.

Exit code 1 where this commit takes more than 5% longer and the noise is smaller than that. Written
to benchmarks/results/two_commits.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perf.contest import FOLDER, Contender, Plan, contest
from record import ROOT, merge, origin, versions

RESULTS = ROOT / "benchmarks" / "results" / "two_commits.json"
TINY = "recipes/assets/parity-base"
SLOWER = 1.05  # of the base's time, and no more


@dataclass(frozen=True, kw_only=True)
class Work:
    """A script of perf/ and what it is given; `command`: a command line is timed, not a script."""

    script: str
    settings: dict[str, Any]
    command: bool = False


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("base", help="the commit to compare with")
    parser.add_argument("words", nargs="*", help="parts of names of workloads; none: all of them")
    parser.add_argument("--repeats", type=int, default=7, help="rounds of each; medians count")
    parser.add_argument("--model", default="models/smollm2-135m-instruct")
    arguments = parser.parse_args()
    wanted = chosen(workloads(arguments.model), arguments.words)
    started = time.time()
    with tempfile.TemporaryDirectory(prefix="two-commits-") as folder:
        other = Path(folder) / "base"
        base = git("rev-parse", f"{arguments.base}^{{commit}}")
        git("worktree", "add", "--quiet", "--detach", str(other), base)
        try:
            found = speed(wanted, other, arguments.repeats)
        finally:
            git("worktree", "remove", "--force", str(other))
    words = "".join(f" {word}" for word in arguments.words)
    said = f"python benchmarks/two_commits.py {base[:10]}{words} --repeats {arguments.repeats}"
    packages = versions(("torch", "transformers"))
    merge(
        RESULTS,
        f"{base[:10]}{words}",
        {"speed": found},
        origin(said, time.time() - started, packages),
    )
    slow = [name for name, ratio in found.items() if is_slower(ratio)]
    for name, ratio in found.items():
        mark = "  SLOWER" if name in slow else ""
        noise = " and ".join(f"{value:.3f}" for value in ratio["noise"])
        print(f"{name}: {ratio['this over base']:.3f} of the base's time, noise {noise}{mark}")
    sys.exit(bool(slow))


def workloads(model: str) -> dict[str, Work]:
    """name -> what is timed; the tiny model where it is mostly overhead."""
    learn = {"groups": 4, "samples": 8, "prompt": 44, "completion": 64, "kind": "fixed", "dead": 0}
    long = {**learn, "groups": 2, "prompt": 400, "completion": 192, "kind": "lognormal"}
    short = {**learn, "groups": 32, "prompt": 17, "completion": 24}
    sample = {"prompts": 8, "samples": 8, "prompt": 44, "completion": 64, "kind": "fixed"}
    few = {**sample, "prompts": 32, "prompt": 17}
    step = {"recipe": "parity-r1-zero.yaml", "prompts": 32, "samples": 8, "completion": 32}
    budget = {"tokens_per_micro_batch": 4096}
    real = {"model": str((ROOT / model).resolve()), "dtype": "bfloat16"}
    tiny = {"model": str(ROOT / TINY), "dtype": "float32"}
    helped, planned = ["train", "--help"], ["plan", "parity-r1-zero"]
    return {
        "learner, short prompts": Work(
            script="learn_ours", settings={**real, **budget, "rollouts": learn}
        ),
        "learner, long prompts": Work(
            script="learn_ours", settings={**real, **budget, "rollouts": long}
        ),
        "engine": Work(script="gen_ours", settings={**real, **sample}),
        "hash of weights": Work(script="hash_weights", settings=real),
        "learner, tiny": Work(script="learn_ours", settings={**tiny, **budget, "rollouts": short}),
        "engine, tiny": Work(script="gen_ours", settings={**tiny, **few}),
        "whole step, tiny": Work(script="step_ours", settings={**tiny, **step}),
        "start of train --help": Work(
            script="start_up", settings={"arguments": helped}, command=True
        ),
        "start of plan": Work(script="start_up", settings={"arguments": planned}, command=True),
    }


def chosen(known: dict[str, Work], words: Sequence[str]) -> dict[str, Work]:
    """The workloads with one of the words in their names; all where no word is given."""
    found = {name: work for name, work in known.items() if not words or has_any(name, words)}
    if not found:
        raise SystemExit(f"no workload has {' or '.join(words)} in its name; valid: {list(known)}")
    return found


def has_any(name: str, words: Sequence[str]) -> bool:
    """Whether one of `words` is in `name`."""
    return any(word in name for word in words)


def speed(wanted: dict[str, Work], other: Path, repeats: int) -> dict[str, Any]:
    """{workload: seconds of the four processes of every round, and the two ratios}."""
    plan = Plan(repeats=repeats, threads=os.cpu_count() or 1)
    found: dict[str, Any] = {}
    for name, work in wanted.items():
        print(f"-- {name}", flush=True)
        measured = contest(contenders(work, other), plan)
        found[name] = ratios({who: record["seconds"] for who, record in measured.items()})
    return found


def contenders(work: Work, other: Path) -> list[Contender]:
    """This tree and the other one, twice each, in the order of a round."""
    order = {"this": ROOT, "base": other, "base again": other, "this again": ROOT}
    return [
        Contender(
            name=who,
            script=work.script,
            settings=work.settings | ({"tree": str(tree)} if work.command else {}),
            env={"PYTHONPATH": str(tree)},
            folder=FOLDER if work.command else tree / "benchmarks",
        )
        for who, tree in order.items()
    ]


def ratios(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Of {contender: seconds of its rounds}: this over base, and each commit over itself."""
    rounds = list(
        zip(*(seconds[who] for who in ("this", "base", "base again", "this again")), strict=True)
    )
    return {
        "seconds": seconds,
        "this over base": median([(a + d) / (b + c) for a, b, c, d in rounds]),
        "noise": [
            median([d / a for a, _, _, d in rounds]),
            median([c / b for _, b, c, _ in rounds]),
        ],
    }


def is_slower(found: dict[str, Any]) -> bool:
    """Whether this commit takes longer than it may, by more than the machine's noise."""
    noise = max(max(value, 1 / value) for value in found["noise"])
    return found["this over base"] > max(SLOWER, noise)


def median(values: Sequence[float]) -> float:
    """To four places."""
    return round(statistics.median(values), 4)


def git(*arguments: str) -> str:
    """What git says, from the root of this checkout."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
