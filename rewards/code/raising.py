"""Exceptions, as plain data: what a program raises, and what the tests may catch of it.

An exception crosses as the names of its classes, its text, and what it holds. The receiver makes
one of its own from the first of these classes that it has: a class of the program's that the tests
name, one of the setup's, of Python's, or of a library that it has loaded. Control flow is not among
them: StopIteration would end a loop over `map(candidate, …)` early, and pass it.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Mapping
from typing import Any, cast

from grpo.rewards.code.classes import own_attributes

LONGEST = 200  # characters of an exception's text
_CLASSES = 20  # of one exception
_CAUSES = 3
# Not to be made on the program's word: they end a loop or a process, or tell a framework of tests
# to skip one. An ImportError in the tests says that the row lacks a module.
_ENDS = (StopIteration, StopAsyncIteration)
_KEPT_BACK = (*_ENDS, ImportError)
_LIBRARIES = (sys.stdlib_module_names - {"unittest", "doctest"}) | {"numpy"}
# Those of control flow that may still be raised where the tests themselves name them.
EXITS = ("SystemExit", "KeyboardInterrupt")
ON_REQUEST = (*EXITS, "StopIteration", "StopAsyncIteration")


def _passed_on(kind: Any) -> bool:
    exception = isinstance(kind, type) and issubclass(kind, Exception)
    return exception and not issubclass(kind, (*_KEPT_BACK, Warning))


PASSED_ON: dict[str, type[Exception]] = {n: k for n, k in vars(builtins).items() if _passed_on(k)}


def describe(error: BaseException) -> tuple[str, str]:
    """The name of an exception, as far up as tests may catch it, and its text."""
    name = type(error).__name__[:80]
    for base in type(error).__mro__:
        if base is Exception:
            break
        if PASSED_ON.get(base.__name__) is base:
            name = base.__name__
            break
    try:
        text = str.__str__(str(error))[:LONGEST]
    except BaseException:
        text = ""
    return name, text


def taken(error: BaseException, pack: Callable[[Any], Any], causes: int = _CAUSES) -> list[Any]:
    """[name, text, [[module, class], …], packed arguments, packed attributes, cause].

    What cannot be packed is None. The cause is one more of these, or None.
    """
    classes = [[str(k.__module__)[:200], k.__qualname__[:80]] for k in type(error).__mro__]

    def packed(value: Any) -> Any:
        try:
            return pack(value)
        except BaseException:
            return None

    held = {name: value for name, value in vars(error).items() if not name.startswith("__")}
    cause = error.__cause__ if causes else None
    return [
        *describe(error),
        classes[:_CLASSES],
        packed(error.args[:10]),
        packed(held) if held else None,
        None if cause is None else taken(cause, pack, causes - 1),
    ]


def made(
    raised: Any,
    own: Mapping[str, type[Any]],
    unpack: Callable[[Any], Any],
    on_request: frozenset[str] = frozenset(),
) -> BaseException | None:
    """The exception that `taken` took, None if the tests may not catch one of its kind.

    own: classes of the program's and the setup's, by name. on_request: names of `ON_REQUEST` that
    count here. Raises TypeError, ValueError, LookupError or WireError for anything malformed.
    """
    name, text, classes, arguments, held, cause = raised
    if type(name) is not str or type(text) is not str:
        raise TypeError("not an exception")
    found = [_class_of(module, name, own, on_request) for module, name in classes]
    kind: Any = next(filter(None, found), None)
    if kind is None:
        return None
    args = unpack(arguments) if arguments is not None else (text,)
    error: Any = kind.__new__(kind, *args)
    try:
        error.__init__(*args)
    except Exception:
        error.args = tuple(args)
    if held is not None:
        held_here = cast("dict[str, Any]", vars(error))
        held_here.update(own_attributes(kind, unpack(held).items()))
    if cause is not None:
        error.__cause__ = made(cause, own, unpack)
    return error


def _class_of(
    module: Any, name: Any, own: Mapping[str, type[Any]], on_request: frozenset[str]
) -> type[BaseException] | None:
    if type(module) is not str or type(name) is not str:
        raise TypeError("not a class")
    if module in ("candidate", "tests"):
        kind = own.get(name.rpartition(".")[2])
        ends = [end for end in _ENDS if kind is not None and issubclass(kind, end)]
        return None if any(end.__name__ not in on_request for end in ends) else kind
    if module == "builtins":
        wanted = name in PASSED_ON or name in on_request
        return getattr(builtins, name) if wanted else None
    if module.partition(".")[0] not in _LIBRARIES:
        return None
    found: Any = sys.modules.get(module)  # never imported on the program's word
    for part in name.split("."):
        found = getattr(found, part, None)
    return cast("type[BaseException]", found) if _passed_on(found) else None
