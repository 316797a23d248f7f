"""Two states of the code are compared whole: a byte that changed is found, a clock is not."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import same_bytes
from same_bytes import Facts, Run, Side, differences, facts, known
from same_bytes_recipes import (
    ADVANTAGES,
    LOSSES,
    losses,
    older,
    pipeline,
    settings,
    without_gdpo,
)

from grpo.config.config import from_dict
from grpo.config.schema import STAGES
from grpo.method import table

LINES = [{"step": 1, "loss": 0.5, "time": 1.0, "time/learn": 2.0}, {"step": 2, "time": 3.0}]


def run_of(folder: Path, **content: bytes | str) -> Facts:
    """The facts of a run's folder with one file of each kind, but for `content`."""
    files: dict[str, bytes | str] = {
        "rl/model/model.safetensors": b"weights",
        "rl/checkpoints/step_000001/optimizer.safetensors": b"moments",
        "rl/ledger/step_000001.jsonl.gz": gzip.compress(b"{}\n", mtime=1),
        "data/train.jsonl": "{}\n",
        "provenance.json": "{}",
        "rl/metrics.jsonl": "".join(json.dumps(line) + "\n" for line in LINES),
        **content,
    }
    for name, value in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(value if isinstance(value, bytes) else value.encode())
    return facts(folder)


def test_what_no_clock_decides_is_read(tmp_path: Path) -> None:
    found = run_of(tmp_path)
    assert set(found.files) == {
        "rl/model/model.safetensors",
        "rl/checkpoints/step_000001/optimizer.safetensors",
        "rl/ledger/step_000001.jsonl.gz",
        "data/train.jsonl",
    }
    assert found.metrics == {"rl/metrics.jsonl": {"step": [1, 2], "loss": [0.5, None]}}


def test_clocks_and_the_time_of_packing_are_no_difference(tmp_path: Path) -> None:
    later = [{**line, "time": 9.0} for line in LINES]
    changed = run_of(
        tmp_path / "this",
        **{
            "rl/metrics.jsonl": "".join(json.dumps(line) + "\n" for line in later),
            "rl/ledger/step_000001.jsonl.gz": gzip.compress(b"{}\n", mtime=2),
            "provenance.json": '{"commit": "other"}',
        },
    )
    assert differences(run_of(tmp_path / "base"), changed) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rl/model/model.safetensors", b"weightt"),
        ("rl/checkpoints/step_000001/optimizer.safetensors", b"moment"),
        ("rl/ledger/step_000001.jsonl.gz", gzip.compress(b"{ }\n", mtime=0)),
        ("data/train.jsonl", ""),
    ],
)
def test_a_changed_file_is_found(tmp_path: Path, name: str, content: bytes | str) -> None:
    (line,) = differences(run_of(tmp_path / "base"), run_of(tmp_path / "this", **{name: content}))
    assert line.startswith(f"{name}: ")


def test_files_that_one_side_lacks_are_found() -> None:
    base = Facts(files={"a": "1", "b": "2"}, metrics={})
    this = Facts(files={"b": "2", "c": "3"}, metrics={})
    assert differences(base, this) == ["a is only in the base", "c is new"]


@pytest.mark.parametrize("values", [[0.5, 0.25], [0.5], [0.500001, 0.4], [None, 0.4]])
def test_a_changed_metric_is_found(values: list[Any]) -> None:
    base = Facts(files={}, metrics={"m": {"loss": [0.5, 0.4], "step": [1, 2]}})
    this = replace(base, metrics={"m": {"loss": values, "step": [1, 2]}})
    (line,) = differences(base, this)
    assert line.startswith("m: loss: [0.5, 0.4] became ")


def test_a_renamed_metric_is_told_and_one_with_other_values_is_a_difference() -> None:
    base = Facts(files={}, metrics={"m": {"parity/z": [0.5], "loss": [1.0]}})
    renamed = Facts(files={}, metrics={"m": {"agreement/z": [0.5], "loss": [1.0]}})
    other = Facts(files={}, metrics={"m": {"agreement/z": [0.6], "loss": [1.0]}})
    assert differences(base, renamed) == ["renamed: parity/z is agreement/z"]
    assert differences(base, other) == ["m: agreement/z is new", "m: parity/z is only in the base"]


def test_what_a_commit_left_is_known_again_but_not_of_rows_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that are mixed in are drawn by their path, so another checkout trains other bytes."""
    trained: list[str] = []

    def train(tree: Path, run: Run, folder: Path) -> Path:
        trained.append(run.stages[0]["mix"])
        return tmp_path / "run"

    monkeypatch.setattr(same_bytes, "trained", train)
    side = Side(name="base", commit="0" * 40, tree=tmp_path, cache=tmp_path / "cache")
    for place in (tmp_path / "a", tmp_path / "a", tmp_path / "b"):
        monkeypatch.setattr(same_bytes, "ROOT", place)
        known(side, Run(recipe="mixed", stages=[{"mix": f"{place}/rows"}]), tmp_path)
    assert trained == [f"{tmp_path}/a/rows", f"{tmp_path}/b/rows"]


def test_every_loss_advantage_and_kind_of_stage_is_run() -> None:
    assert set(LOSSES) == set(table.OBJECTIVES)
    assert {entry["advantage"] for entry in ADVANTAGES} == set(table.ADVANTAGES)
    assert {stage["kind"] for stage in pipeline()} == set(STAGES)
    for stages in (pipeline(), [*losses(), *settings()]):
        from_dict({"name": "checked", "stages": stages})


def test_a_commit_before_the_table_is_asked_for_the_same_by_its_own_names() -> None:
    stages = without_gdpo(losses())
    names = [stage["algorithm"]["advantage"] for stage in older(stages)]
    assert names[-4:] == ["pass@2", "pass@4", "pass@8", "none"]
    assert not any("advantage_args" in stage["algorithm"] for stage in older(stages))
    assert older(settings()) == settings()
    assert len(stages) == len(losses()) - 1
