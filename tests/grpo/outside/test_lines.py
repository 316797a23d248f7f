"""Our own files hold any text a model may write: each reader finds the lines that were written."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grpo.commands import show
from grpo.data.files import read_rows
from grpo.data.source import stable_hash
from grpo.evaluation import heldout, tally
from grpo.outside.files import durable
from grpo.outside.files.lines import from_lines, to_line
from grpo.rewards.score_file import score_file
from grpo.rundir import ledger
from grpo.stages import rl_evaluations
from grpo.stages.shards import read_lines
from grpo.training.curriculum import read_pass_rates
from grpo.types import Completion, Group, Prompt, Rollout, Score, Segment, Task, Version

# Where str.splitlines cuts, half of a surrogate pair, NUL, BOM, and characters of all planes.
TEXT = "a\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\r\r\n\n\x00\ufeff\ud83d é漢😀 \\u2028 z"


def test_a_line_is_one_line_for_every_reader_and_the_same_value() -> None:
    lines = [to_line({"text": TEXT, TEXT: [TEXT]}), to_line("x")]
    assert len("".join(lines).splitlines()) == 2
    assert from_lines("".join(lines)) == [{"text": TEXT, TEXT: [TEXT]}, "x"]
    assert json.loads("".join(lines).encode("utf-8").split(b"\n")[0])["text"] == TEXT
    assert "é漢😀" in lines[0]  # what can be read stays readable


def group() -> Group:
    version = Version(step=0, hash="h")
    segment = Segment(ids=np.array([1, 2]), version=version, logprobs=np.array([-1.0, -2.0]))
    prompt = Prompt(task=Task(uid="u", prompt=TEXT), text=TEXT, ids=(1,))
    return Group(
        prompt=prompt,
        visit=0,
        rollouts=tuple(
            Rollout(
                prompt=prompt,
                completion=Completion(
                    request="u", index=i, segments=(segment,), text=TEXT, finish="stop"
                ),
                score=Score(value=1.0, status="correct"),
            )
            for i in range(2)
        ),
    )


def test_the_ledger_and_shards_give_back_every_character(tmp_path: Path) -> None:
    ledger.append(tmp_path, 1, [group()], np.zeros((1, 2)))
    lines = list(ledger.read(tmp_path, 1))
    assert [line["completion"] for line in lines] == [TEXT, TEXT]
    assert [line["sample"] for line in lines] == [0, 1]
    durable.write_lines(tmp_path / "s.jsonl", [{"text": TEXT}] * 3)
    assert list(read_lines(tmp_path / "s.jsonl")) == [{"text": TEXT}] * 3


@pytest.mark.parametrize("raw", [True, False])
def test_a_summary_is_made_of_completions_with_line_separators(tmp_path: Path, raw: bool) -> None:
    (tmp_path / "eval").mkdir()
    figures: dict[str, Any] = {}
    for name, value in (("before", 0.0), ("after", 1.0)):
        lines = [
            {
                "mode": mode,
                "cluster": task,
                "task": task,
                "sample": 0,
                "completion": TEXT,
                "parts": {"main": value},
                "tokens": 3,
                "finish": "stop",
                "status": "scored",
                "right": {"main": value == 1.0},
            }
            for mode in ("greedy", "sample")
            for task in "ab"
        ]
        figures[name] = tally.figures(lines, ["main"], 0)
        # Runs of earlier versions have these characters unescaped.
        plain = [
            json.dumps(line, ensure_ascii=False).replace("\ud83d", "") + "\n" for line in lines
        ]
        text = "".join(plain if raw else map(to_line, lines))
        (tmp_path / "eval" / f"{name}.jsonl").write_bytes(text.encode())
    found = rl_evaluations.summary(tmp_path, figures, 1.0, 2, 0)
    assert found["gain"] == {"of": "main", "pass1": 1.0, "ci": [1.0, 1.0]}
    assert len(heldout.read_lines(tmp_path / "eval" / "after.jsonl")) == 4


def test_metrics_named_by_a_reward_with_a_separator_are_shown(tmp_path: Path) -> None:
    name = "reward\u2028one"
    line = json.dumps({"step": 1, name: 0.5}, ensure_ascii=False)
    (tmp_path / "metrics.jsonl").write_bytes((line + "\n" + line + "\n").encode())
    assert show.read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, name: 0.5}] * 2


def test_users_files_are_cut_at_newlines_alone(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{i}\u2028\x85?", "completion": "<answer>4</answer>", "answer": "4"}
        for i in range(3)
    ]
    text = "\ufeff" + "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\r\n"
    file = tmp_path / "rows.jsonl"
    file.write_bytes(text.encode())
    assert [row for _, row in read_rows(file)] == rows
    assert [row["value"] for row in score_file("accuracy", file)] == [1.0] * 3
    measured = [{"task": f"{i}\u2028", "pass_rate": 0.25} for i in range(3)]
    packed = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in measured)
    (tmp_path / "rates.jsonl.gz").write_bytes(gzip.compress(packed.encode()))
    assert read_pass_rates(str(tmp_path / "rates.jsonl.gz")) == {
        f"{i}\u2028": 0.25 for i in range(3)
    }


def test_half_a_pair_in_a_task_has_a_hash() -> None:
    assert stable_hash("\ud83d") != stable_hash("\ud83e")
    assert stable_hash("é") == 0xCB1ABF8BEFF3192F  # of UTF-8, as ever
