"""Check the data of a stage: tasks with the columns that rewards need, rows to fine-tune on."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from grpo.config import schema
from grpo.data.source import DemonstrationSource, Split
from grpo.errors import DataError, at
from grpo.evaluation.decontaminate import check_evaluation
from grpo.evaluation.heldout import NO_TASKS
from grpo.outside.code import plugins
from grpo.rewards.language import LanguageConsistency
from grpo.stages.preflight.needed import check_columns, size_of, task_at
from grpo.stages.preflight.paths import HUB, PUBLISHED, is_rows_file
from grpo.stages.preflight.plugs import Pieces, all_rewards
from grpo.stages.supervised_rows import read_rows
from grpo.types import TaskSource


def check_rows(
    stage: schema.AnyStage, where: str, hub: bool, splits: Collection[str] = ("train", "heldout")
) -> Pieces:
    """Read the data of a stage, and refuse what it would refuse when its turn comes.

    Data on the hub are read only if `hub` is set. splits: whose tasks are checked. Raises
    DataError, RecipeError and PluginError.
    """
    if isinstance(stage, schema.SFTStage):
        return Pieces(rows=dict(_supervised(stage, where, hub)))
    source = open_source(stage.data.source, stage.data.args, where, hub)
    if source is None:
        return Pieces()
    if isinstance(stage, schema.PretrainStage):
        with at(f"{where}data"):
            _check_size(demonstrating(source), "train")
            task_at(source, "train", 0)
        return Pieces(source=source)
    rewards = {k: named for k, named in all_rewards(stage, where).items() if k in splits}
    for split, named in rewards.items():
        answer = f"{where}data.args.answer"
        check_columns(source, cast(Split, split), named, f"{where}data", answer)
    for split in rewards:
        with at(f"{where}data"):
            _check_size(source, cast(Split, split))
    if isinstance(stage, schema.RejectStage | schema.DistillStage):
        _check_filter(stage, where, hub)
    return Pieces(source=source)


def _check_filter(stage: schema.RejectStage | schema.DistillStage, where: str, hub: bool) -> None:
    """Language and evaluation sets of a stage that keeps some of its completions."""
    if stage.filter.language:
        with at(f"{where}filter.language = {stage.filter.language!r}"):
            LanguageConsistency(stage.filter.language)
    names = stage.filter.decontaminate
    with at(f"{where}filter.decontaminate"):
        args = {name: stage.data.args if name == stage.data.source else {} for name in names}
        check_evaluation([n for n in names if hub or not needs_hub(n, args[n])], stage.data)


def open_source(source: str, args: Mapping[str, Any], where: str, hub: bool) -> TaskSource | None:
    """The tasks of a stage, of a mixture the parts that can be read.

    None where the tasks are on the hub and `hub` is not set.
    """
    if needs_hub(source, args) and not hub:
        parts = args.get("parts", ()) if source == "mixture" else ()
        here = [part for part in parts if not _part_needs_hub(part)]
        if not here:
            return None
        args = {**args, "parts": here}
    with at(f"{where}data"):
        return plugins.load("source", source, args)


def needs_hub(source: str, args: Mapping[str, Any]) -> bool:
    """Whether a built-in source reads from the hub."""
    if source == "mixture":
        return any(map(_part_needs_hub, args.get("parts", ())))
    path = args.get("path")
    if source == HUB:
        return not (isinstance(path, str) and Path(path).expanduser().exists())
    return source in PUBLISHED and path is None


def _part_needs_hub(part: Any) -> bool:
    if not isinstance(part, Mapping) or not isinstance(part.get("source"), str):
        return False  # the mixture says what is wrong with it
    return needs_hub(part["source"], part.get("args") or {})


def _supervised(stage: schema.SFTStage, where: str, hub: bool) -> Iterator[tuple[str, Any]]:
    """(path, rows) of the tables that exist already."""
    named = [("data.path", stage.data.path), *(("data.mix", path) for path in stage.data.mix)]
    for setting, path in named:
        if path.startswith(schema.REFERENCE) or not (hub or is_rows_file(path)):
            continue
        with at(f"{where}{setting}"):
            found = read_rows(path)
        yield path, found


def _check_size(source: TaskSource, split: Split) -> None:
    if size_of(source, split) != 0:
        return
    if split == "train":
        raise DataError("there are no tasks to train on, all are held out")
    raise DataError(NO_TASKS)


def demonstrating(source: TaskSource) -> DemonstrationSource:
    """The source of a pretrain stage. Raises DataError where it demonstrates nothing."""
    if not isinstance(source, DemonstrationSource):
        raise DataError(
            f"{type(source).__name__} cannot be pretrained on: it has no alphabet() and "
            "demonstration(task, rng)"
        )
    return source
