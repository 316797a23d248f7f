"""Does `grpo.train` leave anything in its process? Ten calls, and what is different after each.

    python benchmarks/ten_calls.py [--calls 10]

One process trains the same model in memory ten times, with a function, an asynchronous one, the
verifier `math` with its sandbox, and an object with a state as rewards. After each call: a hash of
the weights, the resident memory (RSS of /proc/self/statm after gc.collect and glibc's malloc_trim),
and whatever differs in threads, child processes, open files, temporary folders, signal and logging
handlers, states of random generators, torch's settings, environment, folder and warning filters
(tests/grpo/commands/api/left.py). Then the same after a call that fails and one that Ctrl-C stops.
Also the seconds of `import grpo`, the median of five processes. Written to
benchmarks/results/ten_calls.json.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from record import merge, origin, versions

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
OUT = ROOT / "benchmarks" / "results" / "ten_calls.json"
BASE = ROOT / "recipes" / "assets" / "parity-base"
MB = 10**6
ROWS = [{"prompt": f"{n * 2654435761 % 65536:016b}=", "answer": str(n % 2)} for n in range(64)]
SETTINGS: dict[str, Any] = {
    "dataset": ROWS,
    "max_steps": 5,
    "num_generations": 8,
    "prompts_per_step": 8,
    "max_completion_length": 64,
    "learning_rate": 1e-3,
    "eval": {"num_tasks": 2, "num_samples": 2},
}


def ones(completions: list[str], **_: Any) -> list[float]:
    """The ones of each completion."""
    return [text.count("1") / 10 for text in completions]


async def later(completions: list[str], **_: Any) -> list[float]:
    """The same, asynchronously."""
    return ones(completions)


class Counting:
    """A reward with a state."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, completions: list[str], **_: Any) -> list[float]:
        self.calls += 1
        return [self.calls / 1000] * len(completions)


def fails(completions: list[str], trainer_state: Any, **_: Any) -> list[float]:
    """Ends the third step with an error."""
    if trainer_state and trainer_state.global_step == 2:
        raise KeyError("gold")
    return ones(completions)


def interrupts(completions: list[str], trainer_state: Any, **_: Any) -> list[float]:
    """Presses Ctrl-C in the third step."""
    if trainer_state and trainer_state.global_step == 2:
        os.kill(os.getpid(), signal.SIGINT)
    return ones(completions)


def resident() -> float:
    """Resident memory in MB, after what is free was given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MB


def imports(times: int = 5) -> dict[str, Any]:
    """Seconds of `import grpo` in processes of their own, and whether torch came with it."""
    code = (
        "import sys, time; start = time.perf_counter(); import grpo; "
        "print(time.perf_counter() - start, 'torch' in sys.modules)"
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(times)
    ]
    return {
        "seconds": [round(float(seconds), 4) for seconds, _ in found],
        "median_seconds": round(statistics.median(float(seconds) for seconds, _ in found), 4),
        "imports_torch": any(torch == "True" for _, torch in found),
    }


def calls(count: int) -> dict[str, Any]:
    """What each of `count` calls trained and left; then of a call that fails, one that is stopped.

    Runs in a temporary folder.
    """
    from transformers import AutoModelForCausalLM

    import grpo
    from tests.grpo.commands.api.left import changed, state, weights

    model = AutoModelForCausalLM.from_pretrained(BASE)
    rows: list[dict[str, Any]] = []
    before: dict[str, Any] = {}

    def after(what: str, digest: str, seconds: float) -> None:
        nonlocal before
        now = state()
        left = sorted(changed(before, now)) if before else []
        row = {"call": what, "weights": digest[:16], "seconds": round(seconds, 2)}
        rows.append({**row, "resident_mb": round(resident(), 1), "left": left})
        print(rows[-1], flush=True)
        before = now

    def go() -> str:
        return weights(
            grpo.train(model=model, rewards=[ones, later, "math", Counting()], **SETTINGS)
        )

    for number in range(1, count + 1):
        start = time.perf_counter()
        digest = go()
        after(str(number), digest, time.perf_counter() - start)
    for reward, error in ((fails, grpo.GrpoError), (interrupts, KeyboardInterrupt)):
        start = time.perf_counter()
        try:
            grpo.train(model=model, rewards=[reward, later, "math"], **SETTINGS)
        except error as raised:
            after(f"{reward.__name__}: {type(raised).__name__}", "", time.perf_counter() - start)
        start = time.perf_counter()
        digest = go()
        after(f"after {reward.__name__}", digest, time.perf_counter() - start)
    memory = [row["resident_mb"] for row in rows]
    return {
        "calls": rows,
        "same_bits": len({row["weights"] for row in rows if row["weights"]}) == 1,
        "anything_left": sorted({what for row in rows for what in row["left"]}),
        "memory_after_last_by_second": round(memory[count - 1] / memory[1], 4),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--calls", type=int, default=10)
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    command = f"python benchmarks/ten_calls.py --calls {asked.calls}"
    packages = versions(["torch", "transformers", "numpy"])
    start = time.perf_counter()
    found = imports()
    print(found)
    merge(asked.out, "import", found, origin(command, time.perf_counter() - start, packages))
    start = time.perf_counter()
    here = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="ten-calls-") as folder:
        os.chdir(folder)
        found = calls(asked.calls)
        os.chdir(here)
    merge(asked.out, "calls", found, origin(command, time.perf_counter() - start, packages))
    print({name: value for name, value in found.items() if name != "calls"})


if __name__ == "__main__":
    main()
