"""Our learner in the shape of the one published table for a small model and long rows.

prime-rl's (2026-02, one H100): Qwen3-0.6B, one sequence a micro-batch, recomputation. Its MFU is of
the card's nominal rate, ours of the measured one; both count the operations that the work needs, so
tokens a second compare directly, and recomputation is not in either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from perf.contest import Contender

from gpu.assets import model
from gpu.figures import contender_row, counted, failed_rows, gib, measured, share
from gpu.section import Result, Section, Setup, Step
from gpu.table import markdown, number
from gpu.turns import contest

MODEL = "qwen3-0.6b"
PROMPT = 64


@dataclass(frozen=True, kw_only=True)
class Published:
    """A row of prime-rl's table, on one H100: tokens a second, MFU, GiB."""

    rate: float
    mfu: float
    gib: float


@dataclass(frozen=True, kw_only=True)
class Part:
    """A step: rows of `length` tokens, one a micro-batch."""

    length: int
    rows: int
    recompute: bool

    @property
    def name(self) -> str:
        """Of the step."""
        return f"{self.length}.{'recomputed' if self.recompute else 'kept'}"


# Without recomputation a row of 65,536 keeps 131 GiB, beside 10 GiB of weights and moments.
PARTS = (
    Part(length=16_384, rows=4, recompute=True),
    Part(length=16_384, rows=4, recompute=False),
    Part(length=65_536, rows=2, recompute=True),
)
PUBLISHED = {
    16_384: Published(rate=11_900, mfu=0.111, gib=12.5),
    65_536: Published(rate=10_200, mfu=0.268, gib=19.6),
}


def steps(setup: Setup) -> Sequence[Step]:
    """A step a part; 50 to 80 s each. tiny: the first alone."""
    parts = PARTS[:1] if setup.tiny else PARTS
    return [Step(name=part.name, run=partial(learn, part=part)) for part in parts]


def learn(setup: Setup, *, part: Part) -> Result:
    """Learner steps on rows of that length; tokens are all that pass through the model."""
    length = 48 if setup.tiny else part.length
    prompt = 8 if setup.tiny else PROMPT
    rollouts = {
        "groups": part.rows // 2,
        "samples": 2,  # the fewest that give an advantage
        "prompt": prompt,
        "completion": length - prompt,
        "kind": "fixed",
        "dead": 0,
    }
    settings = {
        "model": str(model(setup, MODEL)),
        "dtype": "bfloat16",
        "tokens_per_micro_batch": length,  # one sequence, as theirs
        "gradient_checkpointing": part.recompute,
        "rollouts": rollouts,
    }
    contender = Contender(name="ours", script="learn_ours", settings=settings)
    # the longer rows launch the same, and take a quarter of a minute a step
    found = contest(setup, [contender], repeats=2, count=part is not PARTS[-1])
    ours = found["ours"]
    if "median" in ours:
        ours["tokens_per_second"] = round(part.rows * length / ours["median"], 1)
    return {"rollouts": rollouts, "contenders": found}


def table(results: Mapping[str, Result]) -> str:
    """Their rows and ours."""
    heads = (
        "row",
        "recomputation",
        "who",
        "tokens/s",
        "MFU",
        "peak GiB",
        "synchronizations, copies",
    )
    return markdown(heads, _rows(results, len(heads)))


def _rows(results: Mapping[str, Result], width: int) -> Iterator[list[Any]]:
    for part in PARTS:
        first = [f"{part.length:,} tokens", "yes" if part.recompute else "no"]
        theirs = PUBLISHED[part.length]
        if part.recompute:
            yield [
                *first,
                "prime-rl, one H100 (published)",
                number(theirs.rate),
                share(theirs.mfu),
                number(theirs.gib, ".1f"),
                "",
            ]
        yield from failed_rows(results, part.name, [*first, "ours"], width)
        for who, record in measured(results, part.name):
            yield contender_row([*first, who], record, width, _cells)


def _cells(record: Result) -> list[str]:
    return [
        number(record["tokens_per_second"]),
        share(record.get("mfu")),
        gib(record),
        counted(record),
    ]


SECTION = Section(
    name="long",
    title="Learner on long rows: Qwen3-0.6B, one sequence a micro-batch",
    minutes=3,
    steps=steps,
    table=table,
)
