"""Does a run that is killed at any moment end in the bytes of one that is not?

    python benchmarks/kills.py [KIND …] [--kills 20] [--seed 0]

A tiny run of each kind is killed with SIGKILL at a random moment, continued, killed again, until it
has been killed `--kills` times in all its runs; each run is then left to end. Written: how many of
them left the model, data, evaluations, ledger and metrics (but times) of the uninterrupted run, and
whether anything unfinished was left beside them, to benchmarks/results/kills.json.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny_runs
from record import merge, origin, versions

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "kills.json"
KILLS_A_RUN = 3  # at most


def killed(act: Callable[..., Any], after: float) -> bool:
    """Start `act` in a fork and kill it; False where it had ended before."""
    child = tiny_runs.start(act)
    until = time.monotonic() + after
    while time.monotonic() < until:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def one_run(
    stages: list[dict[str, Any]], run: Path, wanted: dict[str, str], longest: float, seed: str
) -> tuple[int, str]:
    """(how often one run was killed, what is wrong with what it left)."""
    rng = random.Random(seed)
    shutil.rmtree(run, ignore_errors=True)
    kills = 0
    for _ in range(rng.randint(1, KILLS_A_RUN)):
        begun = (run / "resolved.json").is_file()
        act = tiny_runs.resume(run) if begun else tiny_runs.train(stages, run)
        if not killed(act, rng.uniform(0, longest)):
            break
        kills += 1
    begun = (run / "resolved.json").is_file()
    act = tiny_runs.resume(run) if begun else tiny_runs.train(stages, run)
    how, said = tiny_runs.ended(act)
    if how != "done":
        return kills, f"{how}: {said[-1500:]}"
    found = tiny_runs.facts(run)
    wrong = sorted(n for n in {**wanted, **found} if found.get(n) != wanted.get(n))
    litter = [p.relative_to(run).as_posix() for p in run.rglob("*") if p.suffix == ".tmp"]
    litter += [p.relative_to(run).as_posix() for p in run.rglob("model.*[0-9]")]
    for checkpoints in run.rglob("checkpoints"):
        there = sorted(p.name for p in checkpoints.iterdir())
        litter += there if len(there) > 2 else []  # run.save_total_limit
    parts = {"other bytes": wrong, "left over": sorted(litter)}
    return kills, "; ".join(f"{what}: {', '.join(names)}" for what, names in parts.items() if names)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND")
    parser.add_argument("--kills", type=int, default=5, help="of each kind of run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    packages = versions(["torch", "transformers", "trl"])
    bad = 0
    with tempfile.TemporaryDirectory(prefix="kills-") as scratch:
        place = Path(scratch)
        how, said = tiny_runs.ended(lambda _: tiny_runs.make_base(place))
        if how != "done":
            raise SystemExit(said)
        tiny_runs.warm(place)
        known = tiny_runs.kinds(place)
        for kind in asked.kinds or known:
            started = time.perf_counter()
            how, said = tiny_runs.ended(tiny_runs.train(known[kind], place / "whole" / kind))
            longest = time.perf_counter() - started
            if how != "done":
                raise SystemExit(f"{kind}: {how}: {said}")
            wanted = tiny_runs.facts(place / "whole" / kind)
            kills, runs, wrong = 0, 0, []
            while kills < asked.kills:
                seed = f"{asked.seed}/{kind}/{runs}"
                more, problem = one_run(known[kind], place / "killed" / kind, wanted, longest, seed)
                kills, runs = kills + more, runs + 1
                if problem:
                    wrong.append(f"run {runs - 1}: {problem}")
                    print(f"  {kind}: {wrong[-1]}", flush=True)
            bad += len(wrong)
            found = {"kills": kills, "runs": runs, "seconds of a run": round(longest, 1)}
            found |= {"seed": asked.seed, "runs that ended alike": runs - len(wrong), "bad": wrong}
            seconds = time.perf_counter() - started
            command = f"python benchmarks/kills.py --kills {asked.kills} --seed {asked.seed}"
            merge(asked.out, kind, found, origin(command, seconds, packages))
            print(f"{kind}: {kills} kills, {runs - len(wrong)} of {runs} runs alike", flush=True)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
