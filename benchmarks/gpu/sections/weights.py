"""Delivery of a learner's weights to the embedded engine and to vLLM in the same process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from perf.contest import Contender

from gpu.assets import SMOLLM2, model
from gpu.figures import contender_row, failed_rows, gib, measured
from gpu.section import Result, Section, Setup, Step
from gpu.table import markdown, number
from gpu.turns import contest
from gpu.vllm_environment import ENVIRONMENT

MODELS = (SMOLLM2, "qwen2.5-1.5b")
ENGINES: dict[str, dict[str, str]] = {"torch": {}, "vllm": ENVIRONMENT}  # {engine: environment}
# Columns of the table, of perf/deliver.py; `reading back` is vLLM's alone.
PARTS = (
    "learner's hash",
    "copy",
    "reading back",
    "engine's hash",
    "engine's canary",
    "learner's canary",
    "the rest",
)


def steps(setup: Setup) -> Sequence[Step]:
    """A step an engine and a model; about 25 s with the embedded engine, 45 s with vLLM.

    tiny: one model, as all of them are the same one then.
    """
    return [
        Step(
            name=f"{engine}.{name}",
            run=partial(deliver, engine=engine, name=name),
            needs=(
                *(("smollm2",) if name == SMOLLM2 else ()),
                *(("vllm",) if engine == "vllm" else ()),
            ),
        )
        for engine in ENGINES
        for name in (MODELS[:1] if setup.tiny else MODELS)
    ]


def deliver(setup: Setup, *, engine: str, name: str) -> Result:
    """Deliveries after one optimizer step each."""
    settings = {"model": str(model(setup, name)), "dtype": "bfloat16", "engine": engine}
    contender = Contender(name=engine, script="deliver", settings=settings, env=ENGINES[engine])
    return {"contenders": contest(setup, [contender])}


def table(results: Mapping[str, Result]) -> str:
    """A row an engine and a model: seconds of every part, and bytes a second of all of it."""
    heads = ("engine", "model", "GB", "seconds", *PARTS, "GB/s", "peak GiB")
    return markdown(heads, _rows(results, len(heads)))


def _rows(results: Mapping[str, Result], width: int) -> Iterator[list[Any]]:
    for engine in ENGINES:
        for name in MODELS:
            step = f"{engine}.{name}"
            yield from failed_rows(results, step, [engine, name], width)
            for _, record in measured(results, step):
                yield contender_row([engine, name], record, width, _cells)


def _cells(record: Result) -> list[str]:
    size, parts = record["bytes"] / 1e9, record["parts"]
    return [
        number(size, ".2f"),
        number(record["median"], ".3f"),
        *(number(parts[p], ".3f") if p in parts else "" for p in PARTS),
        number(size / record["median"], ".2f"),
        gib(record),
    ]


SECTION = Section(
    name="weights",
    title="Delivery of weights in bfloat16, with the hashes and canaries that prove it",
    minutes=2.5,
    steps=steps,
    table=table,
)
