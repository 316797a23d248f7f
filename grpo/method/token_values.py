"""Numbers for the tokens of a step: one for a whole completion, or one for each of its tokens.

An advantage estimator and `Objective.columns` return either

    an array [P, G]         a number for each completion
    a list of P lists of G  of each group, of each completion: a number, or an array [T] with one
                            for each of its tokens, those of tools included (the mask drops them)

`checked` turns both into the second form, which `spread` lays along the tokens of all rows.
"""

from __future__ import annotations

from collections.abc import Mapping, MappingView, Sequence, Set
from typing import Any

import numpy as np

from grpo.errors import PluginError
from grpo.types import Group

# Of each group, of each completion: a number, or float64 [T].
TokenValues = Sequence[Sequence[float | np.ndarray]]


def checked(found: Any, groups: Sequence[Group], who: str) -> TokenValues:
    """`found` in one form, if it is what a plug-in has to return. Raises PluginError.

    who: what a message calls its origin, such as algorithm.advantage.
    """
    shape = (len(groups), max((len(group.rollouts) for group in groups), default=0))
    wanted = (
        f"; it has to return finite numbers of shape {shape}, or for each group a list that has "
        "for each completion a number or an array of its tokens"
    )
    if _is_nested(found, len(groups)):
        return [
            _of_group(row, group, who, wanted) for row, group in zip(found, groups, strict=True)
        ]
    values = _numbers(found, who, "", wanted)
    finite = _finite(values)
    if values.shape != shape or not finite.all():
        raise PluginError(
            f"{who} returned shape {values.shape} with {int(np.sum(~finite))} values "
            f"that are not finite in float32{wanted}"
        )
    return [row[: len(g.rollouts)].tolist() for row, g in zip(values, groups, strict=True)]


def checked_advantages(found: Any, groups: Sequence[Group]) -> TokenValues:
    """The same of advantages, which are 0 where a completion has no reward."""
    values = checked(found, groups, "algorithm.advantage")
    for group, row in zip(groups, values, strict=True):
        for rollout, value in zip(group.rollouts, row, strict=True):
            if rollout.score.value is None and np.any(value):
                taught = np.ravel(value)[np.flatnonzero(value)[0]]
                raise PluginError(
                    f"algorithm.advantage returned {taught:g} for a completion without a reward, "
                    f"of task {group.prompt.task.uid!r}; that would be learned from, and has to be "
                    "0 wherever the reward is NaN"
                )
    return values


def spread(
    values: TokenValues | np.ndarray, groups: Sequence[Group], lengths_N: np.ndarray
) -> np.ndarray:
    """`values` of every token, float64 [sum of `lengths_N`], completion after completion.

    The rows of an array [P, G] are padded on the right where a group is smaller than the widest.
    """
    flat = [v for g, row in zip(groups, values, strict=True) for v in row[: len(g.rollouts)]]
    if not any(isinstance(value, np.ndarray) for value in flat):
        return np.repeat(np.asarray(flat, dtype=np.float64), lengths_N)
    return np.concatenate(
        [np.broadcast_to(v, length) for v, length in zip(flat, lengths_N.tolist(), strict=True)]
    )


def _is_nested(found: Any, count: int) -> bool:
    """Whether it is a sequence for each group, and no array [P, G] or a list of its rows."""
    if isinstance(found, np.ndarray):
        return found.ndim == 3 or (found.dtype == object and found.shape[:1] == (count,))
    if not isinstance(found, Sequence) or isinstance(found, str) or len(found) != count:
        return False
    if any(isinstance(row, np.ma.MaskedArray) for row in found):
        return True  # numpy would put together what lies behind the masks
    try:
        return np.ndim(found) != 2
    except (TypeError, ValueError, RuntimeError):  # rows of different lengths; tensors
        return True


def _of_group(row: Any, group: Group, who: str, wanted: str) -> list[float | np.ndarray]:
    task, count = f"task {group.prompt.task.uid!r}", len(group.rollouts)
    if not _in_order(row) or len(row) != count:
        size = f"{len(row)} values" if _in_order(row) else type(row).__name__
        raise PluginError(f"{who} returned {size} for {task} with {count} completions{wanted}")
    values: list[float | np.ndarray] = []
    for index, (value, rollout) in enumerate(zip(row, group.rollouts, strict=True)):
        where = f" for completion {index} of {task}"
        numbers = _numbers(value, who, where, wanted)
        length = len(rollout.completion)
        if numbers.shape not in ((), (length,)):
            raise PluginError(
                f"{who} returned shape {numbers.shape}{where}, which has {length} tokens{wanted}"
            )
        if not _finite(numbers).all():
            raise PluginError(
                f"{who} returned {int(np.sum(~_finite(numbers)))} values that are not finite in "
                f"float32{where}{wanted}"
            )
        values.append(numbers if numbers.ndim else float(numbers))
    return values


def _in_order(row: Any) -> bool:
    """Whether it has a length and an order of its own: a dict would be read as its keys."""
    unordered = isinstance(row, Mapping | Set | MappingView | str | bytes)
    return hasattr(row, "__len__") and not unordered


def _numbers(value: Any, who: str, where: str, wanted: str) -> np.ndarray:
    """As float64. Raises PluginError for what is no array of numbers."""
    why = "it has masked entries" if isinstance(value, np.ma.MaskedArray) else ""
    try:
        if not why:
            return np.asarray(value).astype(np.float64, casting="same_kind")
    except (TypeError, ValueError, RuntimeError) as error:  # torch: on a GPU, or with gradient
        why = str(error)
    kind = type(value).__name__
    raise PluginError(f"{who} returned {kind}, which is no array of numbers{where} ({why}){wanted}")


def _finite(values: np.ndarray) -> np.ndarray:
    """Which values are finite in float32, the type that the loss is computed in."""
    with np.errstate(over="ignore"):
        return np.isfinite(values.astype(np.float32))
