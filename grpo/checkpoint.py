"""Checkpoints that exist whole or not at all, and the way back from one.

A checkpoint is written into a folder aside, every file is fsynced, the folder is renamed, and only
then does a line in `checkpoints.jsonl` say that it exists. A kill at any moment leaves the previous
one valid; what a run wrote after its last checkpoint is moved aside on resume, never mixed in.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from grpo.errors import RunError
from grpo.lines import split_lines

INDEX = "checkpoints.jsonl"


def save(
    run: Path,
    step: int,
    write: Callable[[Path], None],
    state: dict[str, Any],
    keep: int | None = None,
) -> Path:
    """Make `checkpoints/step_NNNNNN` from what `write(folder)` puts there, with `state` beside it.

    `keep`: how many of the newest checkpoints stay on disk (None: all).
    """
    folder = run / "checkpoints" / f"step_{step:06d}"
    aside = folder.with_suffix(".tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    with disk_errors():
        write(aside)
    (aside / "state.json").write_text(json.dumps(state, sort_keys=True))
    for path in [*aside.rglob("*"), aside]:
        _fsync(path)
    if folder.exists():
        shutil.rmtree(folder)
    os.rename(aside, folder)
    _fsync(folder.parent)
    with open(run / INDEX, "a", encoding="utf-8") as index:
        index.write(json.dumps({"step": step, "path": f"checkpoints/{folder.name}"}) + "\n")
        index.flush()
        os.fsync(index.fileno())
    if keep is not None:
        _prune(run, keep)
    return folder


@contextmanager
def disk_errors() -> Iterator[None]:
    """A full disk as the OSError that it is: safetensors raises an exception of its own."""
    try:
        yield
    except Exception as error:
        full = os.strerror(errno.ENOSPC)
        if not isinstance(error, OSError) and full in str(error):
            raise OSError(errno.ENOSPC, full) from error
        raise


def latest(run: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that is whole, with its state; None if there is none."""
    for step in reversed(_indexed(run)):
        folder = run / "checkpoints" / f"step_{step:06d}"
        if (folder / "state.json").is_file():
            return folder, json.loads((folder / "state.json").read_text())
    return None


def rewind(path: Path, size: int) -> int:
    """Cut a line-based log back to `size` bytes, keeping the tail in `<name>.replaced`.

    Returns the number of bytes moved. Raises RunError if the log is shorter than the checkpoint
    says, since then it is not the log of this run.
    """
    content = path.read_bytes() if path.exists() else b""
    if len(content) < size:
        raise RunError(
            f"{path} has {len(content)} bytes, but the checkpoint was taken at {size}: "
            "this is not the log of that run. Restore it or start a new run."
        )
    tail = content[size:]
    if tail:
        with open(path.with_suffix(path.suffix + ".replaced"), "ab") as aside:
            aside.write(tail)
        with open(path, "r+b") as log:
            log.truncate(size)
    return len(tail)


def _indexed(run: Path) -> list[int]:
    steps: list[int] = []
    if not (run / INDEX).exists():
        return steps
    for line in split_lines((run / INDEX).read_text(encoding="utf-8")):
        try:
            steps.append(int(json.loads(line)["step"]))
        except (ValueError, KeyError):  # the last line of a run killed while writing it
            continue
    return sorted(set(steps))


def _prune(run: Path, keep: int) -> None:
    on_disk = [s for s in _indexed(run) if (run / "checkpoints" / f"step_{s:06d}").exists()]
    for step in on_disk[: max(0, len(on_disk) - keep)]:
        shutil.rmtree(run / "checkpoints" / f"step_{step:06d}")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
