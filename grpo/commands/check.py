"""`grpo check`: do the verifiers of a recipe accept its own golds, and refuse wrong answers?"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import closing

from grpo.config.schema import Recipe, RLStage
from grpo.errors import RecipeError
from grpo.outside.terminal.console import Console
from grpo.rewards.golds import Checked, Fault, check
from grpo.stages.preflight import check_tasks
from grpo.stages.remote_rewards import reward_set
from grpo.types import Task, TaskSource


def main(recipe: Recipe, arguments: Namespace) -> int:
    """Check a recipe as the command line says; 1 where a verifier is wrong. Raises GrpoError."""
    return 0 if check_recipe(recipe, arguments.limit) else 1


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
        counts: dict[str, Checked] = {}
        with closing(reward_set(stage.rewards)) as rewards:
            names = [spec.name for spec in stage.rewards]
            loaded = [(n, reward) for n, (_, reward, _) in zip(names, rewards.rewards, strict=True)]
            for fault in check(_tasks(source, limit), loaded, counts):
                clean = False
                console.print(_line(fault), highlight=False)
        for name, count in counts.items():
            checked += count.tasks
            without = f", {count.skipped} without a gold answer" if count.skipped else ""
            console.print(f"stage {stage.name}, reward {name}: {count.tasks} tasks{without}")
    if not checked:
        raise RecipeError("nothing to check: no reward of this recipe judges an answer it has.")
    console.print("every gold accepted, no planted answer accepted" if clean else "see above")
    return clean


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
