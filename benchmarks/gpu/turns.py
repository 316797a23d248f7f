"""Contenders of the GPU measurements in turns, where one that fails costs the others nothing.

As `perf.contest`, a process each and never two at work, but all of them start at once: importing
takes longer than most repetitions here. What runs out of memory beside the others, which keep what
they once held, is tried again by itself; what fails there is a result too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from perf.contest import Contender, Plan, Worker, summary

from gpu.section import Result, Setup
from gpu.state import matrix_rate

REPEATS = 3
# torch's own error, and what vLLM says where the card has no room for it at its start
_FULL = ("OutOfMemoryError", "out of memory", "Free memory on device", "No available memory")


def plan_of(setup: Setup, repeats: int = REPEATS) -> Plan:
    """How the contenders of a step are measured."""
    return Plan(
        repeats=1 if setup.tiny else repeats,
        threads=setup.threads,
        quick=setup.tiny,
        device=setup.device,
    )


def contest(
    setup: Setup, contenders: Sequence[Contender], *, repeats: int = REPEATS, count: bool = False
) -> Result:
    """{name: what was measured, or {"failed": why}}, after a warm-up each.

    Of every contender what `perf.contest` gives, `tokens_per_second`, and `mfu`: the operations
    that the work needs over the card's rate of bfloat16 products, where both are known. count: also
    `counts`, the synchronizations and copies of one more repetition. A contender that was measured
    with nobody beside it, since memory did not suffice for all, has "alone".
    """
    plan = plan_of(setup, repeats)
    found = together(contenders, plan, count=count)
    for contender in contenders:
        reason = found[contender.name].get("failed", "")
        if len(contenders) > 1 and any(words in reason for words in _FULL):
            again = together([contender], plan, count=count)[contender.name]
            found[contender.name] = {**again, "alone": True}
    rate = matrix_rate(setup, "bfloat16")
    return {name: figures(found[name], rate) for name in found}


def together(contenders: Sequence[Contender], plan: Plan, *, count: bool) -> dict[str, Result]:
    """All of them in turns; one that fails is closed, and the others go on."""
    failed: dict[str, Result] = {}
    answers: dict[str, list[dict[str, Any]]] = {}
    counts: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        workers = {c.name: Worker(c, plan) for c in contenders}
        for worker in workers.values():
            stack.callback(worker.close)

        def each(ask: Callable[[Worker], Any]) -> dict[str, Any]:
            """What the workers that are left answer."""
            said: dict[str, Any] = {}
            for name, worker in list(workers.items()):
                try:
                    said[name] = ask(worker)
                except (RuntimeError, BrokenPipeError) as error:
                    print(f"   {name}: {error}", flush=True)
                    failed[name] = {"failed": str(error)}
                    workers.pop(name).close()
            return said

        each(Worker.ready)
        each(Worker.repeat)
        for _ in range(plan.repeats):
            for name, answer in each(Worker.repeat).items():
                answers.setdefault(name, []).append(answer)
        without = dict(failed)  # whoever fails while it is counted has its figures
        if count:
            counts = each(Worker.count)
    done = {name: summary(a) for name, a in answers.items() if name not in without}
    for name, found in counts.items():
        done[name]["counts"] = found
    return {c.name: without.get(c.name) or done[c.name] for c in contenders}


def figures(record: Result, rate: float | None) -> Result:
    """A contender's record with what follows from it."""
    if "failed" in record:
        return record
    more: Result = {}
    if "tokens" in record:
        more["tokens_per_second"] = round(record["tokens"] / record["median"], 1)
    if rate and "needed_flops" in record:
        more["mfu"] = round(record["needed_flops"] / record["median"] / rate, 4)
    return {**record, **more}
