"""Tasks from rows: any file of them, and what every source that reads a table shares.

Rows with the same prompt text are one problem. They share a cluster and are always in the same
split: either the hash of the prompt decides, or an explicit held-out table does, whose prompts are
then removed from train.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from grpo.data.files import read_rows
from grpo.data.source import Split, check_fraction, check_index, is_heldout, stable_hash
from grpo.errors import DataError
from grpo.outside.rows.columns import Row, answer_text, checked_prompt, column, near
from grpo.types import Message, Task

ANSWER = "answer"  # the column that gold answers are in if a recipe names no other
ROWS = "jsonl"  # what uids of a user's rows begin with, from memory or from any file
# What rewards are called with beside columns, so no column can have one of these names.
TAKEN = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
# (place, row) -> prompt, answer and the other columns
ToTask = Callable[[str, Row], tuple[str | list[Message], str | None, dict[str, Any]]]


class TableSource:
    """A TaskSource over tasks in memory. `removed`: train rows left out for a held-out prompt.

    `answer`: the column of gold answers, in which a reward that needs them finds one in every row;
    None if rows may lack it, or if a gold answer of every row was read already.
    """

    def __init__(
        self,
        name: str,
        train: Sequence[Task],
        heldout: Sequence[Task] | None,
        heldout_fraction: float,
        answer: str | None = None,
    ) -> None:
        self.removed = 0
        self.answer = answer
        if heldout is None:
            check_fraction(f"{name}: heldout_fraction", heldout_fraction)
            held = [is_heldout(task.cluster, heldout_fraction) for task in train]
            heldout = [task for task, h in zip(train, held, strict=True) if h]
            kept = [task for task, h in zip(train, held, strict=True) if not h]
        else:
            taken = {task.cluster for task in heldout}
            kept = [task for task in train if task.cluster not in taken]
            self.removed = len(train) - len(kept)
        self.name = name
        self.tasks: dict[Split, Sequence[Task]] = {"train": kept, "heldout": heldout}

    def size(self, split: Split) -> int:
        """Number of tasks in the split."""
        return len(self.tasks[split])

    def task(self, split: Split, index: int) -> Task:
        """The task at `index` of the split, in file order."""
        check_index(self.name, index, self.size(split))
        return self.tasks[split][index]


def file(
    *,
    path: str,
    prompt: str = "prompt",
    answer: str | None = "answer",
    heldout_path: str | None = None,
    heldout_fraction: float = 0.1,
) -> TableSource:
    """Tasks of files of rows (`files.py`): JSON lines, JSON, CSV, TSV, Parquet, Arrow.

    path: a file, a folder or a pattern. `prompt` and `answer` name columns; all others go to the
    rewards under their own names, and so does an answer that is called otherwise. Prompts are
    strings or message lists. The column "answer" may be left out where no reward needs it; one of
    another name may not, and null means that rows have no gold answer. Raises DataError with the
    place of a row that cannot be used.
    """
    to_task = column_mapper(prompt, answer)
    train = make_tasks(ROWS, path, read_rows(path), to_task)
    heldout = None
    if heldout_path is not None:
        heldout = make_tasks(ROWS, heldout_path, read_rows(heldout_path), to_task)
    return TableSource("file", train, heldout, heldout_fraction, answer)


def make_tasks(
    name: str, origin: str, rows: Iterable[tuple[str, Row]], to_task: ToTask
) -> list[Task]:
    """Tasks from rows; `to_task(place, row)` gives the prompt, the answer and the other columns.

    A column that only some rows have is None in the others. Raises DataError for a column that
    rewards could not be called with, and for no rows.
    """
    tasks: list[Task] = []
    seen: dict[str, int] = {}
    parts = [(place, *to_task(place, row)) for place, row in rows]
    every = list(dict.fromkeys(column for *_, columns in parts for column in columns))
    taken = next((column for column in every if column in TAKEN), None)
    if taken is not None:
        raise DataError(
            f"{origin} has a column {taken!r}, and rewards are called with {taken!r} of their own; "
            "rename the column"
        )
    for place, prompt, answer, columns in parts:
        text = prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)
        cluster = f"{name}/{stable_hash(' '.join(text.split())):016x}"
        repeat = seen.get(cluster, 0)
        seen[cluster] = repeat + 1
        tasks.append(
            Task(
                uid=f"{cluster}-{repeat}" if repeat else cluster,
                prompt=prompt,
                answer=answer,
                columns={column: columns.get(column) for column in every},
                cluster=cluster,
                place=place,
            )
        )
    if not tasks:
        raise DataError(f"{origin} holds no rows")
    return tasks


def column_mapper(prompt: str, answer: str | None) -> ToTask:
    """A `to_task` for `make_tasks` that takes two columns and forwards the rest.

    Answers of another column than "answer" are forwarded under that name too: a reward finds every
    column under its own. Where no column has answers (None), "answer" is one like any other.

    If `answer` is the usual name, rows may lack it: a reward that needs answers says so
    (`grpo.stages.preflight.needed`), and any other works without.
    """

    def to_task(place: str, row: Row) -> tuple[str | list[Message], str | None, dict[str, Any]]:
        if prompt not in row:
            raise DataError(
                f"{place} has no column {prompt!r}.{near(prompt, row)} The column with the prompt "
                "is named in data.args.prompt"
            )
        text = checked_prompt(place, prompt, row[prompt])
        without = answer is None or (answer == ANSWER and answer not in row)
        gold = None if without else answer_text(place, column(place, row, str(answer)))
        taken = (prompt,) if answer is None else (prompt, ANSWER)
        others = {key: value for key, value in row.items() if key not in taken}
        return text, gold, others

    return to_task
