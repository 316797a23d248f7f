"""Section 6: 25 steps of parity-r1-zero, 32 prompts x 8, 0.86M parameters in float32."""

from __future__ import annotations

from typing import Any

from perf.contest import Contender, Plan, contest, trial

TRL_MICRO_BATCHES = (256, 64)


def measure(plan: Plan) -> dict[str, Any]:
    """Seconds of the whole training; ours, TRL and the one-file loop."""
    steps = 1 if plan.quick else 25

    def trl(micro_batch: int, steps: int) -> Contender:
        settings = {"steps": steps, "micro_batch": micro_batch}
        return Contender(name="trl", script="tiny_trl", settings=settings)

    sizes = TRL_MICRO_BATCHES[: 1 if plan.quick else None]
    trials = {size: trial(trl(size, min(steps, 5)), plan) for size in sizes}
    ran = {size: seconds for size, seconds in trials.items() if seconds is not None}
    result = contest(
        [
            Contender(name="ours", script="tiny_ours", settings={"steps": steps}),
            trl(min(ran, key=lambda size: ran[size]), steps),
            Contender(name="minimal_loop", script="tiny_minimal", settings={"steps": steps}),
        ],
        plan,
    )
    ours, theirs, minimal = (result[n]["median"] for n in ("ours", "trl", "minimal_loop"))
    return {
        **result,
        "trials of 5 steps": trials,
        "ours over trl": round(theirs / ours, 2),
        "ours over minimal_loop": round(minimal / ours, 2),
        "minimal_loop over trl": round(theirs / minimal, 2),
    }
