"""How every function of `import grpo` is called: what it raises names the user's line, and no more.

A GrpoError leaves with the line of the call in its sentence, unless it has a line of the user's
already, and with one frame of this package in its traceback.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from grpo.errors import GrpoError, RecipeError
from grpo.errors.places import is_users, place_in

P = ParamSpec("P")
R = TypeVar("R")
_METHODS = {"evaluate_run": "run.evaluate", "resume": "run.resume"}  # as a user calls them
_PLACE = re.compile(r" at (.+?)(?::|, line )\d+")


def called(function: Callable[P, R]) -> Callable[P, R]:
    """`function` as users call it. Arguments that it does not take are a RecipeError too."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **keywords: P.kwargs) -> R:
        where, before = place_in(sys._getframe(1)), sys.exception()
        try:
            _check(function.__name__, signature, args, keywords)
            return function(*args, **keywords)
        except GrpoError as error:
            text = str(error)
            name = _METHODS.get(function.__name__, f"grpo.{function.__name__}")
            said = f" ({name}{where})" if where and not _has_place(text) else ""
            failed = type(error)(f"{text}{said}")
            failed.stands_for(error, before)
        raise failed from None

    return call


def _check(name: str, signature: inspect.Signature, args: object, keywords: object) -> None:
    """Refuse a call that Python would refuse. Raises RecipeError."""
    try:
        signature.bind(*args, **keywords)  # pyright: ignore[reportGeneralTypeIssues, reportCallIssue]
    except TypeError as error:
        kinds = inspect.Parameter
        takes = [
            f"{one.name}=" if one.kind is kinds.KEYWORD_ONLY else one.name
            for one in signature.parameters.values()
            if one.kind is not kinds.VAR_KEYWORD
        ]
        raise RecipeError(f"grpo.{name}: {error}; it takes {', '.join(takes)}") from None


def _has_place(text: str) -> bool:
    """Whether a message names a line of the user's files."""
    return any(is_users(file) for file in _PLACE.findall(text))
