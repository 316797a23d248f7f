"""`grpo score` on rows as others write them: a cell's fault is its row's, a line's a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from grpo import cli
from grpo.errors import DataError
from grpo.rewards.score_file import score_file

GOOD = {"completion": "<answer>4</answer>", "answer": "4"}


def scored(folder: Path, *rows: Any, reward: str = "accuracy") -> list[tuple[Any, str, str]]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [(row["value"], row["status"], row["detail"]) for row in score_file(reward, path)]


@pytest.mark.parametrize(
    ("cells", "status", "detail"),
    [
        ({"answer": None}, "not_applicable", "answer|solution is empty"),
        ({"answer": float("nan")}, "not_applicable", "answer|solution is empty"),
        ({"answer": float("inf")}, "not_applicable", "answer|solution is empty"),
        ({"completion": None}, "not_applicable", "completion is empty"),
        ({"answer": ["4"]}, "unparseable_gold", "answer is a JSON list, not text or a number"),
        ({"answer": {"a": 4}}, "unparseable_gold", "answer is a JSON object, not text or a number"),
        (
            {"answer": None, "solution": [4]},
            "unparseable_gold",
            "solution is a JSON list, not text or a number",
        ),
    ],
)
def test_a_cell_that_is_nothing_leaves_its_row_without_a_value(
    cells: dict[str, Any], status: str, detail: str, tmp_path: Path
) -> None:
    found = scored(tmp_path, GOOD, {**GOOD, **cells}, GOOD)
    assert [row[0] for row in found] == [1.0, None, 1.0]
    assert found[1][1:] == (status, detail)


def test_golds_that_are_no_text(tmp_path: Path) -> None:
    rows = [
        {"completion": "<answer>true</answer>", "answer": True},
        {"completion": "<answer>false</answer>", "answer": True},
        {"completion": "<answer>4</answer>", "answer": 4.0},
        {"completion": "<answer>0.00001</answer>", "answer": 1e-05},
    ]
    assert [row[0] for row in scored(tmp_path, *rows)] == [1.0, 0.0, 1.0, 1.0]


def test_a_column_that_is_empty_in_every_row_is_a_sentence(tmp_path: Path) -> None:
    rows = [{**GOOD, "answer": None}] * 40
    with pytest.raises(DataError, match=r"line 1: reward 'accuracy' needs column 'answer\|solut"):
        scored(tmp_path, *rows)


def test_rows_without_a_value_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [GOOD, {**GOOD, "answer": None}, {**GOOD, "completion": None}, GOOD]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli.main(["score", "accuracy", str(path)]) == 0
    said = capsys.readouterr()
    assert [json.loads(line)["value"] for line in said.out.splitlines()] == [1.0, None, None, 1.0]
    assert "4 rows: mean 1.0000 of 2 scored (correct 2, not_applicable 2)" in said.err


def test_a_gold_is_no_condition_of_a_reward_that_reads_none(tmp_path: Path) -> None:
    reward = tmp_path / "mine.py"
    reward.write_text("def f(completions, **_):\n    return [len(c) for c in completions]\n")
    rows = [{"completion": "abc", "answer": [1]}, {"completion": "ab", "answer": None}]
    assert [row[0] for row in scored(tmp_path, *rows, reward=f"{reward}:f")] == [3.0, 2.0]


FAULTS = {
    "a key twice": (b'{"completion": "a", "answer": "4", "answer": "5"}', "'answer' stands there"),
    "no UTF-8": (b'{"completion": "\xff", "answer": "4"}', r"rows\.jsonl:2 is not UTF-8 text"),
    "depth": (b'{"completion": ' + b"[" * 100_000, "line 2: not JSON"),
    "digits": (b'{"completion": "a", "answer": ' + b"9" * 5_000 + b"}", "line 2: not JSON"),
    "a number": (b'{"completion": 5, "answer": "4"}', "line 2: column 'completion' is text or"),
    "a prompt": (b'{"prompt": 5, "completion": "a", "answer": "4"}', "'prompt' is text or"),
    "prompts": (b'{"prompt": [5], "completion": "a", "answer": "4"}', "a 'prompt' list holds"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_line_that_is_no_row_is_named(kind: str, tmp_path: Path) -> None:
    line, says = FAULTS[kind]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + line + b"\n")
    with pytest.raises(DataError, match=says):
        list(score_file("accuracy", path))


def test_long_lines_byte_order_marks_and_ends_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    long = {**GOOD, "completion": "x" * 10_000_000 + GOOD["completion"]}
    lines = [json.dumps(row) for row in (GOOD, long, GOOD)]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(lines).encode())
    assert [row["value"] for row in score_file("accuracy", path)] == [1.0, 1.0, 1.0]
