"""What all verifiers share: TRL's calling convention in front of one method, `verify`.

A verifier is written per completion and returns a typed `Score`. This base turns it into a TRL
reward function: messages become text, columns become one `Task` a row, and a score without a value
becomes None. `scores` is the same call with the whole `Score`, which `RewardSet` prefers because a
None alone cannot say whether the reward was not applicable or the gold was unusable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

from grpo.errors import RewardError
from grpo.outside.rows.columns import gold_text, is_missing
from grpo.types import Message, Score, Task

# What TRL passes besides the data set's columns.
NOT_COLUMNS = frozenset({"trainer_state", "log_extra", "log_metric", "environments"})


def text_of(value: str | Sequence[Message]) -> str:
    """The text of a prompt or completion: itself, or the contents of its messages, joined.

    A message's content is text, or a list of parts; parts without a `text` are left out.
    """
    if isinstance(value, str):
        return value
    return "\n".join(_content(message) for message in value)


def _content(message: Any) -> str:
    content = message if isinstance(message, str) else message.get("content") or message.get("text")
    if isinstance(content, list):
        return "\n".join(map(_content, cast("list[Any]", content)))
    return str(content or "")


def columns_at(columns: Mapping[str, Any], row: int, rows: int) -> dict[str, Any]:
    """The columns of one row. Raises RewardError when a column is not one value per completion."""
    picked: dict[str, Any] = {}
    for name, values in columns.items():
        if name in NOT_COLUMNS:
            continue
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise RewardError(f"column {name!r} must be a list with one value per completion")
        if len(values) != rows:  # pyright: ignore[reportUnknownArgumentType]
            raise RewardError(
                f"column {name!r} has {len(values)} values for {rows} completions"  # pyright: ignore[reportUnknownArgumentType]
            )
        picked[name] = values[row]
    return picked


def tasks_of(prompts: Sequence[Any] | None, columns: Mapping[str, Any], rows: int) -> list[Task]:
    """One task a row, of TRL's columns; the prompt is empty where there are no prompts."""
    asked = prompts if prompts is not None else [""] * rows
    return [make_task(prompt, columns_at(columns, row, rows)) for row, prompt in enumerate(asked)]


def make_task(prompt: str | Sequence[Message], columns: Mapping[str, Any]) -> Task:
    """A `Task` from one row of columns; `answer`, else TRL's `solution`, is the gold answer.

    An empty cell of a table (None, NaN) is no answer.
    """
    gold = gold_text(columns.get("answer"))
    if gold is None:
        gold = gold_text(columns.get("solution"))
    return Task(
        uid=str(columns.get("uid", "")),
        prompt=prompt if isinstance(prompt, str) else list(prompt),
        answer=gold,
        columns=columns,
    )


class Scored:
    """Base of rewards that write `scores`; TRL calls them and gets the values alone."""

    def scores(self, **keywords: Any) -> list[Score]:
        """One `Score` per completion, by TRL's calling convention."""
        raise NotImplementedError

    def __call__(self, **keywords: Any) -> list[float | None]:
        """One float or None per completion, by TRL's calling convention."""
        return [score.value for score in self.scores(**keywords)]


class VerifierReward(Scored):
    """Base of the built-in verifiers: subclasses write `verify`.

    `needs` names the columns without which the reward has nothing to check; each entry is a name
    or alternatives joined by "|". Rows that lack one are "not_applicable" in training (a mixture
    may hold other tasks) and an error in `grpo score`; data in which every row does is refused
    before a run starts (`grpo.stages.preflight.needed`). A reward made of others lists them in
    `inner(task)`.
    """

    name: ClassVar[str] = "verifier"
    judges: bool = True  # whether it says right or wrong; else its figure is a mean
    needs: ClassVar[tuple[str, ...]] = ("answer|solution",)
    pool: Any = None  # a `sandbox.workers.Pool`, if it has worker processes

    @property
    def __name__(self) -> str:  # TRL names its metrics after this
        return self.name

    def verify(self, completion: str, task: Task) -> Score:
        """The outcome for one completion, prefill included. Never raises on model output."""
        raise NotImplementedError

    def applies(self, task: Task) -> bool:
        """Whether the task carries every column in `needs`."""
        return not missing_columns(self.needs, task)

    def verify_all(self, completions: Sequence[str], tasks: Sequence[Task]) -> list[Score]:
        """`verify` on every pair, in order; with a `pool`, as many at a time as it has workers."""
        if self.pool is not None:
            return list(self.pool.map(self.verify, completions, tasks))
        return [self.verify(c, t) for c, t in zip(completions, tasks, strict=True)]

    def _all_graded(
        self, texts: Sequence[str], tasks: Sequence[Task], _ids: Sequence[Sequence[int] | None]
    ) -> list[Score]:
        """The scores of rows that apply; a reward that counts tokens looks at their ids."""
        return self.verify_all(texts, tasks)

    def scores(
        self,
        *,
        completions: Sequence[str | list[Message]],
        prompts: Sequence[str | list[Message]] | None = None,
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[Score]:
        """One `Score` per completion, by TRL's calling convention."""
        rows = len(completions)
        tasks = tasks_of(prompts, columns, rows)
        applicable = [row for row in range(rows) if self.applies(tasks[row])]
        found = self._all_graded(
            [text_of(completions[row]) for row in applicable],
            [tasks[row] for row in applicable],
            [completion_ids[row] if completion_ids is not None else None for row in applicable],
        )
        result = [Score(value=None, status="not_applicable")] * rows
        for row, score in zip(applicable, found, strict=True):
            result[row] = score
        return result

    def close(self) -> None:
        """Release workers, if the reward has any; a later call starts them again."""
        if self.pool is not None:
            self.pool.close()


class GradedReward(VerifierReward):
    """Base of rewards for how a completion is written: subclasses write `grade`.

    Token ids are known in training; rows of `grpo score` may bring `completion_ids`. Without them
    a length is counted in words, and the score's detail says so.
    """

    needs = ()
    judges = False

    def grade(self, text: str, ids: Sequence[int] | None, task: Task) -> Score:
        """The score of one completion from its text and token ids (None: unknown)."""
        raise NotImplementedError

    def verify(self, completion: str, task: Task) -> Score:
        """`grade` without token ids."""
        return self.grade(completion, None, task)

    def _all_graded(
        self, texts: Sequence[str], tasks: Sequence[Task], ids: Sequence[Sequence[int] | None]
    ) -> list[Score]:
        return list(map(self.grade, texts, ids, tasks))


def missing_columns(needs: Sequence[str], task: Task) -> list[str]:
    """The entries of `needs` for which a task has no value."""

    def has(name: str) -> bool:
        if name in ("answer", "solution") and task.answer is not None:
            return True
        return not is_missing(task.columns.get(name))

    return [need for need in needs if not any(map(has, need.split("|")))]
