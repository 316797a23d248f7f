"""When a recipe is looked at before its first stage: by a plan, a run, and a run that goes on."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

import grpo.commands.train
from grpo.commands import plan
from grpo.errors import GrpoError
from grpo.rundir import finished
from grpo.stages import preflight

from .broken_recipes import (
    MINE,
    QUIET,
    ROWS,
    Started,
    begun,
    put,
    recipe,
    tree,
    without,
    write,
    write_files,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_files(tmp_path)


@pytest.fixture(autouse=True)
def no_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpo.commands.train, "_run_stage", begun)


def test_what_is_right_starts(folder: Path) -> None:
    made = recipe(folder, {}, None)
    plan.print_plan(made, QUIET)
    with pytest.raises(Started, match="a"):
        grpo.commands.train.train_recipe(made, QUIET)


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        ({"b.rewards.0": {"name": "format"}}, without("answer")),
        ({"b.rewards.0": {"name": f"{MINE}:plain"}}, without("answer")),
        ({"b.rewards.0": {"name": f"{MINE}:later"}}, without("answer")),  # awaited
        ({}, [{"prompt": row["prompt"], "solution": row["answer"]} for row in ROWS]),
        ({"b.data.args.answer": "gold"}, [{"prompt": r["prompt"], "gold": "1"} for r in ROWS]),
    ],
)
def test_a_column_is_asked_for_by_the_reward_that_needs_it(
    folder: Path, settings: dict[str, Any], rows: list[Any]
) -> None:
    plan.print_plan(recipe(folder, settings, rows), QUIET)


def test_a_full_disk_is_known_before(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10, 9, 1_000_000))
    made = recipe(folder, {"run.save_total_limit": 2, "run.save_steps": 1}, None)
    for look in (plan.print_plan, grpo.commands.train.train_recipe):
        with pytest.raises(GrpoError, match=r"run\.dir = .* 1\.0 MB free.*save_total_limit = 2"):
            look(made, QUIET)


def test_fine_tuning_on_several_ranks_is_refused(folder: Path) -> None:
    made = recipe(folder, {"ray.learners": 2}, None)
    with pytest.raises(GrpoError, match="'a' fine-tunes in one process, and 2 were launched"):
        plan.print_plan(made, QUIET)


def test_a_run_that_goes_on_looks_at_what_is_still_to_come(folder: Path) -> None:
    made = recipe(folder, {}, None)
    with pytest.raises(Started):
        grpo.commands.train.train_recipe(made, QUIET)
    run = folder / "run"
    finished.leave(run / "a", {})
    write(folder / "s.jsonl", ["no row"])  # of the stage that is done
    with pytest.raises(Started, match="b"):
        grpo.commands.train.resume_run(run, QUIET)
    (folder / "r.jsonl").unlink()
    with pytest.raises(GrpoError, match=r"^b\.data\.args\.path = .*: there is no such file"):
        grpo.commands.train.resume_run(run, QUIET)


def test_a_damaged_model_that_is_made_again_is_not_looked_at(folder: Path) -> None:
    made = recipe(folder, {}, None)
    damaged = folder / "run" / "a" / "model"
    damaged.mkdir(parents=True)
    for name in ("config.json", "tokenizer_config.json"):
        shutil.copy(Path(made.stages[0].model.path) / name, damaged)
    preflight.check(made, folder / "run")
    with pytest.raises(GrpoError, match=r"^stage b: .*tokenizer"):
        preflight.check(made, folder / "run", ["a"])


def test_a_wrong_path_is_said_before_torch_is_loaded(folder: Path) -> None:
    made = tree(folder)
    put(made, "b.data.args.path", str(folder / "gone.jsonl"))
    (folder / "t.yaml").write_text(json.dumps(made))
    script = (
        "import sys; from grpo import cli; code = cli.main(['VERB', 't.yaml']); "
        "sys.exit(code if 'torch' not in sys.modules else 'torch is loaded')"
    )
    for verb in ("train", "plan"):
        command = [sys.executable, "-c", script.replace("VERB", verb)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert (done.returncode, "b.data.args.path" in done.stderr) == (2, True), done.stderr


def test_a_plan_begins_before_models_are_looked_at(folder: Path, capsys: Any) -> None:
    plan.print_plan(recipe(folder, {}, None))
    said = capsys.readouterr()
    assert said.out.startswith("t -> ")
    assert said.err == ""  # no bars of libraries
