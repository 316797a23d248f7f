"""recipes/minimal_loop.py as it is, without its held-out reports."""

from __future__ import annotations

import contextlib
import io
import re
import time
from typing import Any

from grpo.recipes import minimal_loop
from perf.worker import Settings, serve


def prepare(settings: Settings) -> Any:
    """A repetition is its `train()`; loading the base (some 20 ms) is in it."""
    minimal_loop.STEPS = settings["steps"]
    minimal_loop.report = lambda *_: None

    def repetition() -> dict[str, Any]:
        printed = io.StringIO()
        started = time.perf_counter()
        with contextlib.redirect_stdout(printed):
            minimal_loop.train()
        seconds = time.perf_counter() - started
        last = re.findall(r"accuracy ([\d.]+).*signal ([\d.]+)", printed.getvalue())[-1]
        return {
            "seconds": seconds,
            "steps": settings["steps"],
            "accuracy": float(last[0]),
            "frac_reward_zero_std": float(last[1]),
        }

    return repetition


if __name__ == "__main__":
    serve(prepare)
