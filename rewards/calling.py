"""Calling any reward: TRL functions (sync or async), verifiers, and objects that are both.

Every way ends in one `Score` per completion, or in a RewardError that names the reward.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import math
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from functools import lru_cache
from types import FunctionType
from typing import Any, cast

from grpo.errors import GrpoError, RewardError
from grpo.outside.code.foreign import guarded, said
from grpo.rewards.verifier import NOT_COLUMNS, tasks_of, text_of
from grpo.types import LARGEST_REWARD, Score, Verifier

UNUSABLE = ("unparseable_gold", "grader_error")
_POSITIONAL = ("prompts", "completions", "completion_ids")
_FIXED = frozenset({str, int, float, bool, bytes, complex, type(None)})


def invoke(
    name: str, reward: Any, keywords: dict[str, Any]
) -> list[Score] | Coroutine[Any, Any, Any]:
    """Scores, or the coroutine of an asynchronous reward (its result goes through `as_scores`).

    `keywords` is everything TRL would pass; a function receives those it can take, as copies of its
    own: what it does to them changes nothing for anybody else.
    """
    count = len(keywords["completions"])
    with guarded(f"reward {name!r}", lambda error: named(name, error)):
        if hasattr(reward, "scores"):
            output = reward.scores(**copies(accepted(reward.scores, keywords)))
        elif isinstance(reward, Verifier):
            own = copies(keywords)
            columns = {key: value for key, value in own.items() if key not in _POSITIONAL}
            tasks = tasks_of(own["prompts"], columns, count)
            output = list(map(reward.verify, map(text_of, own["completions"]), tasks))
        else:
            output = reward(**copies(accepted(reward, keywords)))
    if inspect.iscoroutine(output):
        return cast("Coroutine[Any, Any, Any]", output)
    return as_scores(name, output, count)


def finished(name: str, output: list[Score] | Coroutine[Any, Any, Any], count: int) -> list[Score]:
    """What `invoke` gave, a coroutine run to its end on a loop of its own."""
    if isinstance(output, list):
        return output
    with guarded(f"reward {name!r}", lambda error: named(name, error)):
        values = asyncio.run(output)
    return as_scores(name, values, count)


def called(name: str, reward: Any, keywords: dict[str, Any]) -> list[Score]:
    """The scores of a reward inside another. Raises RewardError for an asynchronous one."""
    output = invoke(name, reward, keywords)
    if not isinstance(output, list):
        output.close()
        raise RewardError(f"reward {name!r} is asynchronous: list it in the recipe, not inside one")
    return output


def copies(keywords: dict[str, Any]) -> dict[str, Any]:
    """The same keywords, every list and dict in them new, for each row as well."""
    own: dict[str, Any] = {}
    for name, value in keywords.items():
        if name == "completion_ids":  # thousands of numbers, and nothing else
            own[name] = [row[:] if type(row) is list else copied(row) for row in value]
        else:
            own[name] = value if name in NOT_COLUMNS else copied(value)
    return own


def copied(value: Any) -> Any:
    """A deep copy, or the value itself where it cannot be copied (a lock, say)."""
    kind = cast("type[Any]", type(value))
    if kind in _FIXED:
        return value
    if kind is list:
        return [item if type(item) in _FIXED else copied(item) for item in value]
    if kind is dict:
        return {key: item if type(item) in _FIXED else copied(item) for key, item in value.items()}
    try:
        return copy.deepcopy(value)
    except Exception:
        return value


def named(name: str, error: BaseException) -> RewardError:
    """A RewardError that says which reward failed, how, and in which line."""
    if isinstance(error, GrpoError):
        return RewardError(f"reward {name!r}: {error}")
    return RewardError(f"reward {name!r} {said(error)}")


def as_scores(name: str, output: Any, count: int) -> list[Score]:
    """What a reward returned, as scores. RewardError unless it is one finite number or None each.

    The order says which completion a value belongs to, so a set or a dict is refused.
    """
    values = _in_order(name, output)
    if len(values) != count:
        raise RewardError(f"reward {name!r} returned {len(values)} values for {count} completions")
    return [_as_score(name, row, value) for row, value in enumerate(values)]


def _in_order(name: str, output: Any) -> Sequence[Any]:
    """The values of a list, tuple or other sequence, a 1-D array or tensor, or a pandas Series."""
    kind, why = cast("type[Any]", type(output)), ""
    if issubclass(kind, Sequence) and not issubclass(kind, str | bytes | bytearray | memoryview):
        return output
    if any(issubclass(kind, one) for one in _kinds(("numpy", "ndarray"), ("torch", "Tensor"))):
        if output.ndim == 1:
            return output.tolist()
        why = f" of {output.ndim} dimensions"
    elif any(issubclass(kind, one) for one in _kinds(("pandas", "Series"))):
        if list(output.index) == list(range(len(output))):
            return output.tolist()
        why = " whose index is not 0, 1, 2, …: it may have been sorted"
    elif hasattr(output, "__iter__") and not issubclass(kind, str | bytes):
        why = ", which has no order that is the completions'"
    shown = " ".join(repr(output).split())
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    raise RewardError(
        f"reward {name!r} returned {kind.__name__} ({shown}){why}, not a list with one number or "
        "None per completion"
    )


def _kinds(*places: tuple[str, str]) -> list[Any]:
    """The classes of packages that are loaded: none is imported for this."""
    return [getattr(sys.modules[m], name) for m, name in places if m in sys.modules]


def _as_score(name: str, row: int, value: Any) -> Score:
    found = value.value if isinstance(value, Score) else value
    if found is None:
        return value if isinstance(value, Score) else Score(value=None, status="not_applicable")

    def refused(what: Any, why: str) -> RewardError:
        return RewardError(f"reward {name!r} returned {what} for completion {row}{why}")

    if isinstance(found, str | bytes):
        raise refused(repr(found), ", not a number")
    try:
        number = float(found)
    except (TypeError, ValueError) as error:
        raise refused(type(found).__name__, ", not a number or None") from error
    except OverflowError:  # a whole number of hundreds of digits
        number = math.inf
    if not math.isfinite(number):
        raise refused(number, "; return None where it does not apply")
    if abs(number) > LARGEST_REWARD:
        most = f"a reward is at most {LARGEST_REWARD:g} in size"
        raise refused(f"{number:g}", f"; {most}, or its group's variance is no number any more")
    if isinstance(value, Score):
        return value if type(found) is float else replace(value, value=number)
    return Score(value=number, status="scored")


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


def close_all(*rewards: Any) -> None:
    """Release what the rewards hold; not all of them hold something."""
    for reward in rewards:
        close = getattr(reward, "close", None)
        if callable(close):
            close()
