"""Tasks from any Hugging Face data set, through `datasets.load_dataset`, with column mapping."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo.data.jsonl import TableSource, ToTask, column_mapper, make_tasks, read_jsonl
from grpo.errors import DataError
from grpo.model.hub import find_repo, offline, without_scripts
from grpo.outside.rows.columns import Row


def hub(
    *,
    path: str,
    name: str | None = None,
    split: str = "train",
    heldout_split: str | None = None,
    prompt: str = "prompt",
    answer: str | None = "answer",
    heldout_fraction: float = 0.1,
    revision: str | None = None,
) -> TableSource:
    """Tasks of the data set `path` (configuration `name`); `prompt` and `answer` name columns.

    Without `heldout_split`, the hash of the prompt holds out `heldout_fraction` of `split`.
    """
    to_task = column_mapper(prompt, answer)
    rows = load_rows(path, name, split, revision)
    train = make_tasks("hub", f"{path}[{split}]", rows, to_task)
    heldout = None
    if heldout_split is not None:
        rows = load_rows(path, name, heldout_split, revision)
        heldout = make_tasks("hub", f"{path}[{heldout_split}]", rows, to_task)
    return TableSource("hub", train, heldout, heldout_fraction, answer)


@dataclass(frozen=True, kw_only=True)
class OnHub:
    """A published data set: its id on the hub, its configuration `name` and its splits."""

    dataset: str
    name: str | None = None
    split: str = "train"
    heldout_split: str | None = None


def published(
    source: str,
    to_task: ToTask,
    at: OnHub,
    heldout_fraction: float,
    path: str | None,
    heldout_path: str | None = None,
) -> TableSource:
    """Tasks of a published data set, under the name `source`: from the hub, or from JSONL.

    With `path`, its rows are read there; else the split of `at` is. Held out are the rows of
    `heldout_path` or of the held-out split; where there is neither, `heldout_fraction` of the rows.
    """
    if path is not None:
        origin, rows = path, read_jsonl(path)
        heldout = None if heldout_path is None else read_jsonl(heldout_path)
    elif heldout_path is not None:
        raise DataError(f"{source}: heldout_path needs path")
    else:
        origin, rows = at.dataset, load_rows(at.dataset, at.name, at.split)
        held = at.heldout_split
        heldout = None if held is None else load_rows(at.dataset, at.name, held)
    train = make_tasks(source, origin, rows, to_task)
    tasks = None
    if heldout is not None:
        tasks = make_tasks(source, heldout_path or at.dataset, heldout, to_task)
    return TableSource(source, train, tasks, heldout_fraction)


def load_rows(
    path: str, name: str | None, split: str, revision: str | None = None
) -> list[tuple[str, Row]]:
    """Rows of one split, each with its place for error messages. Raises DataError."""
    said = f"data set {path!r} (name={name!r}, split={split!r}) cannot be loaded"
    cached = False
    if not Path(path).exists():
        try:
            found = find_repo(path, "dataset", revision)
        except LookupError as error:
            raise DataError(f"{said}: there is no such folder, {error}") from None
        revision, cached = found.revision, bool(found.unreachable)
    import datasets  # seconds to import, and only this source needs it

    try:
        with offline(cached):
            table: Any = datasets.load_dataset(
                path, name, split=split, revision=revision, **without_scripts()
            )
    except Exception as error:  # the library raises whatever its readers and its network raise
        raise DataError(f"{said}: {type(error).__name__}: {error}") from error
    return [(f"{path}[{split}] row {i}", as_row(dict(row))) for i, row in enumerate(table)]


def as_row(row: Row) -> Row:
    """A row of a table without the None that tables add to messages and tools.

    All structures of a column have the same keys, so an argument of one tool is None in all others.
    """
    nested = {
        key: _without_none(value)
        for key, value in row.items()
        if key in ("tools", "chat_template_kwargs") or _holds_messages(value)
    }
    return {**row, **nested}


def _holds_messages(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(m, dict) and "role" in m for m in value)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value
