"""Section 2: one learner step on the same recorded rollouts, ours and TRL's own loss path."""

from __future__ import annotations

from typing import Any

from perf.contest import Contender, Plan, contest, trial

MICRO_BATCHES = (4, 8, 16, 32)
PRECISIONS = ("bf16 weights", "autocast")
TOKENS_PER_MICRO_BATCH = 2048

# Half as many groups as a step of 8 x 8: per-token cost is the same, and TRL takes half as long.
WORKLOADS: dict[str, dict[str, Any]] = {
    "a": {"groups": 4, "prompt": 44, "completion": 64, "kind": "fixed", "dead": 0},
    "b": {"groups": 2, "prompt": 400, "completion": 192, "kind": "lognormal", "dead": 0},
    "c": {"groups": 4, "prompt": 44, "completion": 64, "kind": "fixed", "dead": 2},
}


def measure(plan: Plan) -> dict[str, Any]:
    """(a) short prompts, (b) long prompts and ragged completions, (c) as (a), half of it dead."""
    found: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for name, sizes in workloads(plan).items():
        print(f"-- ({name}) {sizes}", flush=True)
        if name != "c":  # same shapes as (a)
            settings = best(plan, sizes)
        found[name] = compare(plan, sizes, settings)
    return {"dtype": plan.dtype, "workloads": found}


def workloads(plan: Plan) -> dict[str, dict[str, Any]]:
    """The sizes of every workload."""
    if plan.quick:
        small = {"groups": 2, "samples": 4, "prompt": 8, "completion": 12, "kind": "lognormal"}
        return {"a": small | {"dead": 0}, "c": small | {"dead": 1}}
    return {name: {"samples": 8, **sizes} for name, sizes in WORKLOADS.items()}


def ours(plan: Plan, sizes: dict[str, Any], name: str = "ours", **switches: Any) -> Contender:
    """Our learner on a workload."""
    settings = {
        "model": plan.model,
        "dtype": plan.dtype,
        "tokens_per_micro_batch": TOKENS_PER_MICRO_BATCH,
        "rollouts": sizes,
        **switches,
    }
    return Contender(name=name, script="learn_ours", settings=settings)


def theirs(plan: Plan, sizes: dict[str, Any], name: str, **settings: Any) -> Contender:
    """TRL's loss path on a workload."""
    base = {"model": plan.model, "rollouts": sizes, "gradient_checkpointing": False}
    repeats = settings.pop("repeats", None)
    return Contender(name=name, script="learn_trl", settings=base | settings, repeats=repeats)


def best(plan: Plan, sizes: dict[str, Any]) -> dict[str, Any]:
    """TRL's fastest micro-batch and precision: one warm step each, no checkpointing."""
    rows = sizes["groups"] * sizes["samples"]
    precisions = ("float32",) if plan.quick else PRECISIONS
    times: dict[tuple[str, int], float] = {}
    for precision in precisions:
        for micro_batch in MICRO_BATCHES[: 1 if plan.quick else None]:
            if micro_batch > rows:
                continue
            contender = theirs(
                plan,
                sizes,
                f"trl, {precision}, {micro_batch}",
                precision=precision,
                micro_batch=micro_batch,
            )
            seconds = trial(contender, plan)
            if seconds is not None:
                times[precision, micro_batch] = seconds
    precision, micro_batch = min(times, key=lambda key: times[key])
    return {
        "precision": precision,
        "micro_batch": micro_batch,
        "trials": {f"{p}, {m}": round(s, 2) for (p, m), s in times.items()},
    }


def compare(plan: Plan, sizes: dict[str, Any], setting: dict[str, Any]) -> dict[str, Any]:
    """Ours and TRL at its fastest; TRL with checkpointing and small micro-batches for its memory.

    The latter are timed once: what they are measured for is their peak memory.
    """
    fast = {key: setting[key] for key in ("precision", "micro_batch")}
    lean = fast | {"micro_batch": MICRO_BATCHES[0], "repeats": 1}
    contenders = [
        ours(plan, sizes),
        theirs(plan, sizes, "trl", **fast),
        theirs(plan, sizes, "trl, checkpointing", **fast, gradient_checkpointing=True, repeats=1),
        theirs(plan, sizes, "trl, leanest", **lean, gradient_checkpointing=True),
    ]
    result = contest(contenders, plan)
    for record in result.values():
        record["tokens_per_second"] = round(record["tokens"] / record["median"], 1)
    fastest = min(r["median"] for n, r in result.items() if n != "ours")
    leanest = min(r["peak_rss_gib"] for n, r in result.items() if n != "ours")
    norms = result["ours"]["grad_norm"], result["trl"]["grad_norm"]
    return {
        "sizes": sizes,
        **result,
        "trials": setting["trials"],
        "speed-up": round(fastest / result["ours"]["median"], 2),
        "memory over TRL's leanest": round(result["ours"]["peak_rss_gib"] / leanest, 2),
        "relative difference of gradient norms": round(abs(norms[0] / norms[1] - 1), 4),
    }
