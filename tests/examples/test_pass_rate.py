"""docs/examples/pass_rate.md: the file that the page shows, by hand and in a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from grpo.cli import main
from grpo.method.losses import Clip, Columns, LossInputs, loss_of_tokens
from grpo.method.table import find_objective
from grpo.method.weighted_rows import make_rows
from tests.examples.pages import write_files
from tests.examples.short import SHORT
from tests.grpo.rows import group


def test_a_group_weighs_what_it_fails(tmp_path: Path) -> None:
    file = write_files("pass_rate", tmp_path)["pass_rate.py"]
    assert len([line for line in file.read_text().splitlines() if line.strip()]) <= 15
    objective = find_objective(f"{file}:hard_first")
    groups = [group(0, 2, [2, 1, 1, 1], [1.0, 0.0, 0.0, 0.0]), group(1, 2, [3, 1], [1.0, 1.0])]
    rows = make_rows(groups, np.ones((2, 4)), loss_type=objective, max_completion_length=4)
    assert [row.columns["pass_rate"].tolist() for row in rows] == [
        [0.25, 0.25],
        [0.25],
        [0.25],
        [0.25],
        [1.0, 1.0, 1.0],
        [1.0],
    ]
    two = torch.tensor([2.0, -1.0])
    inputs = LossInputs(
        logp=torch.zeros(2),
        logp_old=torch.zeros(2),
        logp_sampler=torch.zeros(2),
        logp_ref=None,
        advantages=two,
        weights=torch.ones(2),
        entropy=None,
        completions=torch.arange(2),
        columns=Columns(pass_rate=torch.tensor([0.25, 0.9])),
    )
    loss, metrics = loss_of_tokens(objective, inputs, Clip())
    torch.testing.assert_close(loss, torch.tensor([-2.0 * 0.75, 0.1]))  # ratio 1
    assert metrics["pass_rate"].tolist() == pytest.approx([0.25, 0.9])
    plain, _ = loss_of_tokens(find_objective("dapo"), replace(inputs, columns=Columns()), Clip())
    torch.testing.assert_close(plain, -two)


def test_it_trains_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files("pass_rate", tmp_path)
    monkeypatch.chdir(tmp_path)
    own = ["algorithm.loss_type=pass_rate.py:hard_first", "run.dir=run"]
    assert main(["train", "parity-r1-zero", *own, *SHORT]) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    rates = [step["pass_rate"] for step in steps if "pass_rate" in step]
    assert len(rates) == 2
    assert all(0 < rate < 1 for rate in rates)
