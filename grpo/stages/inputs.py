"""What a stage reads from outside the run: rows of its data, files of code, folders of models.

Rows are read through the stage's source. This covers data from the hub, mixtures, held-out files
and sources of the user's own. Files are found by the settings that name them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from grpo.config.config import texts
from grpo.config.schema import AnyStage, DistillStage, EvalStage, RejectStage, RLStage, SFTStage
from grpo.data.given import GivenRows
from grpo.data.mixture import Mixture
from grpo.data.source import Split
from grpo.data.table import TableSource
from grpo.evaluation.decontaminate import prompt_text
from grpo.outside.code import objects, plugins
from grpo.rundir.identity import REVISION, HashedRows, code_digests, files_digests, row_digest
from grpo.stages.supervised_rows import read_rows
from grpo.types import TaskSource

MOST = 200_000  # rows of a table that are hashed
MADE = 10_000  # of a source of a user's own, which may work for each of its tasks
ENDLESS = 500  # of a source of theirs without end
MADE_UP = 64  # of one of ours that makes its tasks up from its arguments alone
ROWS = ("data.path", "data.mix.", "data.args.")  # what leads to rows, which are hashed themselves
SHOWN = 60  # characters of a row in a message
NAMES: dict[Split, str] = {"train": "training rows", "heldout": "held-out rows"}
HUB = ("model", "teacher", "slm", "models")  # sections whose texts may be names on the hub


def files_of(stage: AnyStage) -> dict[str, dict[str, Any]]:
    """setting -> {path, files: name -> digest} of the files and folders that settings name.

    Rows are not among them.
    """
    found: dict[str, dict[str, Any]] = {}
    for setting, text in texts(stage.model_dump(mode="json")):
        if setting.startswith(ROWS):
            continue
        files = _files(text)
        if not files and not _exists(text) and setting.partition(".")[0] in HUB:
            files = _revision(text)
        if files:
            found[setting] = {"path": text, "files": files}
    return found


def rows_of(stage: AnyStage) -> dict[str, HashedRows]:
    """title -> the rows of each part of the stage's data. Raises DataError, PluginError."""
    if isinstance(stage, SFTStage):
        paths = {"data.path": stage.data.path} | {f"data.mix.{p}": p for p in stage.data.mix}
        return {setting: _text_rows(setting, path) for setting, path in paths.items()}
    data = stage.data
    source = plugins.load("source", data.source, data.args)
    hashed = plugins.guard("source", data.source, _task_rows)
    return hashed(source, data.source, _title(data.source, data.args), _splits(stage))


def is_within(stage: AnyStage, folder: Path) -> bool:
    """Whether the stage's rows are made by an earlier stage of the run in `folder`."""
    if not isinstance(stage, SFTStage):
        return False
    return any(Path(p).is_relative_to(folder) for p in (stage.data.path, *stage.data.mix))


def sample_anew(stage: AnyStage, place: Path) -> None:
    """Move aside what the stage in `place` has sampled, because rows or rewards have changed.

    An rl stage drops the batches of its checkpoint itself (`record.accepted`).
    """
    work = place / "teacher" if isinstance(stage, DistillStage) else place
    sampled = None
    if isinstance(stage, RejectStage | DistillStage) and not (place / "data").is_dir():
        sampled = work / "shards"
    if isinstance(stage, EvalStage):
        sampled = place / "eval"
    if sampled is not None and sampled.is_dir():
        aside = sampled.with_name(f"{sampled.name}.replaced")
        shutil.rmtree(aside, ignore_errors=True)
        sampled.rename(aside)


def _splits(stage: AnyStage) -> Sequence[Split]:
    if isinstance(stage, RLStage):
        return ("train",) if stage.eval.is_off else ("train", "heldout")
    return ("heldout",) if isinstance(stage, EvalStage) else ("train",)


def _task_rows(
    source: TaskSource, spec: str, title: str, splits: Sequence[Split], inside: str = ""
) -> dict[str, HashedRows]:
    found: dict[str, HashedRows] = {}
    if isinstance(source, Mixture):
        for part in source.parts:
            named = f"part {part.name!r} of {title}"
            found |= _task_rows(part.source, spec, named, splits, f"{inside}{part.name}/")
        return found
    for split in splits:
        size = source.size(split)
        places = _places(source, spec, size)
        tasks = (source.task(split, place) for place in places)
        found[f"{inside}{split}"] = HashedRows(
            title=f"{title}, {NAMES[split]}",
            digests=[row_digest(t.uid, t.prompt, t.answer, dict(t.columns)) for t in tasks],
            size=size,
            shown=partial(_shown, source, split, places),
        )
    return found


def _places(source: TaskSource, spec: str, size: int | None) -> Sequence[int]:
    """Which tasks are hashed: all of a table, or a limited number at equal distances."""
    theirs = plugins.is_address(spec)
    most = MADE if theirs else MADE_UP
    if size is None:
        return range(ENDLESS if theirs else MADE_UP)
    if isinstance(source, TableSource):
        most = MOST
    return range(size) if size <= most else [i * size // most for i in range(most)]


def _shown(source: TaskSource, split: Split, places: Sequence[int], number: int) -> str:
    return prompt_text(source.task(split, places[number]).prompt)[:SHOWN]


def _text_rows(setting: str, path: str) -> HashedRows:
    rows = read_rows(path)
    digests = [row_digest(row.prompt, row.completion, dict(row.columns)) for row in rows]

    def shown(number: int) -> str:
        return prompt_text(rows[number].prompt)[:SHOWN]

    return HashedRows(title=f"{setting} = {path!r}", digests=digests, size=len(rows), shown=shown)


def _title(source: str, args: Mapping[str, Any]) -> str:
    """The data as a message names it: with the files or names that its arguments give."""
    paths = [
        f"{name}={value}"
        for name, value in args.items()
        if isinstance(value, str) and (name == "path" or name.endswith("_path"))
    ]
    return f"data.source = {source!r}" + (f" ({', '.join(paths)})" if paths else "")


def _files(text: str) -> dict[str, str]:
    """The files that a setting's text leads to: code of the user's, a file, or a model's folder.

    Of a Python object, its name and digest. Data in memory are rows, which are hashed themselves.
    """
    if objects.is_object(text):
        if not objects.has(text):
            return {}
        value = objects.find("object", text)
        return {} if isinstance(value, GivenRows) else dict([objects.identity(value)])
    if plugins.is_address(text) and not os.path.exists(text):
        return code_digests(text)
    looks = os.sep in text or Path(text).suffix
    return files_digests(Path(text).expanduser()) if looks and _exists(text) else {}


def _exists(text: str) -> bool:
    return os.path.exists(os.path.expanduser(text))


def _revision(model: str) -> dict[str, str]:
    """The commit of a model from the hub that lies in the local cache; {} where none does."""
    found = cached(model)
    return {REVISION: found.name} if found else {}


def cached(model: str) -> Path | None:
    """The folder in which a model of the hub lies in the local cache; None where none does."""
    try:
        found = try_to_load_from_cache(model, "config.json")
    except ValueError:  # no name of a repository: an address, say
        return None
    return Path(found).parent if isinstance(found, str) else None
