"""Telling a broken grader from a wrong answer, in guests that run other people's graders.

math-verify, SymPy and reasoning-gym catch every `Exception` and take it for "not equal", a failed
import of their own included: where a file of theirs cannot be read, right answers become wrong ones
and nobody hears of it. `watch` turns such failures into a `GraderFault`, which is no `Exception`
and comes through.
"""

from __future__ import annotations

import builtins
import io
import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

from grpo.rewards.sandbox import wire

# What says that the grader or the machine failed, whoever wrote the answer: no answer's text makes
# a module unimportable or a file of a package unreadable.
MACHINERY = (ImportError, OSError)


class GraderFault(BaseException):
    """A grader's own module or file cannot be had."""


def serve_judge(
    channel: socket.socket, packages: Sequence[str], judge: Callable[..., dict[str, Any]]
) -> None:
    """Answer requests with what `judge` makes of them, or {"fault": why} where it raises.

    A request holds the keyword arguments of `judge`. Its `at_answer` tells the host that the answer
    is read from here on: a guest that ends afterwards ended by the answer's doing, as one does by
    MemoryError. `packages`: see `watch`.
    """
    watch(packages)
    while True:
        request = wire.receive(channel)
        try:
            found = judge(**request, at_answer=lambda: wire.send(channel, {"stage": "answer"}))
        except MemoryError:
            raise
        except (GraderFault, Exception) as error:
            found = {"fault": describe(error)[:300]}
        wire.send(channel, found)


def describe(error: BaseException) -> str:
    """An error as one line: its type and what it says."""
    return str(error) if isinstance(error, GraderFault) else f"{type(error).__name__}: {error}"


def watch(packages: Sequence[str]) -> None:
    """From here on `packages` raise GraderFault where a module or a file of theirs is missing.

    Any import that fails with OSError does too. A package that is not among them may be missing:
    graders try for some that only make them faster.
    """
    folders = tuple(
        os.path.join(folder, "")
        for name in packages
        if name in sys.modules
        for folder in sys.modules[name].__path__
    )
    sys.meta_path.append(_Missing(frozenset(packages)))
    builtins.__import__ = _watched_import(builtins.__import__)
    builtins.open = io.open = _watched_open(io.open, folders)


class _Missing:
    """The last finder: it is asked for what all others have not found."""

    def __init__(self, packages: frozenset[str]) -> None:
        self.packages = packages

    def find_spec(self, name: str, _path: Any = None, _target: Any = None) -> None:
        if name.partition(".")[0] in self.packages:
            raise GraderFault(f"ModuleNotFoundError: No module named {name!r}")


def _watched_import(before: Callable[..., Any]) -> Callable[..., Any]:
    def watched(*args: Any, **kwargs: Any) -> Any:
        try:
            return before(*args, **kwargs)
        except OSError as error:
            raise GraderFault(f"import {args[0]}: {type(error).__name__}: {error}") from error

    return watched


def _watched_open(before: Callable[..., Any], folders: tuple[str, ...]) -> Callable[..., Any]:
    def watched(file: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return before(file, *args, **kwargs)
        except OSError as error:
            if not isinstance(file, int) and os.fsdecode(file).startswith(folders):
                raise GraderFault(f"{type(error).__name__}: {error}") from error
            raise

    return watched
