"""Check everything that can be known of a recipe, for all stages, before the first one starts.

    paths -> plug-ins -> tasks and their columns -> rows      `known`, without torch
    models -> tokenizers, templates, lengths of prompts       `check`: that, and these
    packages, room on the disk                                `machine.check_machine`

`plugs` and `needed` check plug-ins, rewards among them, and the columns that rewards need;
`stage_data` checks tasks and rows; `secrets` refuses passwords in a recipe; `found` has the result
and the names of stages in errors. `grpo plan` checks the same as `grpo train`, but asks nothing of
the Hugging Face hub. For a stage that starts from `stage:NAME`, `models` stands in for what that
stage will leave.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo.config.schema import AnyStage, Recipe
from grpo.stages.preflight.found import Found, prefix, said
from grpo.stages.preflight.machine import check_machine
from grpo.stages.preflight.paths import check_paths
from grpo.stages.preflight.plugs import Pieces, check_plugins
from grpo.stages.preflight.secrets import check_secrets
from grpo.stages.preflight.stage_data import check_rows
from grpo.types import TaskSource

__all__ = [
    "Found",
    "check",
    "check_machine",
    "check_secrets",
    "check_tasks",
    "first",
    "known",
    "start",
]


def first(recipe: Recipe) -> None:
    """Check what can be known of a new run before torch is imported. Raises GrpoError."""
    check_secrets(recipe)
    known(recipe, hub=True)
    check_machine(recipe)


def start(recipe: Recipe, folder: Path, done: Collection[str], say: Callable[[str], Any]) -> None:
    """Check the stages of the run in `folder` that are not in `done`, and `say` each note.

    Raises GrpoError for what a stage would refuse when its turn comes.
    """
    if len(done) == len(recipe.stages):
        return
    check_machine(recipe, folder, done)
    for note in check(recipe, folder, done, hub=True).notes:
        say(note)


def check(
    recipe: Recipe, folder: Path | None = None, done: Collection[str] = (), *, hub: bool = False
) -> Found:
    """Refuse what any stage would refuse later, except for what this machine lacks.

    folder: of a run that was begun; done: its finished stages. hub: whether data sets and models
    may be looked up on the hub. Raises GrpoError, which names the setting as a person would write
    it, and for rows the file and line.
    """
    if folder is None:  # a new run; one that goes on has kept what it has
        check_secrets(recipe)
    pieces = known(recipe, done, hub=hub)
    from grpo.stages.preflight.models import check_models  # imports torch

    return check_models(recipe, folder, done, pieces, hub)


def known(recipe: Recipe, done: Collection[str] = (), *, hub: bool = False) -> Mapping[str, Pieces]:
    """The part of `check` that needs no torch; stage -> the tasks and rows that were read."""
    stages = [stage for stage in recipe.stages if stage.name not in done]
    return dict(_look(recipe, stages, hub))


def check_tasks(
    recipe: Recipe, stage: AnyStage, splits: Collection[str] = ("train", "heldout")
) -> TaskSource:
    """The tasks of a stage that samples, after the checks that need no torch.

    splits: those whose tasks are checked. Raises GrpoError.
    """
    ((_, pieces),) = _look(recipe, [stage], hub=True, splits=splits)
    assert pieces.source is not None  # the hub was asked
    return pieces.source


def _look(
    recipe: Recipe,
    stages: Sequence[AnyStage],
    hub: bool,
    splits: Collection[str] = ("train", "heldout"),
) -> Iterator[tuple[str, Pieces]]:
    """(stage's name, what was read of it). The quick checks of all stages come first."""
    for look in (check_paths, check_plugins):
        for stage in stages:
            with said(recipe, stage):
                look(stage, prefix(recipe, stage))
    for stage in stages:
        with said(recipe, stage):
            found = check_rows(stage, prefix(recipe, stage), hub, splits)
        yield stage.name, found
