"""Tasks from any Hugging Face data set, through `datasets.load_dataset`, with column mapping."""

from __future__ import annotations

from typing import Any

from grpo.data.jsonl import Row, Rows, column_mapper, make_tasks
from grpo.errors import DataError


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
) -> Rows:
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
    return Rows("hub", train, heldout, heldout_fraction)


def load_rows(
    path: str, name: str | None, split: str, revision: str | None = None
) -> list[tuple[str, Row]]:
    """Rows of one split, each with its place for error messages. Raises DataError."""
    import datasets  # seconds to import, and only this source needs it

    try:
        table: Any = datasets.load_dataset(path, name, split=split, revision=revision)
    except Exception as error:  # the library raises whatever its readers and its network raise
        raise DataError(
            f"data set {path!r} (name={name!r}, split={split!r}) cannot be loaded: "
            f"{type(error).__name__}: {error}"
        ) from error
    return [(f"{path}[{split}] row {i}", dict(row)) for i, row in enumerate(table)]
