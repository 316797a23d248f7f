"""Files of rows in every format: the same rows from each, and one sentence for what is no file."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict
from pyarrow import ipc, parquet

from grpo.data.files import read_rows
from grpo.data.table import TAKEN, file
from grpo.errors import DataError

ROWS = [
    {"prompt": "What is 2 + 2?", "answer": "4", "note": 'a "b", c'},
    {"prompt": "007?\nnext", "answer": "007", "note": None},
]


def _csv(rows: list[dict[str, Any]], delimiter: str) -> str:
    def cell(value: Any) -> str:
        return "" if value is None else '"' + str(value).replace('"', '""') + '"'

    lines = [delimiter.join(rows[0]), *(delimiter.join(map(cell, row.values())) for row in rows)]
    return "\n".join(lines) + "\n"


def _arrow(path: Path, opener: Callable[..., Any]) -> None:
    table = pa.Table.from_pylist(ROWS)
    with opener(str(path), table.schema) as writer:
        writer.write_table(table)


def _write(path: Path) -> None:
    """ROWS in the format that the name says, unpacked."""
    match path.suffix:
        case ".jsonl" | ".ndjson":
            path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        case ".json":
            path.write_text(json.dumps(ROWS, indent=1))
        case ".csv":
            path.write_text(_csv(ROWS, ","))
        case ".tsv":
            path.write_text(_csv(ROWS, "\t"))
        case ".parquet":
            parquet.write_table(pa.Table.from_pylist(ROWS), path)
        case _:
            _arrow(path, ipc.new_file if path.suffix == ".arrow" else ipc.new_stream)


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize(
    "ending", [".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather"]
)
def test_the_same_rows_from_every_format(tmp_path: Path, ending: str, packing: str) -> None:
    path = tmp_path / f"rows{ending}"
    _write(path)
    if packing == ".gz":
        (tmp_path / f"rows{ending}.gz").write_bytes(gzip.compress(path.read_bytes()))
    elif packing == ".zst":
        with pa.output_stream(str(path) + packing, compression="zstd") as stream:
            stream.write(path.read_bytes())
    found = read_rows(f"{path}{packing}")
    assert [dict(row) for _, row in found] == ROWS
    assert all(place.startswith(str(path)) for place, _ in found)


def test_folders_patterns_and_saved_data_sets(tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    for number in (2, 1):
        row = {"prompt": f"p{number}", "answer": str(number)}
        (tmp_path / "many" / f"{number}.jsonl").write_text(json.dumps(row))
    (tmp_path / "many" / "README.md").write_text("not rows")
    for path in (tmp_path / "many", tmp_path / "m*y" / "*.jsonl"):
        assert [row["prompt"] for _, row in read_rows(path)] == ["p1", "p2"]
    Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    assert [dict(row) for _, row in read_rows(tmp_path / "saved")] == ROWS
    DatasetDict({"train": Dataset.from_list(ROWS)}).save_to_disk(str(tmp_path / "splits"))
    assert [dict(row) for _, row in read_rows(tmp_path / "splits")] == ROWS
    (tmp_path / "many" / "3.csv").write_text("prompt\nx\n")
    with pytest.raises(DataError, match=r"several formats \(\.csv, \.jsonl\)"):
        read_rows(tmp_path / "many")


def test_cells_of_csv_are_text_and_empty_ones_none(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,answer,date\nq,007,2024-01-05\nr,1e5,\n\n")
    assert read_rows(path) == [
        (f"{path}:2", {"prompt": "q", "answer": "007", "date": "2024-01-05"}),
        (f"{path}:3", {"prompt": "r", "answer": "1e5", "date": None}),
    ]


def test_nan_in_a_table_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [{"prompt": "q", "x": float("nan")}, {"prompt": "r", "x": 1.5}]
    parquet.write_table(pa.Table.from_pylist(rows), path)
    assert [row["x"] for _, row in read_rows(path)] == [None, 1.5]


def test_json_may_be_an_array_an_object_around_it_or_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for text in (
        json.dumps({"version": 1, "data": ROWS}),
        "\n".join(json.dumps(row) for row in ROWS),
    ):
        path.write_text(text)
        assert [dict(row) for _, row in read_rows(path)] == ROWS
    one = {"prompt": [{"role": "user", "content": "hi"}], "answer": "x"}
    path.write_text(json.dumps(one))
    assert [dict(row) for _, row in read_rows(path)] == [one]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.csv", b"prompt,answer\nq,1,2\n", r"a\.csv:2 has 3 cells, and the header 2 columns"),
        ("a.csv", b"prompt,prompt\nq,1\n", "the column 'prompt' twice"),
        ("a.csv", b'prompt\n"never closed\n', r"a\.csv:\d is not csv"),
        ("a.csv", b"prompt\n\xff\n", "is not UTF-8"),
        ("a.parquet", b"PAR1 is not all of it", r"a\.parquet is damaged"),
        ("a.arrow", b"nothing", r"a\.arrow is damaged"),
        ("a.json", b'{"train": [{"a": 1}], "test": [{"a": 1}]}', "several lists of rows"),
        ("a.json", b"[1, 2]", "row 1 must be a JSON object"),
        ("a.json", b"hello", "begins with 'hello'"),
        ("a.jsonl.gz", b"not packed", "cannot be read"),
        ("a.jsonl.zst", b"not packed", "cannot be read"),
        ("a.jsonl", b'{"prompt": "x", "prompt": "y"}\n', r"a\.jsonl:1 .*more than once"),
    ],
)
def test_what_is_no_file_of_rows(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_rows(tmp_path / name)


def test_what_is_not_there(tmp_path: Path) -> None:
    for path, said in (
        ("none.csv", "does not exist"),
        ("*.csv", "no file matches"),
        (".", "holds no"),
    ):
        with pytest.raises(DataError, match=said):
            read_rows(tmp_path / path)


def test_a_column_reaches_rewards_under_its_own_name_and_is_none_where_it_is_missing(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"q": "a", "solution": "1", "hint": "x"}, {"q": "b", "solution": "2"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = file(path=str(path), prompt="q", answer="solution", heldout_fraction=0)
    first, second = source.tasks["train"]
    assert (first.prompt, first.answer) == ("a", "1")
    assert first.columns == {"solution": "1", "hint": "x"}
    assert second.columns == {"solution": "2", "hint": None}


@pytest.mark.parametrize("name", TAKEN)
def test_a_column_that_rewards_could_not_be_called_with(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "a", name: 1}))
    with pytest.raises(DataError, match=f"column '{name}'.*rename"):
        file(path=str(path))
