"""Tasks from rows: any JSONL file, and what every source that reads a table shares.

Rows with the same prompt text are one problem. They share a cluster and are always in the same
split: either the hash of the prompt decides, or an explicit held-out table does, whose prompts are
then removed from train.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from grpo.data.source import Split, check_fraction, check_index, is_heldout, stable_hash
from grpo.errors import DataError
from grpo.outside.files.json_rows import parse_row, row_lines
from grpo.outside.rows.columns import Row, answer_text, checked_prompt, column
from grpo.types import Message, Task

ANSWER = "answer"  # the column that gold answers are in if a recipe names no other
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


def jsonl(
    *,
    path: str,
    prompt: str = "prompt",
    answer: str | None = "answer",
    heldout_path: str | None = None,
    heldout_fraction: float = 0.1,
) -> TableSource:
    """Tasks of a JSONL file; `prompt` and `answer` name columns, all others go to the rewards.

    Prompts are strings or message lists. The column "answer" may be left out where no reward needs
    it; one of another name may not, and null means that rows have no gold answer.
    Raises DataError for a missing or empty file, bad JSON (with its line) and missing columns.
    """
    to_task = column_mapper(prompt, answer)
    train = make_tasks("jsonl", path, read_jsonl(path), to_task)
    heldout = None
    if heldout_path is not None:
        heldout = make_tasks("jsonl", heldout_path, read_jsonl(heldout_path), to_task)
    return TableSource("jsonl", train, heldout, heldout_fraction, answer)


def read_jsonl(path: str | Path) -> list[tuple[str, Row]]:
    """Rows of a file, each with its place ("file.jsonl:3") for error messages."""
    file = Path(path).expanduser()
    if not file.is_file():
        what = "is a folder, not a file" if file.is_dir() else "does not exist"
        raise DataError(f"data file {path} {what}")
    rows: list[tuple[str, Row]] = []
    for number, line in row_lines(file):
        try:
            row = parse_row(line)
        except ValueError as error:  # also a number of thousands of digits
            raise DataError(f"{path}:{number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            shown = "a list" if isinstance(row, list) else json.dumps(row)[:40]
            raise DataError(f"{path}:{number} must be a JSON object with columns, not {shown}")
        rows.append((f"{path}:{number}", row))
    if not rows:
        raise DataError(f"data file {path} is empty")
    return rows


def make_tasks(
    name: str, origin: str, rows: Iterable[tuple[str, Row]], to_task: ToTask
) -> list[Task]:
    """Tasks from rows; `to_task(place, row)` gives the prompt, the answer and the other columns."""
    tasks: list[Task] = []
    seen: dict[str, int] = {}
    for place, row in rows:
        prompt, answer, columns = to_task(place, row)
        text = prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)
        cluster = f"{name}/{stable_hash(' '.join(text.split())):016x}"
        repeat = seen.get(cluster, 0)
        seen[cluster] = repeat + 1
        tasks.append(
            Task(
                uid=f"{cluster}-{repeat}" if repeat else cluster,
                prompt=prompt,
                answer=answer,
                columns=columns,
                cluster=cluster,
                place=place,
            )
        )
    if not tasks:
        raise DataError(f"{origin} holds no rows")
    return tasks


def column_mapper(prompt: str, answer: str | None) -> ToTask:
    """A `to_task` for `make_tasks` that takes two columns and forwards the rest.

    If `answer` is the usual name, rows may lack it: a reward that needs answers says so
    (`grpo.stages.preflight.needed`), and any other works without.
    """

    def to_task(place: str, row: Row) -> tuple[str | list[Message], str | None, dict[str, Any]]:
        text = checked_prompt(place, prompt, column(place, row, prompt))
        without = answer is None or (answer == ANSWER and answer not in row)
        gold = None if without else answer_text(place, column(place, row, str(answer)))
        others = {key: value for key, value in row.items() if key not in (prompt, answer)}
        return text, gold, others

    return to_task
