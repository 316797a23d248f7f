"""One learner step on the same recorded rollouts: ours, and TRL's own loss path and optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from perf.contest import Contender

from gpu.assets import SMOLLM2, model
from gpu.figures import contender_row, counted, failed_rows, gib, measured, ratio, share
from gpu.section import Result, Section, Setup, Step
from gpu.table import markdown, number
from gpu.turns import contest

# (our tokens a micro-batch, TRL's rows a micro-batch): the leaner settings, then the larger ones
SIZES = ((16_384, 16), (65_536, 64))
TINY_SIZES = ((64, 4), (128, 8))
# Of 1.5B a forward pass keeps 3 MiB a token, and weights, gradients and moments take 23 GiB: in the
# small size all three lie beside each other, in the larger ones none fits by itself.
SMALL = ((8_192, 8),)
MODELS = {SMOLLM2: SIZES, "qwen2.5-1.5b": SMALL, "qwen2.5-0.5b": SIZES[:1]}
# perf/trl_trainer.py: ours is the first; the second learns nothing at small learning rates
PRECISIONS = ("autocast", "bf16 weights")
ROLLOUTS = {
    "groups": 32,
    "samples": 8,
    "prompt": 100,
    "completion": 512,
    "kind": "lognormal",
    "dead": 0,
}
TINY = ROLLOUTS | {"groups": 2, "samples": 4, "prompt": 8, "completion": 12}

HOW = (
    "Seconds are from recorded completions to new weights; tokens are those of completions, "
    "without padding. MFU counts what the work needs, a shared prompt once, over the measured "
    "rate of bfloat16 products. TRL: its own loss with its fused head, SDPA (FlashAttention is "
    "not installed), fused AdamW, no recomputation, eager as it is by default; its extra pass "
    "that corrects for vLLM's rounding is not in it."
)


def steps(setup: Setup) -> Sequence[Step]:
    """A step a model and a size of micro-batches; about 70 s each, much of it imports.

    tiny: the first alone, as all models are the same one then.
    """
    every = [
        Step(
            name=f"{name}.{tokens}",
            run=partial(compare, name=name, size=size),
            needs=("trl", *(("smollm2",) if name == SMOLLM2 else ())),
        )
        for name, sizes in MODELS.items()
        for size, (tokens, _) in enumerate(sizes)
    ]
    return every[:1] if setup.tiny else every


def compare(setup: Setup, *, name: str, size: int) -> Result:
    """Ours and TRL's precisions in turns, without gradient checkpointing."""
    tokens, rows = (TINY_SIZES if setup.tiny else MODELS[name])[size]
    rollouts = TINY if setup.tiny else ROLLOUTS
    shared = {"model": str(model(setup, name)), "rollouts": rollouts}
    ours = {"dtype": "bfloat16", "tokens_per_micro_batch": tokens}
    contenders = [Contender(name="ours", script="learn_ours", settings=shared | ours)]
    contenders += [
        Contender(
            name=f"TRL, {precision}",
            script="learn_trl",
            settings=shared
            | {"precision": precision, "micro_batch": rows, "gradient_checkpointing": False},
        )
        for precision in PRECISIONS
    ]
    found = contest(setup, contenders, count=True)
    return {"rollouts": rollouts, "tokens": tokens, "rows": rows, "contenders": found}


def table(results: Mapping[str, Result]) -> str:
    """A row a contender, with our speed-up over it at our faster micro-batch; then the ratios."""
    heads = (
        "model",
        "who",
        "micro-batch",
        "seconds",
        "tokens/s",
        "MFU",
        "peak GiB",
        "synchronizations, copies",
        "ours is faster by",
    )
    said = [f"{name}: {best(results, name)}" for name in MODELS]
    return markdown(heads, _rows(results, len(heads))) + "\n\n" + "  \n".join(said) + f"\n\n{HOW}"


def _rows(results: Mapping[str, Result], width: int) -> Iterator[list[Any]]:
    for name in MODELS:
        fastest = min((r["median"] for _, _, r in ran(results, name, "ours")), default=None)
        for tokens, _ in MODELS[name]:
            step = f"{name}.{tokens}"
            yield from failed_rows(results, step, [name, ""], width)
            for who, record in measured(results, step):
                found = results[step]
                batch = f"{found['tokens']:,} tokens" if who == "ours" else f"{found['rows']} rows"
                label = who if "failed" in record or "alone" not in record else f"{who} (alone)"
                base = None if who == "ours" else fastest
                cells = partial(_cells, base=base)
                yield contender_row([name, label, batch], record, width, cells)


def _cells(record: Result, base: float | None) -> list[str]:
    return [
        number(record["median"], ".3f"),
        number(record["tokens_per_second"]),
        share(record.get("mfu")),
        gib(record),
        counted(record),
        ratio(record["median"], base),
    ]


def ran(results: Mapping[str, Result], name: str, who: str) -> list[tuple[str, str, Result]]:
    """(step, contender, record) of the measurements of a model by contenders of that beginning."""
    return [
        (f"{name}.{tokens}", contender, record)
        for tokens, _ in MODELS[name]
        for contender, record in measured(results, f"{name}.{tokens}")
        if contender.startswith(who) and "failed" not in record
    ]


def best(results: Mapping[str, Result], name: str) -> str:
    """Our fastest setting over TRL's fastest, and over its fastest in our precision."""
    ours = [r["median"] for _, _, r in ran(results, name, "ours")]
    every = [r["median"] for _, _, r in ran(results, name, "TRL")]
    same = [r["median"] for _, _, r in ran(results, name, f"TRL, {PRECISIONS[0]}")]
    if not (ours and every):
        return "no speed-up is known"
    said = f"{min(every) / min(ours):.2f} times TRL's fastest setting"
    return f"{said}, {min(same) / min(ours):.2f} times in the same precision" if same else said


SECTION = Section(
    name="learner",
    title="Learner step on recorded rollouts: 32 groups x 8, prompts of 100, lognormal to 512",
    minutes=5.5,
    steps=steps,
    table=table,
)
