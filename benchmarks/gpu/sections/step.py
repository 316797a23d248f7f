"""Whole steps of SmolLM2: ours with either engine, and TRL with vLLM in the same process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from perf.contest import Contender

from gpu.assets import SMOLLM2, model
from gpu.figures import failed_rows, gib, measured, ratio
from gpu.section import Result, Section, Setup, Step
from gpu.table import markdown, number
from gpu.turns import contest
from gpu.vllm_environment import ENVIRONMENT

SIZES = {
    "recipe": "smollm2-multiplication.yaml",
    "prompts": 32,
    "samples": 8,
    "completion": 256,
    "tokens_per_micro_batch": 65_536,
    "micro_batch": 64,
}
TINY = SIZES | {
    "recipe": "parity-r1-zero.yaml",
    "prompts": 2,
    "completion": 8,
    "tokens_per_micro_batch": 128,
    "micro_batch": 8,
}
ROWS = SIZES["prompts"] * SIZES["samples"]
OURS, VLLM = "ours, embedded engine", "ours, vLLM"

# {step: (contender, script, settings, needs)}; vLLM has 0.3 of the card on both sides
CONTENDERS: dict[str, tuple[str, str, dict[str, Any], tuple[str, ...]]] = {
    "ours.torch": (OURS, "step_ours", {"engine": "torch"}, ()),
    "ours.vllm": (VLLM, "step_ours", {"engine": "vllm"}, ("vllm",)),
    "trl.autocast": (
        "TRL, vLLM, autocast",
        "step_trl",
        {"vllm": True, "precision": "autocast"},
        ("trl", "vllm"),
    ),
    "trl.bf16": (
        "TRL, vLLM, bf16 weights",
        "step_trl",
        {"vllm": True, "precision": "bf16 weights"},
        ("trl", "vllm"),
    ),
}


def steps(_: Setup) -> Sequence[Step]:
    """A step a contender, alone: vLLM measures free memory while it starts. About 60 s each."""
    return [
        Step(name=name, run=partial(measure, name=name), needs=("smollm2", *needs))
        for name, (_, _, _, needs) in CONTENDERS.items()
    ]


def measure(setup: Setup, *, name: str) -> Result:
    """Steps of one contender."""
    title, script, settings, needs = CONTENDERS[name]
    sizes = TINY if setup.tiny else SIZES
    settings = {**sizes, "model": str(model(setup, SMOLLM2)), **settings}
    if settings.get("engine") == "vllm" and setup.device == "cuda":
        settings["engine_args"] = {"gpu_memory_utilization": 0.3, "max_num_seqs": ROWS}
    if setup.device == "cpu":  # of the host's memory, which others have a part of
        settings["gpu_memory_utilization"] = 0.05
    environment = ENVIRONMENT if "vllm" in needs else {}
    contender = Contender(name=title, script=script, settings=settings, env=environment)
    return {"sizes": sizes, "contenders": contest(setup, [contender])}


def table(results: Mapping[str, Result]) -> str:
    """A row a contender, and how many times as long it takes as our faster engine."""
    heads = (
        "who",
        "seconds",
        "of it sampling, learning, weights",
        "tokens/s",
        "peak GiB",
        "our faster engine is faster by",
    )
    return markdown(heads, _rows(results, len(heads)))


def _rows(results: Mapping[str, Result], width: int) -> Iterator[list[Any]]:
    fastest = min(
        (
            record["median"]
            for step in CONTENDERS
            for name, record in measured(results, step)
            if name in (OURS, VLLM) and "median" in record
        ),
        default=None,
    )
    for step, (who, *_) in CONTENDERS.items():
        yield from failed_rows(results, step, [who], width)
        for _, record in measured(results, step):
            if "failed" in record:
                yield [who, f"failed: {record['failed']}", *[""] * (width - 2)]
                continue
            parts = [record.get(f"time/{part}") for part in ("rollout", "learn", "weights")]
            yield [
                who,
                number(record["median"], ".2f"),
                "" if None in parts else ", ".join(number(p, ".2f") for p in parts),
                number(record["tokens_per_second"]),
                gib(record),
                ratio(record["median"], fastest),
            ]


SECTION = Section(
    name="step",
    title="Whole steps of SmolLM2-135M: 32 prompts x 8 completions of 256 tokens",
    minutes=4,
    steps=steps,
    table=table,
)
