"""Check, before anything is sampled, that the tasks have the columns that the rewards need.

A built-in verifier names its columns in `needs`. It does not judge a task that lacks them; this is
fine as long as it judges other tasks. A function gets columns as TRL passes them, by the names of
its parameters. A parameter without a default needs a column in every task. A reward made of other
rewards says by `inner(task)` which of them judges a task.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from grpo.data.mixture import Mixture
from grpo.data.source import Split
from grpo.data.table import ANSWER, TableSource
from grpo.errors import DataError, GrpoError, PluginError, RewardError, at
from grpo.outside.code.foreign import guarded, said
from grpo.outside.rows.columns import near
from grpo.rewards import REWARDS
from grpo.rewards.verifier import VerifierReward, missing_columns
from grpo.types import Task, TaskSource

# What every reward is called with, beside the columns.
GIVEN = frozenset(
    {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"}
)
OWN = frozenset({"prompt", "completion", *GIVEN})  # columns that no reward sees
SAMPLED = 64  # tasks looked at of a source that makes them up

Named = tuple[str, Any]  # what messages call a reward, and the reward (or its class, not yet made)


@dataclass(frozen=True, kw_only=True)
class Need:
    """A column that a reward needs (alternatives joined by "|").

    must: the reward cannot be called without it.
    """

    reward: str
    column: str
    must: bool


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """Tasks of a source, or of a part of a mixture. every: whether these are all its tasks."""

    tasks: Sequence[Task]
    every: bool
    answer: str | None  # as in `TableSource`


def check_columns(
    source: TaskSource, split: Split, rewards: Sequence[Named], data: str, answer: str = ""
) -> None:
    """Refuse tasks that lack what `rewards` need; the error names row, column and reward.

    Every row of a table is checked, and SAMPLED tasks of any other source. data: what messages call
    the tasks. answer: the setting that names the column of gold answers, "" where there is none.
    Raises DataError, PluginError and RewardError.
    """
    with at(data):
        _check_columns(source, split, rewards, answer)


def _check_columns(source: TaskSource, split: Split, rewards: Sequence[Named], answer: str) -> None:
    first: Task | None = None
    unmet: dict[str, tuple[Task, Need]] = {}  # reward -> the first task it does not apply to
    applied: set[str] = set()
    complete = True
    fixed = {
        name: list(needs_of(name, reward, Task(uid="", prompt="")))
        for name, reward in rewards
        if inner_of(reward) is None
    }

    def needs(task: Task) -> Iterator[Need]:
        for name, reward in rewards:
            yield from fixed[name] if name in fixed else needs_of(name, reward, task)

    for leaf in leaves(source, split):
        complete &= leaf.every
        bare: tuple[Task, Need] | None = None
        any_applied = False
        for task in leaf.tasks:
            first = first or task
            ways = _ways(needs(task), task, leaf, answer)
            lacking = {name: need for name, need in ways.items() if need is not None}
            any_applied |= len(lacking) < len(ways)
            applied |= set(ways) - set(lacking)
            for name, need in lacking.items():
                unmet.setdefault(name, (task, need))
            if ways and len(lacking) == len(ways):
                bare = bare or (task, next(iter(lacking.values())))
        if bare and any_applied:  # forgotten in some rows of a table
            raise _lacks(*bare)
    never = {name: found for name, found in unmet.items() if name not in applied}
    if never and (complete or not applied):
        raise _lacks(*next(iter(never.values())), never=True)


def _ways(needs: Iterable[Need], task: Task, leaf: Leaf, answer: str) -> dict[str, Need | None]:
    """For each verifier that is asked about a task, the first thing it lacks (None: it applies)."""
    have = columns_of(task)
    found: dict[str, Need | None] = {}
    for need in needs:
        if need.must:
            if need.column not in have:
                raise _lacks(task, need, answer if leaf.answer else "")
            continue
        lacks = bool(missing_columns([need.column], task))
        if lacks and leaf.answer and ANSWER in need.column.split("|"):
            raise _lacks(task, need, answer if leaf.answer else "")
        found[need.reward] = found.get(need.reward) or (need if lacks else None)
    return found


def needs_of(name: str, reward: Any, task: Task) -> Iterator[Need]:
    """What `reward` needs of a task: each column of a verifier's `needs`, each parameter."""
    inner = inner_of(reward)
    if inner is not None:
        for part, one in inner(task):
            yield from needs_of(f"{name} ({part})", one, task)
        return
    declared = getattr(reward, "needs", ())
    for column in declared if isinstance(declared, tuple | list) else ():
        yield Need(reward=name, column=str(column), must=False)
    builtin = isinstance(reward, VerifierReward)
    for column in () if builtin else parameters(name, reward):
        yield Need(reward=name, column=column, must=True)


