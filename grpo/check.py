"""`grpo check` and `grpo doctor`: are the verifiers right, and does the sandbox hold?"""

from __future__ import annotations

from collections.abc import Iterator

from grpo import plugins
from grpo.console import Console
from grpo.errors import RecipeError
from grpo.preflight import check_tasks
from grpo.rewards import REWARDS
from grpo.rewards.golds import Checked, Fault, check
from grpo.rewards.known import misjudged
from grpo.rewards.probe import Report, doctor
from grpo.schema import Recipe, RLStage
from grpo.types import Task, TaskSource


def check_recipe(recipe: Recipe, limit: int, console: Console | None = None) -> bool:
    """Print every gold that is refused and every wrong answer that is accepted; True if none.

    At most `limit` tasks of each split of each RL stage are checked (an endless source has no
    last one). Raises RecipeError where no stage has a verifier to check.
    """
    console = console or Console(soft_wrap=True)
    clean, checked = True, 0
    for stage in recipe.stages:
        if not isinstance(stage, RLStage):
            continue
        source = check_tasks(recipe, stage)
        loaded = [
            (spec.name, plugins.load("reward", spec.name, REWARDS, spec.args))
            for spec in stage.rewards
        ]
        counts: dict[str, Checked] = {}
        try:
            for fault in check(_tasks(source, limit), loaded, counts):
                clean = False
                console.print(_line(fault), highlight=False)
        finally:
            for _, reward in loaded:
                close = getattr(reward, "close", None)
                if callable(close):
                    close()
        for name, count in counts.items():
            checked += count.tasks
            without = f", {count.skipped} without a gold answer" if count.skipped else ""
            console.print(f"stage {stage.name}, reward {name}: {count.tasks} tasks{without}")
    if not checked:
        raise RecipeError("nothing to check: no reward of this recipe judges an answer it has.")
    console.print("every gold accepted, no planted answer accepted" if clean else "see above")
    return clean


def print_doctor(console: Console | None = None) -> bool:
    """Print what confines model code on this machine; True if something does and graders work.

    A tier is in order when nothing leaks and every verifier, run in it from end to end, tells a
    known right answer from a wrong one.
    """
    console = console or Console(soft_wrap=True)
    best: Report | None = None
    sound = True
    for report in doctor():
        faults = misjudged(report.tier) if report.holds else []
        good = report.holds and not faults
        console.print(f"{'holds' if good else 'no   '}  {report.tier}", highlight=False)
        said = [report.error] if report.error else []
        said += [f"lets through: {action}" for action in report.leaks]
        said += [f"cannot {action}: {reason}" for action, reason in report.broken.items()]
        for line in [*said, *(f"cannot grade: {fault}" for fault in faults)]:
            console.print(f"         {line}", highlight=False)
        if best is None and report.holds:
            best, sound = report, not faults
    if best is None:
        console.print("no sandbox holds: `math` and `code` refuse unless args say sandbox: unsafe")
        return False
    console.print(f"in use: {best.tier}; denied: {', '.join(best.denied)}")
    if not sound:
        console.print("graders do not work in it: the lines above say what is missing")
    return sound


def _tasks(source: TaskSource, limit: int) -> Iterator[Task]:
    for split in ("train", "heldout"):
        size = source.size(split)
        for index in range(limit if size is None else min(size, limit)):
            yield source.task(split, index)


def _line(fault: Fault) -> str:
    what = "refuses the gold" if fault.kind == "gold" else "accepts the planted"
    return (
        f"{fault.reward} {what} {fault.answer[:60]!r} of task {fault.task!r}: "
        f"{fault.score.status} {fault.score.detail[:120]}"
    )
