"""Rows in memory in every form that people have them in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, DatasetDict

from grpo.data import in_memory
from grpo.data.in_memory import plain, rows_given, table_of
from grpo.errors import DataError

ROWS = [
    {"prompt": "a", "answer": "1", "level": 1, "hint": "x"},
    {"prompt": "b", "answer": "2", "level": 2, "hint": None},
]


def _generate() -> Iterator[dict[str, Any]]:
    yield from ROWS


class _Indexed(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return ROWS[index]


@pytest.mark.parametrize(
    "given",
    [
        ROWS,
        tuple(ROWS),
        Dataset.from_list(ROWS),
        Dataset.from_list(ROWS).to_iterable_dataset(),
        pandas.DataFrame(ROWS),
        pa.Table.from_pylist(ROWS),
        {name: [row[name] for row in ROWS] for name in ROWS[0]},
        _generate,
        _generate(),
        map(dict, ROWS),
        _Indexed(),
    ],
    ids=lambda given: type(given).__name__,
)
def test_every_form_gives_the_same_rows(given: Any) -> None:
    found = rows_given(given, "dataset")
    assert [dict(row) for _, row in found] == ROWS
    assert [place for place, _ in found] == ["row 1 of dataset", "row 2 of dataset"]


def test_rows_are_copies_of_plain_values() -> None:
    given = [{"prompt": "a", "n": np.int64(3), "x": np.array([1.0, np.nan]), "l": [1]}]
    ((_, row),) = rows_given(given, "dataset")
    given[0]["l"].append(2)
    assert row == {"prompt": "a", "n": 3, "x": [1.0, None], "l": [1]}
    assert type(row["n"]) is int
    frame = pandas.DataFrame({"prompt": ["a", "b"], "score": [1.0, None], "n": [1, None]})
    assert [row["score"] for _, row in rows_given(frame, "d")] == [1.0, None]
    assert plain(pandas.NA) is None
    assert plain(torch.tensor([1, 2])) == [1, 2]


def test_texts_are_prompts() -> None:
    assert rows_given(["a", "b"], "prompts")[1] == ("row 2 of prompts", {"prompt": "b"})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "dataset has no rows"),
        ([1, 2], "row 1 of dataset is of type int"),
        ({"prompt": "a"}, r"one dict.*give \[dataset\]"),
        ({"prompt": ["a"], "answer": ["1", "2"]}, "prompt has 1, answer has 2"),
        (
            DatasetDict({"train": Dataset.from_list(ROWS)}),
            r"the splits 'train'.*dataset\['train'\]",
        ),
        (pandas.Series(["a"]), "is a Series"),
        (None, "dataset = None"),
        (3, "of type int"),
        (object(), "of type object"),
    ],
)
def test_what_is_no_data_set(given: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        rows_given(given, "dataset")


def test_what_does_not_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_memory, "MOST", 5)
    assert len(rows_given(({"prompt": str(n)} for n in range(5)), "dataset")) == 5
    with pytest.raises(DataError, match="more than 5 rows"):
        rows_given(({"prompt": str(n)} for n in range(6)), "dataset")


def test_at_least_one_prompt_is_held_out_of_few() -> None:
    for count in range(2, 12):
        rows = rows_given([{"prompt": f"p{n}"} for n in range(count)], "dataset")
        source = table_of(rows)
        assert source.size("heldout") >= 1
        assert (source.size("train") or 0) + (source.size("heldout") or 0) == count
    rows = rows_given([{"prompt": "p"}] * 3, "dataset")
    assert (table_of(rows).size("train"), table_of(rows).size("heldout")) == (3, 0)
    assert table_of(rows, heldout_fraction=1.0).size("heldout") == 3


def test_held_out_rows_leave_the_training_rows() -> None:
    rows = rows_given(ROWS, "dataset")
    source = table_of(rows, heldout_rows=rows_given(ROWS[:1], "eval_dataset"))
    assert [task.prompt for task in source.tasks["train"]] == ["b"]
    assert source.tasks["heldout"][0].place == "row 1 of eval_dataset"
