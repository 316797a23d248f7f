"""JSONL shards that exist whole or not at all: what a long sampling job has finished.

A shard is written aside, fsynced and renamed, so a kill at any moment loses the shard under way
and nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from grpo.lines import to_line


def write_lines(path: Path, lines: Iterable[Any]) -> None:
    """Write one JSON value a line, whole or not at all."""
    aside = path.with_suffix(".tmp")
    with open(aside, "w", encoding="utf-8", newline="\n") as file:
        for line in lines:
            file.write(to_line(line))
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    sync(path.parent)


def read_lines(path: Path) -> Iterator[Any]:
    """The values of a JSONL file."""
    with open(path, encoding="utf-8", newline="\n") as file:
        for line in file:
            yield json.loads(line)


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Make `folder` of what `write(aside)` puts into an empty one, whole or not at all."""
    aside = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    write(aside)
    for path in [*aside.rglob("*"), aside]:
        sync(path)
    os.rename(aside, folder)
    sync(folder.parent)


def sync(path: Path) -> None:
    """Make a file or folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
