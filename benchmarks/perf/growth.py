"""Section 4: how our learner's time and memory grow with the work; each point its own process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from perf.contest import Contender, Plan, alone
from perf.learning import TOKENS_PER_MICRO_BATCH, ours

REPEATS = 3  # a point is one of a series; scatter shows against the line
COMPLETIONS = 64  # of every group size together, several times what a micro-batch holds
FULL = 1024  # tokens a micro-batch then, so that all of them are full whatever the group size


def measure(plan: Plan) -> dict[str, Any]:
    """Series over tokens a step, group size and prompt length; one over sampled tokens."""
    plan = replace(plan, repeats=min(plan.repeats, REPEATS))
    base = {"samples": 8, "prompt": 44, "completion": 64, "kind": "fixed", "dead": 0}
    steps, groups, prompts, sampled = (
        (1, 2, 4, 8),
        (4, 8, 16, 32, 64),
        (64, 256, 1024, 2048),
        (16, 32, 64, 128),
    )
    budget = TOKENS_PER_MICRO_BATCH
    if plan.quick:
        base |= {"samples": 4, "prompt": 8, "completion": 8}
        steps, groups, prompts, sampled, budget = (1, 2), (4, 8), (8, 32), (8, 16), 64
    by_tokens = {x: point(plan, base | {"groups": x}, budget) for x in steps}
    every, full = (8, 32) if plan.quick else (COMPLETIONS, FULL)
    by_group = {g: point(plan, base | {"groups": every // g, "samples": g}, full) for g in groups}
    room = max(prompts) + base["completion"] * base["samples"]
    by_prompt = {p: point(plan, base | {"groups": 1, "prompt": p}, room) for p in prompts}
    generation = {
        n: alone(
            Contender(
                name=f"generation, {n} new tokens",
                script="gen_ours",
                settings={
                    "model": plan.model,
                    "dtype": plan.dtype,
                    "prompts": 2 if plan.quick else 8,
                    "samples": base["samples"],
                    "prompt": base["prompt"],
                    "completion": n,
                    "kind": "fixed",
                },
            ),
            plan,
        )
        for n in sampled
    }
    return {
        "tokens a step": {**series(by_tokens), "line": line(by_tokens)},
        "group size": {**series(by_group), "memory": spread(by_group), "budget": full},
        "prompt length": series(by_prompt) | {"budget": room},
        "generation": {**series(generation), "line": line(generation)},
    }


def point(plan: Plan, sizes: dict[str, Any], budget: int) -> dict[str, Any]:
    """One learner, one workload."""
    name = ", ".join(f"{k} {sizes[k]}" for k in ("groups", "samples", "prompt"))
    return alone(ours(plan, sizes, name, tokens_per_micro_batch=budget), plan)


def series(points: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """What is kept of every point."""
    kept = ("median", "seconds", "tokens", "peak_rss_gib")
    return {"points": {x: {k: p[k] for k in kept} for x, p in points.items()}}


def line(points: dict[int, dict[str, Any]]) -> dict[str, float]:
    """Seconds as a line in completion tokens: how far the points are from it, and the growth.

    `growth`: time over tokens, the largest point against the smallest (1: proportional; below 1: a
    fixed part is spread over more tokens; above: worse than linear).
    """
    tokens = np.array([p["tokens"] for p in points.values()], dtype=float)
    seconds = np.array([p["median"] for p in points.values()])
    slope, fixed = np.polyfit(tokens, seconds, 1)
    off = np.abs(seconds - (slope * tokens + fixed)) / seconds
    growth = (seconds[-1] / seconds[0]) / (tokens[-1] / tokens[0])
    return {
        "largest relative distance": round(float(off.max()), 4),
        "growth": round(float(growth), 3),
        "fixed seconds": round(float(fixed), 3),
    }


def spread(points: dict[int, dict[str, Any]]) -> float:
    """Largest peak memory over smallest."""
    peaks: Sequence[float] = [p["peak_rss_gib"] for p in points.values()]
    return round(max(peaks) / min(peaks), 3)
