"""The side of a contender: prepare once, then one repetition for every line on standard input.

Standard output carries one JSON object a line and nothing else; whatever libraries print goes to
standard error. A worker ends when its standard input does. The line `count` asks for a repetition
whose synchronizations and copies are counted instead of its time.

The setting `device` says where the work is done: "cpu" (the default) or "cuda".
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Settings = dict[str, Any]
COUNT = "count"


def serve(prepare: Callable[[Settings], Callable[[], dict[str, Any]]]) -> None:
    """Run a worker; `prepare` gets the settings and returns the repetition.

    A repetition returns at least `seconds`, its own measurement of what counts. The peak of the
    process's memory so far is added, in GiB. An error is told as `failed`, and ends the worker.
    """
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    settings: Settings = json.loads(sys.argv[1])

    def say(found: dict[str, Any]) -> None:
        memory = {"peak_rss_gib": peak_rss_gib(), **peak_gpu_gib(settings)}
        out.write(json.dumps({**found, **memory}) + "\n")
        out.flush()

    try:
        started = time.perf_counter()
        use_threads(settings)
        repetition = prepare(settings)
        say({"start_seconds": time.perf_counter() - started})
        for line in sys.stdin:
            say({"counts": counts(settings, repetition)} if line.strip() == COUNT else repetition())
    except BaseException as error:
        out.write(json.dumps({"failed": f"{type(error).__name__}: {error}"}) + "\n")
        out.flush()
        raise
    out.close()
    # Libraries that leave threads behind must not keep the process.
    os._exit(0)


def use_threads(settings: Settings) -> None:
    """The thread count that every contender gets."""
    import torch

    torch.set_num_threads(settings["threads"])


def device(settings: Settings) -> str:
    """Where this worker's work is done: "cpu" or "cuda"."""
    return settings.get("device", "cpu")


def now(settings: Settings) -> float:
    """Seconds of the clock once a card has done what it was given: until then nothing is over."""
    if device(settings) == "cuda" and not settings.get("counting"):
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()


def counts(settings: Settings, repetition: Callable[[], dict[str, Any]]) -> dict[str, int] | None:
    """Synchronizations and copies of one repetition on a card; None on a CPU.

    The clock's own synchronizations are left out: nobody asks for the time meanwhile.
    """
    from gpu import trace
    from gpu.counts import profiled

    settings["counting"] = True
    if device(settings) == "cpu":
        repetition()
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiled(repetition, file, on_card=True)
        return trace.counts(trace.read(file))


def peak_gpu_gib(settings: Settings) -> dict[str, float]:
    """Most memory of the card in tensors so far, and with what torch holds for later; {} on a CPU.

    Of this process: what another one holds, as vLLM's engine may, is not in it.
    """
    if device(settings) != "cuda":
        return {}
    import torch

    return {
        "peak_gpu_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3),
        "peak_gpu_reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 3),
    }


def peak_rss_gib() -> float:
    """Largest resident memory of this process so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return round(int(line.split()[1]) / 2**20, 3)
    raise RuntimeError("/proc/self/status has no VmHWM")
