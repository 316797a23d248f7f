"""Tokens a second of sampling 512 completions: ours, transformers' generate and vLLM."""

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

SIZES = {"prompts": 64, "samples": 8, "prompt": 100, "completion": 256}
TINY = {"prompts": 2, "samples": 4, "prompt": 8, "completion": 8}
ROWS = SIZES["prompts"] * SIZES["samples"]  # all at once, as vLLM has them
REPEATS = 2  # a repetition is several seconds, and starts are most of a step

COMPILED, STATIC = "ours, compiled", "transformers, static cache"

# {contender: (script, settings, environment)}
CONTENDERS: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "ours": ("gen_ours", {"max_rows": ROWS}, {}),
    COMPILED: ("gen_ours", {"max_rows": ROWS, "compile": True}, {}),
    "transformers": ("gen_transformers", {}, {}),
    STATIC: ("gen_transformers", {"generate": {"cache_implementation": "static"}}, {}),
    "vLLM": ("gen_vllm", {"max_num_seqs": ROWS}, ENVIRONMENT),
}

HOW = (
    "All 512 at once in bfloat16 at temperature 1, every row to its planted length; tokens are "
    "those of completions. Ours gives log-probs and text of all of them; vLLM neither, nor does "
    "generate. vLLM: its defaults, CUDA graphs among them; its peak is the 0.3 of the card that "
    "it was given. generate with a static cache compiles its decoding."
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A step: who samples what. vLLM is alone: it measures free memory while it starts."""

    model: str
    kind: str
    who: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the step."""
        last = "" if len(self.who) > 1 else "." + self.who[0].rpartition(" ")[2].lower()
        return f"{self.model}.{self.kind}{last}"


# Seconds of each on an H200, estimated: 55, 35, 55, 35, 65 and 110 (torch.compile).
PARTS = (
    Part(model=SMOLLM2, kind="fixed", who=("ours", "transformers")),
    Part(model=SMOLLM2, kind="fixed", who=("vLLM",)),
    Part(model=SMOLLM2, kind="lognormal", who=("ours", "transformers")),
    Part(model=SMOLLM2, kind="lognormal", who=("vLLM",)),
    Part(model=SMOLLM2, kind="fixed", who=(STATIC,)),
    Part(model=SMOLLM2, kind="fixed", who=(COMPILED,)),
)


def steps(setup: Setup) -> Sequence[Step]:
    """A step a part; those that compile come last, as their time is the least known.

    tiny: not those that differ in model or lengths alone.
    """
    return [
        Step(
            name=part.name,
            run=partial(compare, part=part),
            needs=(
                *(("smollm2",) if part.model == SMOLLM2 else ()),
                *(("vllm",) if "vLLM" in part.who else ()),
                # minutes on a CPU, or nothing
                *(("card",) if {COMPILED, STATIC} & {*part.who} else ()),
            ),
        )
        for part in PARTS
        if not setup.tiny or (part.model, part.kind) == (SMOLLM2, "fixed")
    ]


def compare(setup: Setup, *, part: Part) -> Result:
    """Whoever is in the part, in turns."""
    sizes = TINY if setup.tiny else SIZES
    base = {"model": str(model(setup, part.model)), "dtype": "bfloat16", "kind": part.kind, **sizes}
    if setup.device == "cpu":
        base["arguments"] = {"enforce_eager": True}  # of vLLM, which compiles for minutes there
    contenders = [
        Contender(name=who, script=script, settings=base | settings, env=environment)
        for who in part.who
        for script, settings, environment in (CONTENDERS[who],)
    ]
    return {"sizes": sizes, "contenders": contest(setup, contenders, repeats=REPEATS)}


def table(results: Mapping[str, Result]) -> str:
    """A row a contender of every workload, and how many times as fast ours is."""
    heads = ("model", "lengths", "who", "seconds", "tokens/s", "peak GiB", "ours is faster by")
    return markdown(heads, _rows(results, len(heads))) + f"\n\n{HOW}"


def _rows(results: Mapping[str, Result], width: int) -> Iterator[list[Any]]:
    for part in sorted(PARTS, key=lambda p: (p.model, p.kind)):
        first = [part.model, part.kind]
        if part.name not in results or "contenders" not in results[part.name]:
            yield from failed_rows(results, part.name, [*first, ", ".join(part.who)], width)
        for who, record in measured(results, part.name):
            base = None if who == "ours" else ours(results, part)
            yield contender_row([*first, who], record, width, partial(_cells, base=base))


def _cells(record: Result, base: float | None) -> list[str]:
    return [
        number(record["median"], ".2f"),
        number(record["tokens_per_second"]),
        gib(record),
        ratio(record["median"], base),
    ]


def ours(results: Mapping[str, Result], part: Part) -> float | None:
    """Seconds of our engine on the workload of a part."""
    same = (p.name for p in PARTS if (p.model, p.kind) == (part.model, part.kind))
    found = [dict(measured(results, name)).get("ours", {}) for name in same]
    return next((record["median"] for record in found if "median" in record), None)


SECTION = Section(
    name="generation",
    title="Sampling 64 prompts x 8 completions of 256 tokens, prompts of 100",
    minutes=6,
    steps=steps,
    table=table,
)