def inner_of(reward: Any) -> Callable[[Task], Sequence[Named]] | None:
    """Which of its own rewards a built-in reward gives a task to; None for any other reward."""
    return getattr(reward, "inner", None) if type(reward) in REWARDS.values() else None


def parameters(name: str, reward: Any) -> list[str]:
    """The columns that a reward cannot be called without. Raises PluginError for no reward."""
    function = _called(name, reward)
    if function is None:
        return []
    try:
        found = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some functions written in C have no signature
        return []
    P = inspect.Parameter
    by_place = (P.POSITIONAL_ONLY, P.POSITIONAL_OR_KEYWORD)
    if inspect.isclass(reward) and found and found[0].kind in by_place:
        found = found[1:]  # self
    for one in found:
        if one.kind is P.POSITIONAL_ONLY and one.default is P.empty:
            raise PluginError(
                f"{name} takes {one.name!r} by its place only, and rewards are called by name: "
                "prompts, completions, completion_ids and the columns of the data"
            )
    named = (P.POSITIONAL_OR_KEYWORD, P.KEYWORD_ONLY)
    asked = [p.name for p in found if p.kind in named and p.default is P.empty]
    return [one for one in asked if one not in GIVEN]


def _called(name: str, reward: Any) -> Callable[..., Any] | None:
    """What a call of the reward (or of an object of the class) calls; None: it gets whole tasks."""
    if hasattr(reward, "scores"):
        return reward.scores
    if hasattr(reward, "verify"):
        return None
    if not inspect.isclass(reward):
        return reward
    for base in reward.__mro__:
        if "__call__" in vars(base):
            return cast("Callable[..., Any]", vars(base)["__call__"])
    raise PluginError(
        f"{name} makes objects of class {reward.__name__}, which cannot be called; give the class "
        "__call__, scores or verify"
    )


def columns_of(task: Task) -> set[str]:
    """The columns of a task that rewards are called with."""
    return {*task.columns, *([ANSWER] if task.answer is not None else [])} - OWN


def leaves(source: TaskSource, split: Split) -> Iterator[Leaf]:
    """The tasks of a split to look at: all rows of a table, some of what is made up."""
    if isinstance(source, Mixture):
        for part in source.parts:
            for leaf in leaves(part.source, split):
                tasks = [
                    replace(task, columns={**task.columns, **part.columns}) for task in leaf.tasks
                ]
                yield replace(leaf, tasks=tasks)
    elif isinstance(source, TableSource):
        yield Leaf(tasks=source.tasks[split], every=True, answer=source.answer)
    else:
        size = size_of(source, split)
        places: Iterable[int] = range(SAMPLED)
        if size is not None:
            places = sorted({place * size // SAMPLED for place in range(SAMPLED)} if size else ())
        tasks = [task_at(source, split, place) for place in places]
        yield Leaf(tasks=tasks, every=size is not None and size <= len(tasks), answer=None)


def size_of(source: TaskSource, split: Split) -> int | None:
    """`source.size(split)`, its own faults as PluginErrors."""
    with _guard(source):
        size = source.size(split)
    if size is not None and (not isinstance(size, int) or isinstance(size, bool)):
        raise PluginError(
            f"data source {type(source).__name__}: size({split!r}) gave {size!r}, not a number of "
            "tasks (or None, without end)"
        )
    return size


def task_at(source: TaskSource, split: Split, index: int) -> Task:
    """`source.task(split, index)`, its own faults as PluginErrors."""
    with _guard(source):
        task: Any = source.task(split, index)
    if not isinstance(task, Task):
        raise PluginError(
            f"data source {type(source).__name__}: task({split!r}, {index}) gave "
            f"{type(task).__name__} {task!r:.60}, not a grpo.Task"
        )
    return task


def _guard(source: TaskSource) -> Any:
    name = f"data source {type(source).__name__}"

    def fail(error: BaseException) -> GrpoError:
        return error if isinstance(error, GrpoError) else PluginError(f"{name} {said(error)}")

    return guarded(name, fail)


def _lacks(task: Task, need: Need, answer: str = "", never: bool = False) -> GrpoError:
    """The error for a task that lacks what a reward needs; `answer` as in `check_columns`."""
    names = need.column.split("|")
    if need.must and need.column in OWN:
        return RewardError(
            f"{need.reward} has a parameter {need.column!r}, and rewards are called with "
            f"{need.column + 's'!r}, a list"
        )
    said = f"{task.where} has no column {' or '.join(map(repr, names))}"
    said += f", which {need.reward} needs"
    if never:
        said += ", and nor has any other task that was looked at"
    if answer and ANSWER in names:
        said += f"; if another holds it, name that in {answer} (null: these rows have none)"
    elif need.must:
        said += "; give every row one, or the parameter a default or a value in the reward's args"
    return DataError(f"{said}.{near(names[0], [*columns_of(task), 'prompt'])}")
