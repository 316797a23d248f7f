"""`grpo data`: what it finds in rows, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from grpo import cli
from grpo.commands.data import described, print_data
from grpo.errors import DataError

ROWS: list[dict[str, Any]] = [
    {"question": "What is 2+2?", "answer": 4, "level": "a"},
    {"question": "what is  2 + 2", "answer": 4},
    {"question": "What is 2+2?", "answer": 5, "level": None},
    {"question": "What is 3+2?", "answer": 5, "level": "b"},
]


def looked_at(rows: list[dict[str, Any]], folder: Path, **options: Any) -> dict[str, Any]:
    """What `grpo data FILE --json` prints."""
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found: dict[str, Any] = {}

    def keep(data: Any) -> dict[str, Any]:
        found.update(described(data))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("grpo.commands.data.described", keep)
        print_data(file=str(file), json=True, **options)
    return found


def test_columns_lengths_duplicates_and_contradictions(tmp_path: Path) -> None:
    found = looked_at(ROWS, tmp_path)
    file = tmp_path / "rows.jsonl"
    assert found["rows"] == 4
    assert [
        (one["name"], one["types"], one["missing"], one["different"]) for one in found["columns"]
    ] == [("question", ["str"], 0, 3), ("answer", ["int"], 0, 2), ("level", ["str"], 2, 2)]
    assert found["characters"] == {"50": 12, "90": 14, "99": 14, "100": 14}
    assert found["duplicates"] == {"rows": 1, "where": [[f"{file}:1", f"{file}:3"]]}
    # the first two differ in case, spaces and the question mark; 3 + 2 is another problem
    assert found["near_duplicates"]["rows"] == 1
    assert found["contradictions"] == {
        "prompts": 1,
        "where": [[f"{file}:1: 4", f"{file}:3: 5"]],
    }


def test_rows_that_held_out_ones_leak_into(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("question\nWhat is 3+2?\nWhat is 9+9?\n")
    found = looked_at(ROWS, tmp_path, heldout=str(tmp_path / "test.csv"))
    where = [f"{tmp_path / 'rows.jsonl'}:4"]
    assert found["contaminated"] == {"heldout_rows": 2, "rows": 1, "where": where}


def test_tokens_are_those_of_the_model_and_long_prompts_are_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "01=" * n} for n in (1, 2, 5)]
    found = looked_at(rows, tmp_path, model="recipes/assets/parity-base", max_prompt_length=6)
    tokens = found["tokens"]  # one token a character
    assert (tokens["50"], tokens["100"], tokens["too_long"]) == (6, 15, 1)
    assert tokens["where"] == [f"{tmp_path / 'rows.jsonl'}:3"]


def test_a_recipe_brings_its_tasks_and_its_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "--recipe", "parity-random-reward"]) == 0
    said = capsys.readouterr().out
    assert "training tasks: 63,488 rows" in said
    assert "0 rows share their prompt" in said


def test_what_cannot_be_looked_at(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column looks like a prompt.*--prompt: a, b"):
        looked_at([{"a": 1, "b": 2}], tmp_path)
    with pytest.raises(DataError, match=r"--prompt 'c' is no column"):
        looked_at([{"a": 1}], tmp_path, prompt="c")
