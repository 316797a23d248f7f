"""Where a learner step and 32 decoded tokens leave the card idle, by torch.profiler.

Each is profiled twice: as it is, for times, counts and the trace that is kept; and with Python's
stack, which slows the host down, to name the lines in whose gaps the card waits.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gpu import trace
from gpu.counts import profiled
from gpu.section import Result, Section, Setup, Step
from gpu.sections.learner import ROLLOUTS, TINY
from gpu.table import absent, markdown, number
from gpu.timeline import analyze

LARGEST = 5_000_000  # bytes of a kept trace
MODELS = {"smollm2-135m": ("smollm2",), "qwen2.5-0.5b": ()}
NEW_TOKENS = 32


def _learner(model: str) -> Callable[[Setup], Result]:
    def measure(setup: Setup) -> Result:
        from perf import learn_ours

        from gpu.assets import model as folder_of

        settings = {
            "model": str(folder_of(setup, model)),
            "device": setup.device,
            "dtype": "bfloat16",
            "tokens_per_micro_batch": 16_384,
            "rollouts": TINY if setup.tiny else ROLLOUTS,
        }
        return _profile(setup, f"learner.{model}", learn_ours.prepare, settings)

    return measure


def _decode(model: str) -> Callable[[Setup], Result]:
    def measure(setup: Setup) -> Result:
        from perf import gen_ours

        from gpu.assets import model as folder_of

        settings = {
            "model": str(folder_of(setup, model)),
            "device": setup.device,
            "dtype": "bfloat16",
            "prompts": 2 if setup.tiny else 64,
            "samples": 2 if setup.tiny else 8,
            "prompt": 8 if setup.tiny else 100,
            "completion": 8 if setup.tiny else NEW_TOKENS,
            "kind": "fixed",
        }
        if not setup.tiny:
            settings["max_rows"] = 512
        return _profile(setup, f"decode.{model}", gen_ours.prepare, settings)

    return measure


def _profile(
    setup: Setup,
    name: str,
    prepare: Callable[[dict[str, Any]], Callable[[], Mapping[str, Any]]],
    settings: dict[str, Any],
) -> Result:
    """Two warm repetitions, then one under each profiler; the trace of the first is kept."""
    on_card = setup.device == "cuda"
    repetition = prepare(settings)
    warm = [repetition()["seconds"] for _ in range(1 if setup.tiny else 2)]
    settings["counting"] = True  # the clock's own waits are none of the work's
    kept = setup.folder / "traces" / f"{name}.json.gz"
    with tempfile.TemporaryDirectory() as folder:
        plain, stacked = Path(folder) / "plain.json", Path(folder) / "stacked.json"
        profiled(repetition, plain, on_card=on_card)
        events = trace.read(plain)
        left_out = trace.write_small(events, kept, LARGEST)
        found = analyze(events)
        profiled(repetition, stacked, on_card=on_card, with_stack=True)
        named = analyze(trace.read(stacked))
    return {
        **found,
        "warm_seconds": warm,
        "named_gaps": named["gaps"],
        "named_seconds": named["seconds"],
        "trace": str(kept.relative_to(setup.folder)),
        "left_out": left_out,
    }


def _steps(setup: Setup) -> list[Step]:
    models = dict(list(MODELS.items())[:1]) if setup.tiny else MODELS
    kinds = {"learner": _learner, "decode": _decode}
    return [
        Step(name=f"{kind}.{model}", run=make(model), needs=needs)
        for model, needs in models.items()
        for kind, make in kinds.items()
    ]


def _table(results: Mapping[str, Result]) -> str:
    labels = {
        f"{kind}.{model}": f"{said}, {model}"
        for model in MODELS
        for kind, said in (("learner", "a learner step"), ("decode", "prompts and 32 tokens"))
    }
    rows = [_row(results, step, label) for step, label in labels.items()]
    heads = ("", "time", "busy", "idle", "launches", "waits", "copies to (blocking)", "back")
    parts = [markdown(heads, rows)]
    for step, label in labels.items():
        if absent(results, step) is None:
            parts += _details(results[step], label)
    return "\n\n".join(parts)


def _row(results: Mapping[str, Result], step: str, label: str) -> list[str]:
    reason = absent(results, step)
    if reason is not None:
        return [label, reason, *[""] * 6]
    r = results[step]
    times = [number(r[key], ".3f", " s") for key in ("seconds", "busy_seconds", "idle_seconds")]
    counts = r["counts"]
    if counts is None:  # on a CPU
        return [label, *times, *["not known"] * 4]
    copies = f"{counts['host_to_device']:,} ({counts['blocking_host_to_device']:,})"
    said = [f"{counts[key]:,}" for key in ("launches", "synchronizations")]
    return [label, *times, *said, copies, f"{counts['device_to_host']:,}"]


def _details(r: Result, label: str) -> list[str]:
    gaps = [
        [
            *(number(gap["ms"], ".3f"), number(gap["at_ms"], ".1f")),
            *(gap["operation"], gap["call"], f"`{gap['where']}`" if gap["where"] else ""),
        ]
        for gap in r["named_gaps"]
    ]
    kernels = [
        (f"`{_short(k['name'])}`", f"{k['ms']:.2f}", f"{k['count']:,}", f"{k['share']:.1%}")
        for k in r["kernels"]
    ]
    return [
        f"Longest gaps of {label}, on the timeline of {r['timeline']} with Python's stack recorded "
        f"({r['named_seconds']:.3f} s instead of {r['seconds']:.3f} s; "
        f"{r['warm_seconds'][-1]:.3f} s without a profiler):",
        markdown(("ms", "at ms", "operation", "CUDA call", "function of Python"), gaps),
        f"Longest kernels of {label}:",
        markdown(("", "ms", "calls", "of the busy time"), kernels),
    ]


def _short(name: str) -> str:
    return name if len(name) <= 90 else f"{name[:87]}..."


SECTION = Section(
    name="profile", title="Profile of the two halves", minutes=2.5, steps=_steps, table=_table
)
