"""Section 7: each saving switched off by itself; the rest as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from perf.contest import Contender, Plan, contest
from perf.learning import TOKENS_PER_MICRO_BATCH, ours, workloads

REPEATS = 3
TOGETHER = 2  # beside the base; more learners than that may not fit into memory

# What is switched off: (workload of section 2, switches of perf/learn_ours.py).
LEARNER: dict[str, tuple[str, dict[str, Any]]] = {
    "shared prompts off": ("b", {"share_prompts": False}),
    "shared prompts off, short prompts": ("a", {"share_prompts": False}),
    "dead groups kept": ("c", {"keep_dead": True}),
    "micro-batches of 640 tokens": ("a", {"tokens_per_micro_batch": 640}),
    "micro-batches of 8192 tokens": ("a", {"tokens_per_micro_batch": 8192}),
    "head in chunks a quarter as large": ("a", {"chunk_elements": 2**23}),
    "head not in chunks": ("a", {"chunk_elements": 2**40}),
    "matrix tiles off": ("a", {"no_tiles": True}),
    "matrix tiles off, long prompts": ("b", {"no_tiles": True}),
    "compiled kernels off": ("a", {"torch_only": True}),
    "float32 instead of bf16": ("a", {"dtype": "float32"}),
    "freed memory returned to the system": ("a", {"return_memory": True}),
    "gradient checkpointing on": ("a", {"gradient_checkpointing": True}),
}
GENERATION: dict[str, dict[str, Any]] = {
    "prompt read for every sample": {"one_by_one": True},
    "matrix tiles off": {"no_tiles": True},
    "compiled kernels off": {"torch_only": True},
    "fused layers and compiled kernels off": {"plain_layers": True},
    "the model's own cache": {"own_cache": True},
    "float32 instead of bf16": {"dtype": "float32"},
}


def measure(plan: Plan) -> dict[str, Any]:
    """{saving: time and peak memory without it, over those with it}, learner and engine."""
    plan = replace(plan, repeats=min(plan.repeats, REPEATS))
    sizes = workloads(plan)
    learner: dict[str, Any] = {}
    for workload, size in sizes.items():
        switched = {name: s for name, (of, s) in LEARNER.items() if of == workload}
        if plan.quick:
            switched = dict(list(switched.items())[:2])
        print(f"-- learner ({workload})", flush=True)
        learner |= against(
            [ours(plan, size, "all on"), *(ours(plan, size, n, **s) for n, s in switched.items())],
            plan,
            {"workload": workload, "tokens_per_micro_batch": TOKENS_PER_MICRO_BATCH},
        )
    print("-- generation", flush=True)
    base = {
        "model": plan.model,
        "dtype": plan.dtype,
        "prompts": 2 if plan.quick else 8,
        "samples": 4 if plan.quick else 8,
        "prompt": 8 if plan.quick else 44,
        "completion": 8 if plan.quick else 64,
        "kind": "lognormal",
    }
    said = base | {"model": Path(plan.model).name}  # not where it was here
    switches = {"all on": {}, **GENERATION}
    contenders = [
        Contender(name=name, script="gen_ours", settings=base | change)
        for name, change in switches.items()
    ]
    return {"learner": learner, "generation": against(contenders, plan, {"sizes": said})}


def against(contenders: list[Contender], plan: Plan, said: dict[str, Any]) -> dict[str, Any]:
    """Every contender in turns with the first."""
    base, *changed = contenders
    found: dict[str, Any] = {}
    for start in range(0, len(changed), TOGETHER):
        result = contest([base, *changed[start : start + TOGETHER]], plan)
        first = result.pop(base.name)
        for name, record in result.items():
            found[name] = {
                **said,
                **record,
                "base": {key: first[key] for key in ("median", "seconds", "peak_rss_gib")},
                "time": round(record["median"] / first["median"], 2),
                "memory": round(record["peak_rss_gib"] / first["peak_rss_gib"], 2),
            }
    return found
