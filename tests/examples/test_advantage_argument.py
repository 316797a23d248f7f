"""docs/examples/advantage_argument.md: the file that the page shows, by hand and in a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import grpo
from grpo.errors import PluginError, RecipeError
from grpo.method.table import bound_advantage, find_advantage
from grpo.rundir import ledger
from tests.examples.pages import write_files
from tests.examples.short import SHORT


def test_the_baseline_is_the_quantile_of_the_scored_rewards(tmp_path: Path) -> None:
    spec = f"{write_files('advantage_argument', tmp_path)['advantage_argument.py']}:above_quantile"
    nan = np.nan
    rewards = np.array([[0.0, 1.0, 1.0, 1.0], [0.0, 2.0, nan, 4.0], [nan] * 4])
    found = bound_advantage(spec)(rewards, [])  # medians 1 and 2
    assert found.tolist() == [[-1.0, 0.0, 0.0, 0.0], [-2.0, 0.0, 0.0, 2.0], [0.0] * 4]
    found = bound_advantage(spec, {"quantile": 0.25})(rewards, [])
    # a quarter of the way: 3/4 from 0 to 1; halfway from 0 to 2
    assert found.tolist() == [[-0.75, 0.25, 0.25, 0.25], [-1.0, 1.0, 0.0, 3.0], [0.0] * 4]
    with pytest.raises(RecipeError, match=r"'quantil'.*'quantile'"):
        find_advantage(spec, {"quantil": 0.5})
    with pytest.raises(PluginError, match=r"quantile = 2: it is a number from 0 to 1"):
        bound_advantage(spec, {"quantile": 2})(rewards, [])


def test_a_recipe_sets_the_argument(tmp_path: Path) -> None:
    file = write_files("advantage_argument", tmp_path)["advantage_argument.py"]
    own = [
        f"algorithm.advantage={file}:above_quantile",
        "algorithm.advantage_args={quantile: 1.0}",
        f"run.dir={tmp_path / 'run'}",
    ]
    grpo.train(grpo.load_recipe("parity-r1-zero", [*SHORT, *own, "learner.max_steps=1"]))
    by_task: dict[str, list[tuple[float, float]]] = {}
    for line in ledger.read(tmp_path / "run" / "ledger", 1):
        by_task.setdefault(line["task"], []).append((line["value"], line["advantage"]))
    assert any(advantage for pairs in by_task.values() for _, advantage in pairs)
    for pairs in by_task.values():
        best = max(value for value, _ in pairs)
        assert [a for _, a in pairs] == pytest.approx([value - best for value, _ in pairs])
