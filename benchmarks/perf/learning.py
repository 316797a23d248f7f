"""Section 2: one learner step on the same recorded rollouts, ours and TRL's own loss path."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from perf.contest import Contender, Plan, alone, contest, trial

MICRO_BATCHES = (8, 16)  # 4 and 32 were slower or as fast in every trial
PRECISIONS = ("autocast", "bf16 weights")  # perf/trl_trainer.py; ours is the first
TOKENS_PER_MICRO_BATCH = 4096

# Half as many groups as a step of 8 x 8: per-token cost is the same, and TRL takes half as long.
WORKLOADS: dict[str, dict[str, Any]] = {
    "a": {"groups": 4, "prompt": 44, "completion": 64, "kind": "fixed", "dead": 0},
    "b": {"groups": 2, "prompt": 400, "completion": 192, "kind": "lognormal", "dead": 0},
    "c": {"groups": 4, "prompt": 44, "completion": 64, "kind": "fixed", "dead": 2},
}

_BEST: dict[str, dict[str, Any]] = {}  # TRL's fastest settings by plan and sizes


def measure(plan: Plan) -> dict[str, Any]:
    """(a) short prompts, (b) long prompts and ragged completions, (c) as (a), half of it dead."""
    found: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for name, sizes in workloads(plan).items():
        print(f"-- ({name}) {sizes}", flush=True)
        if name != "c":  # same shapes as (a)
            settings = best(plan, sizes)
        found[name] = compare(plan, sizes, settings)
        plan.save({"dtype": plan.dtype, "workloads": found})
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
    return Contender(name=name, script="learn_trl", settings=base | settings)


def best(plan: Plan, sizes: dict[str, Any]) -> dict[str, Any]:
    """TRL's fastest micro-batch in every precision: one warm step each, no checkpointing.

    `fastest` and `same precision` (as ours) are settings of perf/learn_trl.py.
    """
    key = repr((plan, sorted(sizes.items())))
    if key in _BEST:  # the whole step's shapes are those of (a)
        return _BEST[key]
    rows = sizes["groups"] * sizes["samples"]
    times: dict[tuple[str, int], float] = {}
    for precision in precisions(plan):
        for micro_batch in MICRO_BATCHES[: 1 if plan.quick else None]:
            if micro_batch > rows:
                continue
            name = f"trl, {precision}, {micro_batch}"
            setting = {"precision": precision, "micro_batch": micro_batch}
            seconds = trial(theirs(plan, sizes, name, **setting), plan)
            if seconds is not None:
                times[precision, micro_batch] = seconds

    def fastest(among: tuple[str, ...]) -> dict[str, Any]:
        found = min((k for k in times if k[0] in among), key=lambda k: times[k])
        return dict(zip(("precision", "micro_batch"), found, strict=True))

    _BEST[key] = {
        "fastest": fastest(precisions(plan)),
        "same precision": fastest(precisions(plan)[:1]),
        "trials": {f"{p}, {m}": round(s, 2) for (p, m), s in times.items()},
    }
    return _BEST[key]


def precisions(plan: Plan) -> tuple[str, ...]:
    """Those of TRL that are tried; the first is how ours computes."""
    return ("float32",) if plan.quick else PRECISIONS


def compare(plan: Plan, sizes: dict[str, Any], setting: dict[str, Any]) -> dict[str, Any]:
    """Ours, TRL at its fastest, and TRL in the precision of ours; then TRL's memory.

    With checkpointing TRL is timed once: what it is measured for is its peak memory. Those runs
    come after the others, so that no more than three learners are in memory.
    """
    contenders = [ours(plan, sizes), theirs(plan, sizes, "trl", **setting["fastest"])]
    if setting["same precision"] != setting["fastest"]:
        same = setting["same precision"]
        contenders.append(theirs(plan, sizes, "trl, same precision", **same))
    result = contest(contenders, plan)
    once = replace(plan, repeats=1)
    least = {"micro_batch": MICRO_BATCHES[0], "gradient_checkpointing": True}
    leaner = {f"trl, leanest, {p}": {**least, "precision": p} for p in precisions(plan)}
    fastest = {**least, **setting["fastest"]}
    if fastest not in leaner.values():
        leaner["trl, checkpointing"] = fastest
    for name, settings in leaner.items():
        result[name] = alone(theirs(plan, sizes, name, **settings), once)
    for record in result.values():
        record["tokens_per_second"] = round(record["tokens"] / record["median"], 1)
    mine, others = result["ours"], {n: r for n, r in result.items() if n != "ours"}
    same_precision = [r for r in others.values() if r["precision"] == precisions(plan)[0]]
    twin = result.get("trl, same precision", result["trl"])

    def leanest(records: Iterable[dict[str, Any]]) -> float:
        return round(mine["peak_rss_gib"] / min(r["peak_rss_gib"] for r in records), 2)

    return {
        "sizes": sizes,
        "measured": result,
        "trials": setting["trials"],
        "speed-up": round(min(r["median"] for r in others.values()) / mine["median"], 2),
        "speed-up, same precision": round(twin["median"] / mine["median"], 2),
        "memory over TRL's leanest": leanest(others.values()),
        "memory over TRL's leanest, same precision": leanest(same_precision),
        "relative difference of gradient norms": round(
            abs(mine["grad_norm"] / twin["grad_norm"] - 1), 4
        ),
    }
