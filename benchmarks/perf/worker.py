"""The side of a contender: prepare once, then one repetition for every line on standard input.

Standard output carries one JSON object a line and nothing else; whatever libraries print goes to
standard error. A worker ends when its standard input does.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Settings = dict[str, Any]


def serve(prepare: Callable[[Settings], Callable[[], dict[str, Any]]]) -> None:
    """Run a worker; `prepare` gets the settings and returns the repetition.

    A repetition returns at least `seconds`, its own measurement of what counts. The peak of the
    process's resident memory so far is added, in GiB.
    """
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(found: dict[str, Any]) -> None:
        out.write(json.dumps({**found, "peak_rss_gib": peak_rss_gib()}) + "\n")
        out.flush()

    started = time.perf_counter()
    settings: Settings = json.loads(sys.argv[1])
    use_threads(settings)
    repetition = prepare(settings)
    say({"start_seconds": time.perf_counter() - started})
    for _ in sys.stdin:
        say(repetition())
    out.close()
    # Libraries that leave threads behind must not keep the process.
    os._exit(0)


def use_threads(settings: Settings) -> None:
    """The thread count that every contender gets."""
    import torch

    torch.set_num_threads(settings["threads"])


def peak_rss_gib() -> float:
    """Largest resident memory of this process so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return round(int(line.split()[1]) / 2**20, 3)
    raise RuntimeError("/proc/self/status has no VmHWM")
