"""Files that exist whole or not at all, and survive a crash: written aside, synced, renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from grpo.errors import RunError
from grpo.outside.files.lines import to_line

RESTORE = "restore it from a copy, or start a new run from a checkpoint (model.path=FOLDER)"

Tree = dict[str, Any]


def write_text(path: Path, text: str) -> None:
    """Write a durable file, which exists whole or not at all."""
    _write(path, [text])


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """The same for JSON values, one a line."""
    _write(path, map(to_line, rows))


def _write(path: Path, parts: Iterable[str]) -> None:
    aside = path.with_suffix(".tmp")
    with open(aside, "w", encoding="utf-8", newline="\n", opener=opener) as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    sync(path.parent)


def opener(path: str, flags: int) -> int:
    """An opener for `open` that replaces a link of this name instead of following it."""
    if os.path.islink(path):
        os.unlink(path)
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """The same for a JSON object, indented for people."""
    write_text(path, json.dumps(data, indent=1) + "\n")


def read_json(path: Path, advice: str = RESTORE) -> Tree:
    """The object in a file of a run. Raises RunError, with the advice, where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing; {advice}") from error
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}; {advice}") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged: it is not JSON ({error}); {advice}") from error
    if not isinstance(found, dict):
        kind = type(found).__name__
        raise RunError(f"{path} is damaged: it holds a {kind}, not an object; {advice}")
    return cast(Tree, found)


def sync(path: Path) -> None:
    """Make a file or folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
