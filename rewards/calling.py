"""Calling any reward: TRL functions (sync or async), verifiers, and objects that are both.

Every way ends in one `Score` per completion, or in a RewardError that names the reward.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Coroutine
from functools import lru_cache
from types import FunctionType
from typing import Any, cast

from grpo.errors import GrpoError, RewardError
from grpo.rewards.verifier import columns_at, make_task, text_of
from grpo.types import Score, Verifier

_POSITIONAL = ("prompts", "completions", "completion_ids")


def invoke(
    name: str, reward: Any, keywords: dict[str, Any]
) -> list[Score] | Coroutine[Any, Any, Any]:
    """Scores, or the coroutine of an asynchronous reward (its result goes through `as_scores`).

    `keywords` is everything TRL would pass; a function receives those it can take.
    """
    count = len(keywords["completions"])
    try:
        if hasattr(reward, "scores"):
            output = reward.scores(**accepted(reward.scores, keywords))
        elif isinstance(reward, Verifier):
            columns = {key: value for key, value in keywords.items() if key not in _POSITIONAL}
            output = [
                reward.verify(
                    text_of(keywords["completions"][row]),
                    make_task(keywords["prompts"][row], columns_at(columns, row, count)),
                )
                for row in range(count)
            ]
        else:
            output = reward(**accepted(reward, keywords))
    except Exception as error:
        raise named(name, error) from error
    if inspect.iscoroutine(output):
        return cast("Coroutine[Any, Any, Any]", output)
    return as_scores(name, output, count)


def named(name: str, error: BaseException) -> RewardError:
    """A RewardError that says which reward failed, and how."""
    if isinstance(error, GrpoError):
        return RewardError(f"reward {name!r}: {error}")
    return RewardError(f"reward {name!r} raised {type(error).__name__}: {error}")


def as_scores(name: str, output: Any, count: int) -> list[Score]:
    """What a reward returned, as scores; RewardError unless one finite number or None each."""
    kind: str = type(output).__name__
    if kind in ("str", "bytes", "dict") or not hasattr(output, "__len__"):
        raise RewardError(
            f"reward {name!r} returned {kind}, not a list with one number or None per completion"
        )
    if len(output) != count:
        raise RewardError(f"reward {name!r} returned {len(output)} values for {count} completions")
    return [_as_score(name, row, value) for row, value in enumerate(cast("list[Any]", output))]


def _as_score(name: str, row: int, value: Any) -> Score:
    if isinstance(value, Score):
        number = value.value
    elif value is None:
        return Score(value=None, status="not_applicable")
    elif isinstance(value, str | bytes):
        raise RewardError(f"reward {name!r} returned {value!r} for completion {row}, not a number")
    else:
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise RewardError(
                f"reward {name!r} returned {type(value).__name__} for completion {row}, "
                "not a number or None"
            ) from error
    if number is not None and not math.isfinite(number):
        raise RewardError(
            f"reward {name!r} returned {number} for completion {row}; return None where it does "
            "not apply"
        )
    return value if isinstance(value, Score) else Score(value=number, status="scored")


def accepted(function: Callable[..., Any], keywords: dict[str, Any]) -> dict[str, Any]:
    """The keywords that the function can take (all of them if it has `**kwargs`)."""
    code = getattr(function, "__func__", function)
    names = _known_names(code) if isinstance(code, FunctionType) else _names(function)
    if names is None:
        return keywords
    return {name: value for name, value in keywords.items() if name in names}


def _names(function: Callable[..., Any]) -> frozenset[str] | None:
    """The parameters a function has by name; None where it takes any or cannot say."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return None
    return frozenset(p.name for p in parameters)


# Looking at a signature takes longer than the simplest rewards do.
_known_names = lru_cache(maxsize=128)(_names)
