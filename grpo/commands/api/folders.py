"""The folder of a run that a call starts: a new one, or an older run's in its place."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from grpo.commands import train as trains
from grpo.errors import RecipeError, RunError
from grpo.model.ranks import join
from grpo.rundir.claim import claimed
from grpo.rundir.run_folder import SETTINGS

T = TypeVar("T")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@contextmanager
def new_folder(name: str, stages: Sequence[Mapping[str, Any]], overwrite: bool) -> Iterator[Path]:
    """The folder of a new run.

    Where the block fails before the run has begun, the disk is as it was before: folders made for
    it are gone, and a run that was to be replaced is back. Raises RecipeError for arguments that
    name no folder, RunError where the folder cannot be used.
    """
    _check(name, overwrite)
    wanted = _wanted(stages)
    made = on_first(lambda: _made(name, wanted, overwrite))
    try:
        yield made.folder
    except BaseException:
        if is_first() and not trains.has_begun(made.folder):
            _undo(made)
        raise
    finally:
        if is_first() and made.older is not None and made.older.exists():
            shutil.rmtree(made.older)


@dataclass(frozen=True, kw_only=True)
class _Made:
    """A folder, what was missing above it, what lay in it, and where an older run waits."""

    folder: Path
    missing: Sequence[Path]
    there: frozenset[str]
    older: Path | None


def on_first(act: Callable[[], T]) -> T:
    """The result of `act` on the first of several ranks, which the others wait for; or here."""
    return join().on_first(act) if int(os.environ.get(trains.LAUNCHED, "1")) > 1 else act()


def is_first() -> bool:
    """Whether this process is the first rank, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def _made(name: str, wanted: str, overwrite: bool) -> _Made:
    place = wanted or (f"runs/{name}" if overwrite else _free(name))
    folder = Path(place).expanduser().resolve()
    older = _moved_aside(folder, overwrite)
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    there = frozenset() if folder in missing else frozenset(_entries(folder))
    found = _Made(folder=folder, missing=missing, there=there, older=older)
    try:
        _make(folder)
    except BaseException:
        _undo(found)
        raise
    return found


def _undo(made: _Made) -> None:
    """Leave the disk as it was."""
    for entry in set(_entries(made.folder)) - made.there:
        _remove(made.folder / entry)
    for one in made.missing:
        with suppress(OSError):  # somebody else has put something in it
            one.rmdir()
    if made.older is not None:
        made.older.rename(made.folder)


def _check(name: Any, overwrite: Any) -> None:
    """Refuse a name that cannot be a folder's, and what is neither true nor false."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RecipeError(
            f"name = {name!r:.60}: it names the folder runs/NAME-1, so write letters, digits, "
            "'_', '-' and '.'; dir= takes a path"
        )
    if not isinstance(overwrite, bool):
        raise RecipeError(f"overwrite = {overwrite!r:.60}: it should be True or False")


def _wanted(stages: Sequence[Mapping[str, Any]]) -> str:
    """`run.dir` of the calls, in whichever way it is written; "" where none names one."""
    for stage in stages:
        run: Any = stage.get("run")
        inside = cast("Mapping[str, Any]", run).get("dir") if isinstance(run, Mapping) else None
        found: Any = stage.get("dir", stage.get("run.dir", inside))
        if found is not None and not isinstance(found, str | os.PathLike):
            raise RecipeError(f"dir = {found!r:.60} is of type {type(found).__name__}, not a path")
        if found:
            return os.fspath(cast("str | os.PathLike[str]", found))
    return ""


def _free(name: str) -> str:
    """runs/NAME-N with the smallest N above those there are."""
    numbers = [
        int(place.name.removeprefix(f"{name}-"))
        for place in Path("runs").glob(f"{name}-*")
        if place.name.removeprefix(f"{name}-").isdigit()
    ]
    return f"runs/{name}-{max(numbers, default=0) + 1}"


def _moved_aside(folder: Path, overwrite: bool) -> Path | None:
    """Where the run that is replaced waits until the new one has begun; None for no such run."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"run.dir = {str(folder)!r} is a file; name a folder")
    if not overwrite and (folder / SETTINGS).exists():
        raise RunError(
            f"run.dir = {str(folder)!r} already holds a run: go on with "
            f"grpo.load_run({str(folder)!r}).resume(), replace it with overwrite=True, or leave "
            "out dir for a new folder"
        )
    if not overwrite or not _entries(folder):
        return None
    if not (folder / SETTINGS).exists():
        raise RunError(
            f"overwrite=True: {str(folder)!r} holds something that is no run, and is left as it "
            "is; name another dir"
        )
    with claimed(folder):
        pass  # nobody trains there
    aside = _aside(folder)
    shutil.rmtree(aside, ignore_errors=True)
    try:
        return folder.rename(aside)
    except OSError as error:
        raise RunError(f"run.dir = {str(folder)!r} cannot be replaced: {error.strerror}") from error


def replaces(folder: Path) -> bool:
    """Whether the run in a folder takes the place of one that was there."""
    return _aside(folder).exists()


def _aside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.replaced")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"run.dir = {str(folder)!r} cannot be made: {error.strerror}; name another dir"
        ) from error


def _entries(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []


def _remove(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place, ignore_errors=True)
    else:
        place.unlink(missing_ok=True)
