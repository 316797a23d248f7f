"""Section 1: tokens a second of sampling. 8 prompts x 8 samples, end-of-sequence ignored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from perf.contest import Contender, Plan, contest, trial

# vLLM's CPU settings that are tried on the first workload; the fastest is kept for all.
VLLM_SETTINGS: dict[str, dict[str, Any]] = {
    "eager": {"enforce_eager": True},
    "eager, blocks of 32": {"enforce_eager": True, "block_size": 32},
    "compiled": {"enforce_eager": False},
}
WORKLOADS = ((64, "fixed"), (64, "lognormal"))


def measure(
    plan: Plan,
    workloads: tuple[tuple[int, str], ...] = WORKLOADS,
    *,
    vllm: str | None = None,
    transformers: bool = True,
) -> dict[str, Any]:
    """Every workload: ours, transformers, vLLM; `vllm`: its settings, tried out where None."""
    shape = {"prompts": 8, "samples": 8, "prompt": 44}
    if plan.quick:
        shape, workloads = {"prompts": 2, "samples": 4, "prompt": 20}, ((16, "lognormal"),)
    base = {"model": plan.model, "dtype": plan.dtype, **shape}
    first = base | dict(zip(("completion", "kind"), workloads[0], strict=True))
    vllm = best_vllm(plan, first) if vllm is None or not plan.vllm_python else vllm
    found: dict[str, Any] = {}
    for completion, kind in workloads:
        print(f"-- {completion} new tokens, {kind} lengths", flush=True)
        settings = base | {"completion": completion, "kind": kind}
        contenders = [
            Contender(name="ours", script="gen_ours", settings=settings),
        ]
        if transformers:
            contenders.append(
                Contender(name="transformers", script="gen_transformers", settings=settings)
            )
        if vllm is not None:
            contenders.append(vllm_contender(plan, settings, vllm))
        result = contest(contenders, plan)
        for record in result.values():
            record["tokens_per_second"] = round(record["tokens"] / record["median"], 1)
        ours = result["ours"]["tokens_per_second"]
        ratios = {n: round(ours / r["tokens_per_second"], 2) for n, r in result.items()}
        found[f"{completion} {kind}"] = {**result, "ours over": ratios}
    return {"shape": shape, "dtype": plan.dtype, "vllm settings": vllm, "workloads": found}


def best_vllm(plan: Plan, settings: dict[str, Any]) -> str | None:
    """The name of vLLM's fastest settings; None where there is no vLLM."""
    if not plan.vllm_python:
        print("   no interpreter with vLLM was given (--vllm-python): left out", flush=True)
        return None
    names = list(VLLM_SETTINGS)[: 1 if plan.quick else None]
    times = {name: trial(vllm_contender(plan, settings, name), plan) for name in names}
    ran = {name: seconds for name, seconds in times.items() if seconds is not None}
    if not ran:
        raise RuntimeError("vLLM did not run with any settings; its messages are above")
    return min(ran, key=lambda name: ran[name])


def vllm_contender(plan: Plan, settings: dict[str, Any], name: str) -> Contender:
    """vLLM bound to the cores it may use, with the OpenMP library it advises if that is there."""
    env = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{plan.threads - 1}",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }
    preload = [p for p in libraries(plan.vllm_python) if p.exists()]
    if preload:
        env["LD_PRELOAD"] = ":".join(map(str, preload))
    return Contender(
        name="vllm-cpu",
        script="gen_vllm",
        settings=settings | {"arguments": VLLM_SETTINGS[name]},
        python=plan.vllm_python,
        env=env,
    )


def libraries(python: str) -> list[Path]:
    """What vLLM's manual says to preload: Intel's OpenMP and tcmalloc, where they usually are."""
    return [
        Path(python).parent.parent / "lib" / "libiomp5.so",
        Path("/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4"),
    ]
