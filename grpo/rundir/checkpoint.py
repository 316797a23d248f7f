"""Checkpoints that exist whole or not at all, and how a run resumes from one.

A checkpoint is written into a temporary folder. While the next step runs, every file is hashed and
fsynced and the folder is renamed; only then a line in `checkpoints.jsonl` says that it exists. A
kill at any moment leaves the previous one valid. On resume, what the run wrote after its last
checkpoint is moved aside, never mixed in.

A checkpoint's state also has the hashes of the run's other files that belong to it (`beside`). A
run resumes from the newest checkpoint of which every byte, there and beside it, is what was
written.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo.errors import RunError
from grpo.outside.files import durable, manifest
from grpo.outside.files.hashes import Known
from grpo.outside.files.lines import split_lines
from grpo.outside.files.manifest import Damage

INDEX = "checkpoints.jsonl"
FOLDER = "checkpoints"
STATE = "state.json"
LOG = "metrics.jsonl"  # grows; a checkpoint belongs to its first bytes
RECORDS = ("ledger", "eval")  # folders that training never reads
BEST = "best"  # folder of the best models so far; at the end one of them becomes the model
MODEL = "model"
NAMED = 3  # damaged checkpoints in one sentence


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A whole checkpoint.

    beside: the files elsewhere in the run's folder that belong to it. lost: names of those that are
    damaged, and that the caller can make again. notes: sentences for the user.
    """

    folder: Path
    state: dict[str, Any]
    beside: Known
    lost: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Saver:
    """Writes the checkpoints of a run. As a context it ends when the last checkpoint is whole.

    `save` returns when the files are written. A thread then hashes them, makes them durable and
    gives the checkpoint its name; until then it does not exist.
    """

    def __init__(self, run: Path, keep: int | None = None) -> None:
        """keep: how many of the newest checkpoints stay on disk (None or 0: all)."""
        self.run, self.keep = run, keep
        self._beside = ThreadPoolExecutor(1, "grpo-checkpoint")
        self._last: Future[None] | None = None

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.wait()
        finally:
            self._beside.shutdown()

    def wait(self) -> None:
        """Wait until the last checkpoint is whole. Raises what went wrong with it."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def save(
        self,
        step: int,
        write: Callable[[Path], None],
        state: dict[str, Any],
        beside: Known | None = None,
    ) -> None:
        """Make `checkpoints/step_NNNNNN` from what `write(folder)` puts there, with its `state`.

        beside: files elsewhere in the run's folder that belong to it; of `metrics.jsonl`, its bytes
        so far. Raises what went wrong with the checkpoint before.
        """
        self.wait()
        aside = _folder(self.run, step).with_suffix(".tmp")
        _fill(aside, write)
        (aside / STATE).write_text(json.dumps({**state, "beside": beside or {}}, sort_keys=True))
        self._last = self._beside.submit(self._finish, aside, step)

    def _finish(self, aside: Path, step: int) -> None:
        folder = _folder(self.run, step)
        manifest.seal(aside, name=folder.name)
        replace(aside, folder)
        with open(self.run / INDEX, "a", encoding="utf-8") as index:
            index.write(json.dumps({"step": step, "path": f"{FOLDER}/{folder.name}"}) + "\n")
            index.flush()
            os.fsync(index.fileno())
        if self.keep:
            # Checkpoints of later steps are damaged, or the run would have resumed from them.
            old = [_folder(self.run, later) for later in steps(self.run) if later > step]
            for place in [*old, *beyond(self.run, self.keep, newest=step)]:
                remove(place)


def make_folder(aside: Path, write: Callable[[Path], None]) -> None:
    """Make the folder `aside` from what `write` puts there: durable, with modes by the umask."""
    _fill(aside, write)
    manifest.give_mode(aside)
    for path in [*aside.rglob("*"), aside]:
        durable.sync(path)


def replace(aside: Path, folder: Path) -> None:
    """Put the finished folder `aside` in the place of `folder`."""
    remove(folder)
    os.rename(aside, folder)
    durable.sync(folder.parent)


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def disk_errors() -> Iterator[None]:
    """Raise OSError for a full disk, for which safetensors has an exception of its own."""
    try:
        yield
    except Exception as error:
        full = os.strerror(errno.ENOSPC)
        if not isinstance(error, OSError) and full in str(error):
            raise OSError(errno.ENOSPC, full) from error
        raise


def latest(
    run: Path, say: Callable[[str], None] = lambda _: None, again: tuple[str, ...] = ()
) -> Checkpoint | None:
    """The newest checkpoint that is whole, with its state; None if none was ever made.

    `say` is told what is wrong with every newer one. again: prefixes of names of files beside it
    that the caller can make again, so that a checkpoint can do without them. Raises RunError if
    there are checkpoints and none is whole.
    """
    wrong: list[str] = []
    for step in reversed(steps(run)):
        folder = _folder(run, step)
        try:
            found = _checked(run, folder, again)
        except Damage as damage:
            wrong.append(f"{FOLDER}/{folder.name}: {damage}")
            continue
        for line in wrong:
            say(f"not used: {line}")
        if wrong:
            say(f"going on from {FOLDER}/{folder.name}, the newest checkpoint that is whole")
        for line in found.notes:
            say(line)
        return found
    if wrong:
        more = f"; and {len(wrong) - NAMED} older ones" if len(wrong) > NAMED else ""
        raise RunError(
            f"{run} has no checkpoint to go on from ({'; '.join(wrong[:NAMED])}{more}): put back "
            f"from a copy what is named here, or delete {FOLDER}/ and {INDEX} to train from the "
            "start"
        )
    return None


def _checked(run: Path, folder: Path, again: tuple[str, ...]) -> Checkpoint:
    """The checkpoint in `folder`, if all its files are as they were written. Raises Damage."""
    if not folder.is_dir():
        raise Damage("it is gone")
    files = manifest.sealed_files(folder, name=folder.name)
    manifest.check(folder, {STATE: files[STATE]})
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    beside: Known = state.pop("beside")
    lost, notes, wanted = [], [], dict(beside)
    for name in [name for name in beside if name.startswith(again or ("\0",))]:
        try:
            manifest.check(run, {name: wanted.pop(name)})
        except Damage as damage:
            lost.append(name)
            notes.append(f"{damage}; it is made again")
    for record in RECORDS:
        gone = [name for name in wanted if name.startswith(f"{record}/")]
        if gone and not (run / record).exists():
            notes.append(f"{record}/ was removed: going on without what it had of the steps so far")
            for name in gone:
                del wanted[name], beside[name]
    for name in [name for name in wanted if name.startswith(f"{BEST}/")]:
        _, model, file = name.split("/", 2)
        if not (run / BEST / model).exists():
            wanted[f"{MODEL}/{file}"] = wanted.pop(name)
    manifest.check(run, wanted, growing=LOG)
    manifest.check_sealed(folder, name=folder.name)
    return Checkpoint(
        folder=folder, state=state, beside=beside, lost=tuple(lost), notes=tuple(notes)
    )


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


def steps(run: Path) -> list[int]:
    """Steps of the checkpoints in the folder, and of the newest one that was ever made."""
    there = {int(p.name[5:]) for p in (run / FOLDER).glob("step_*") if p.name[5:].isdigit()}
    return sorted(there | set(_indexed(run)[-1:]))


def beyond(run: Path, keep: int, newest: int) -> list[Path]:
    """All but the `keep` newest checkpoints up to step `newest`."""
    there = [step for step in steps(run) if step <= newest and _folder(run, step).exists()]
    return [_folder(run, step) for step in there[: max(0, len(there) - keep)]]


def models(run: Path) -> set[str]:
    """Names of the best models that some checkpoint refers to."""
    found: set[str] = set()
    for step in steps(run):
        try:
            state = json.loads((_folder(run, step) / STATE).read_text(encoding="utf-8"))
            names = [name.split("/") for name in state["beside"]]
            found |= {name[1] for name in names if name[0] == BEST}
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            continue  # damaged: no run resumes from it
    return found


def _fill(aside: Path, write: Callable[[Path], None]) -> None:
    remove(aside)
    aside.mkdir(parents=True)
    with disk_errors():
        write(aside)


def _folder(run: Path, step: int) -> Path:
    return run / FOLDER / f"step_{step:06d}"


def _indexed(run: Path) -> list[int]:
    """Steps in the order in which they were saved."""
    found: list[int] = []
    if not (run / INDEX).is_file():
        return found
    for line in split_lines((run / INDEX).read_text(encoding="utf-8", errors="replace")):
        try:
            found.append(int(json.loads(line)["step"]))
        except (ValueError, LookupError, TypeError, RecursionError):
            continue  # the last line of a run killed while writing it, or damaged
    return found
