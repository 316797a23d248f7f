"""Whole steps of SmolLM2: ours with either engine, and TRL with vLLM in the same process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from perf.contest import Contender

from gpu.assets import SMOLLM2, model
from gpu.figures import contender_row, failed_rows, gib, measured, ratio
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

HOW = (
    "Sampling, rewards, learning and new weights in the engine; tokens are those of "
    "completions. vLLM has 0.3 of the card on either side, which its peak is mostly. TRL: its "
    "defaults, so it scores what it sampled once more to correct for vLLM's rounding; ours "
    "corrects in the pass it learns by."
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A contender by itself: vLLM measures free memory while it starts. About 60 s each."""

    who: str
    script: str
    settings: Mapping[str, Any]

    def by_vllm(self, device: str) -> bool:
        """Whether it samples by vLLM.

        TRL does on a card alone: it cannot hand weights to the CPU build, whose layers are packed.
        There it samples by transformers' generate, which shows that the rest of it runs.
        """
        if self.script == "step_trl":
            return device == "cuda"
        return self.settings["engine"] == "vllm"

    def needs(self, device: str) -> tuple[str, ...]:
        """Of its step."""
        trl = ("trl",) if self.script == "step_trl" else ()
        return ("smollm2", *trl, *(("vllm",) if self.by_vllm(device) else ()))


PARTS = {
    "ours.torch": Part(who=OURS, script="step_ours", settings={"engine": "torch"}),
    "ours.vllm": Part(who=VLLM, script="step_ours", settings={"engine": "vllm"}),
    "trl.autocast": Part(
        who="TRL, vLLM, autocast", script="step_trl", settings={"precision": "autocast"}
    ),
    "trl.bf16": Part(
        who="TRL, vLLM, bf16 weights", script="step_trl", settings={"precision": "bf16 weights"}
    ),
}


def steps(setup: Setup) -> Sequence[Step]:
    """A step a contender; tiny: TRL in one precision."""
    return [
        Step(name=name, run=partial(measure, part=part), needs=part.needs(setup.device))
        for name, part in PARTS.items()
        if not setup.tiny or name != "trl.bf16"
    ]


def measure(setup: Setup, *, part: Part) -> Result:
    """Steps of one contender; vLLM has 0.3 of the card on either side, as is TRL's default."""
    sizes, by_vllm = TINY if setup.tiny else SIZES, part.by_vllm(setup.device)
    settings = {**sizes, "model": str(model(setup, SMOLLM2)), **part.settings, "vllm": by_vllm}
    if by_vllm and setup.device == "cuda":
        settings["engine_args"] = {"gpu_memory_utilization": 0.3, "max_num_seqs": ROWS}
    contender = Contender(
        name=part.who,
        script=part.script,
        settings=settings,
        env=ENVIRONMENT if by_vllm else {},
    )
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
    return markdown(heads, _rows(results, len(heads))) + f"\n\n{HOW}"


def _rows(results: Mapping[str, Result], width: int) -> Iterator[list[Any]]:
    fastest = min(
        (
            record["median"]
            for step in PARTS
            for name, record in measured(results, step)
            if name in (OURS, VLLM) and "median" in record
        ),
        default=None,
    )
    for step, part in PARTS.items():
        who = part.who
        yield from failed_rows(results, step, [who], width)
        for _, record in measured(results, step):
            yield contender_row([who], record, width, partial(_cells, fastest=fastest))


def _cells(record: Result, fastest: float | None) -> list[str]:
    parts = [record.get(f"time/{part}") for part in ("rollout", "learn", "weights")]
    return [
        number(record["median"], ".2f"),
        "" if None in parts else ", ".join(number(p, ".2f") for p in parts),
        number(record["tokens_per_second"]),
        gib(record),
        ratio(record["median"], fastest),
    ]


SECTION = Section(
    name="step",
    title="Whole steps of SmolLM2-135M: 32 prompts x 8 completions of 256 tokens",
    minutes=3.5,
    steps=steps,
    table=table,
)
