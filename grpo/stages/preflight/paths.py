"""Files and folders that a stage names: whether they are there."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo.config.schema import REFERENCE, AnyStage, RewardSpec, RLStage, SFTStage
from grpo.data.files import files_at
from grpo.errors import RecipeError, at
from grpo.outside.code import objects
from grpo.stages.adapters import check_adapter

MODELS = ("model.path", "teacher.path", "slm.reference", "models")  # settings that name models
HUB = "hub"  # the source whose `path` is a data set of the hub
# Sources that read a data set of the hub, and with `path` a file instead.
PUBLISHED = ("gsm8k", "math", "aime", "amc", "humaneval", "mbpp", "leetcode")
FILES = ("file", *PUBLISHED)  # sources whose path is a file, a folder or a pattern


def check_paths(stage: AnyStage, where: str) -> None:
    """Refuse a path that can only be local and does not exist.

    A path with one slash may be a hub id; its loader decides. Raises RecipeError.
    """
    _check_local(models(stage), where)
    check_adapter(stage, where)
    if isinstance(stage, SFTStage):
        _check_rows(f"{where}data.path", stage.data.path)
        for path in stage.data.mix:
            _check_rows(f"{where}data.mix", path)
        return
    _check_source(f"{where}data.args", stage.data.source, stage.data.args)
    _check_local(reward_models(stage), where)
    for path in getattr(getattr(stage, "filter", None), "decontaminate", ()):
        if path.endswith((".jsonl", ".json")) and not Path(path).expanduser().is_file():
            raise _missing(f"{where}filter.decontaminate", path)


def models(stage: AnyStage) -> Iterator[tuple[str, str]]:
    """(setting, path) of every model a stage loads from somewhere else than an earlier stage."""
    for setting in ("model.path", "teacher.path", "slm.reference"):
        section, _, name = setting.partition(".")
        path = getattr(getattr(stage, section, None), name, "")
        if path and not path.startswith((REFERENCE, "http://", "https://")):
            yield setting, path
    for index, path in enumerate(getattr(stage, "models", ())):
        if not path.startswith(REFERENCE):
            yield f"models.{index}", path


def reward_specs(stage: AnyStage) -> Iterator[tuple[str, RewardSpec]]:
    """(setting, reward) of each reward: the stage's, and those of an rl stage's evaluation."""
    own: Sequence[RewardSpec] = stage.eval.rewards if isinstance(stage, RLStage) else ()
    for field, specs in (("rewards", getattr(stage, "rewards", ())), ("eval.rewards", own)):
        yield from ((f"{field}.{index}", spec) for index, spec in enumerate(specs))


def reward_models(stage: AnyStage) -> Iterator[tuple[str, str]]:
    """(setting, path) of every reward model."""
    for setting, spec in reward_specs(stage):
        for name, path in _reward_models(spec.name, spec.args):
            yield f"{setting}.args.{name}", path


def _reward_models(name: str, args: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """(dotted argument, path) of a reward model, also of one inside `gate` or `routed`."""
    if name == "reward_model":
        if isinstance(args, Mapping) and isinstance(args.get("path"), str):
            yield f"{place}path", args["path"]
        return
    for key, value in args.items() if isinstance(args, Mapping) else ():
        if isinstance(args.get("name"), str) and key == "args":
            yield from _reward_models(args["name"], value, f"{place}args.")
        elif key.endswith("_args") and isinstance(args.get(key.removesuffix("_args")), str):
            yield from _reward_models(args[key.removesuffix("_args")], value, f"{place}{key}.")
        else:
            yield from _reward_models("", value, f"{place}{key}.")
    for index, value in enumerate(args if isinstance(args, list | tuple) else ()):
        yield from _reward_models("", value, f"{place}{index}.")


def is_local(path: str) -> bool:
    """Whether a path cannot be an id of the hub, which is NAME or OWNER/NAME."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1


def is_rows_file(path: str) -> bool:
    """Whether rows of a supervised stage are read from this machine: a hub id has no ending."""
    place = Path(path).expanduser()
    return place.exists() or bool(place.suffix) or place.is_absolute() or path.count("/") != 1


def _check_local(named: Iterable[tuple[str, str]], where: str) -> None:
    for setting, path in named:
        if is_local(path) and not Path(path).expanduser().exists():
            raise _missing(f"{where}{setting}", path)


def _check_rows(setting: str, path: str) -> None:
    elsewhere = path.startswith(REFERENCE) or objects.is_object(path)
    if not elsewhere and is_rows_file(path):
        _check_files(setting, path)


def _check_source(setting: str, source: str, args: Mapping[str, Any]) -> None:
    parts = args.get("parts")
    if source == "mixture" and isinstance(parts, list | tuple):
        for index, part in enumerate(parts):
            if isinstance(part, Mapping) and isinstance(part.get("source"), str):
                inner = part.get("args") or {}
                _check_source(f"{setting}.parts.{index}.args", part["source"], inner)
        return
    # What a plug-in calls a path may be where it writes to.
    for name in ("path", "heldout_path") if source in (*FILES, HUB) else ():
        path = args.get(name)
        if not isinstance(path, str):
            continue
        if source in FILES:
            _check_files(f"{setting}.{name}", path)
        elif is_local(path) and not Path(path).expanduser().exists():
            raise _missing(f"{setting}.{name}", path)


def _check_files(setting: str, path: str) -> None:
    """A file, a folder or a pattern of rows. Raises RecipeError, DataError."""
    if not (Path(path).expanduser().exists() or glob.has_magic(path)):
        raise _missing(setting, path)
    with at(f"{setting} = {path!r}"):
        files_at(path)


def _missing(setting: str, path: str) -> RecipeError:
    return RecipeError(f"{setting} = {path!r}: there is no such file or folder.")
