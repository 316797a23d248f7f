"""docs/objectives.md: the code that it shows for losses of one's own can be called as it says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from grpo.method.losses import Clip, Columns, LossInputs, loss_of_tokens
from grpo.method.table import find_objective
from grpo.method.weighted_rows import make_rows
from tests.grpo.rows import group

PAGE = Path(__file__).resolve().parents[2] / "docs" / "objectives.md"


def block(containing: str, folder: Path) -> Path:
    """The Python block of the page with these words, as a file."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (found,) = [text for text in blocks if containing in text]
    file = folder / "mine.py"
    file.write_text(found)
    return file


def inputs(ratios: list[float], advantages: list[float], **columns: list[float]) -> LossInputs:
    logp = torch.tensor(ratios).log() - 1
    return LossInputs(
        logp=logp,
        logp_old=torch.full_like(logp, -1.0),
        logp_sampler=logp,
        logp_ref=None,
        advantages=torch.tensor(advantages),
        weights=torch.ones_like(logp),
        entropy=None,
        completions=torch.arange(len(ratios)),
        columns=Columns({name: torch.tensor(column) for name, column in columns.items()}),
    )


def test_the_token_loss_with_an_argument(tmp_path: Path) -> None:
    objective = find_objective(f"{block('cap=3.0', tmp_path)}:loss", {"cap": 2.5})
    given = inputs([1.0, 4.0], [1.0, -2.0])
    loss, metrics = loss_of_tokens(objective, given, Clip())
    assert loss.tolist() == pytest.approx([1.0, 2.5 * 2 * (np.log(4) - 1)])
    assert metrics["capped"].tolist() == [0.0, 1.0]


def test_the_objective_with_a_column(tmp_path: Path) -> None:
    objective = find_objective(f"{block('per_completion', tmp_path)}:mine")
    groups = [group(0, 2, [4, 1], [1.0, 0.0])]
    rows = make_rows(groups, [[1.0, -1.0]], loss_type=objective, max_completion_length=4)
    assert [row.columns["length"].tolist() for row in rows] == [[4.0] * 4, [1.0]]
    assert rows[0].columns["weights"].tolist() == [1 / 8] * 4
    loss, _ = loss_of_tokens(objective, inputs([1.0, 1.0], [1.0, -1.0], length=[4.0, 1.0]), Clip())
    assert loss.tolist() == pytest.approx([0.5, -1.0])
