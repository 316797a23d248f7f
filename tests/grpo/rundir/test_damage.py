"""Damaged run folders: the right bytes in the end, or one sentence that names the file."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from grpo.commands.train import resume_run, train_recipe
from grpo.config.config import from_dict
from grpo.errors import RunError
from grpo.outside.terminal.console import Console
from grpo.rundir import checkpoint, ledger
from grpo.stages.shards import read_lines
from tests.grpo.tiny_bases import LETTERS, save_tiny_base

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
QUIET = Console(quiet=True)
STEPS = 4
STOP = """
import os, signal

def interrupt(step, at, once):
    if step.step == at and not os.path.exists(once):
        open(once, "w").close()
        os.kill(os.getpid(), signal.SIGINT)

def first_letter(prompts, completions, **_):
    return [float(c[:1] == p[0]) for p, c in zip(prompts, completions)]
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("base")
    (folder / "stop.py").write_text(STOP)
    words = [f"{a}{b}" for a in LETTERS for b in LETTERS[:3]]
    rows = [{"prompt": w, "answer": w[0], "completion": w[::-1]} for w in words]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return save_tiny_base(folder)


def recipe(base: str, folder: Path, *, stop: int = 0, **sections: Any) -> dict[str, Any]:
    """Four steps with a checkpoint and an evaluation after every one."""
    file = f"{base}/stop.py"
    at = {"at": stop, "once": f"{folder}.stopped"}
    return {
        "name": "tiny",
        "run": {"dir": str(folder), "threads": 1, "save_steps": 1, "seed": 5},
        "stages": [
            {
                "kind": "rl",
                "name": "rl",
                "model": {"path": base},
                "data": {
                    "source": "file",
                    "args": {"path": f"{base}/rows.jsonl", "heldout_fraction": 0.2},
                    "template": "raw",
                    "max_prompt_length": 8,
                },
                "rollout": {
                    "prompts_per_step": 2,
                    "num_generations": 4,
                    "max_completion_length": 6,
                },
                "rewards": [{"name": f"{file}:first_letter"}],
                "learner": {"max_steps": STEPS, "learning_rate": 1e-3},
                "eval": {"num_tasks": 2, "num_samples": 2, "steps": 1},
                "callbacks": [{"name": f"{file}:interrupt", "args": at}],
                **sections,
            }
        ],
    }


@pytest.fixture(scope="module")
def whole(base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train_recipe(from_dict(recipe(base, folder)), QUIET)
    return folder


@pytest.fixture(scope="module")
def stopped(base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was interrupted after step 3 of 4."""
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.raises(KeyboardInterrupt):
        train_recipe(from_dict(recipe(base, folder, stop=3)), QUIET)
    return folder


def resumed(run: Path) -> str:
    """What the console said."""
    said = io.StringIO()
    resume_run(run, Console(file=said, width=1000))
    return said.getvalue()


def left(run: Path) -> dict[str, bytes]:
    """Everything that no clock decides."""
    files = [run / "model" / "model.safetensors", *(run / "eval").glob("*.jsonl")]
    files += (run / "ledger").glob("*.gz")
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in files}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "one bit": flip,
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "gone": Path.unlink,
}


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("model.safetensors", "one bit"),
        ("optimizer.safetensors", "one bit"),
        ("rng.safetensors", "one bit"),
        ("model.safetensors", "zeroed"),
        ("optimizer.safetensors", "cut"),
        ("rollouts.json.gz", "gone"),
        ("state.json", "cut"),
        ("tokenizer.json", "one bit"),
        ("manifest.json", "gone"),
    ],
)
def test_an_older_checkpoint_is_used_and_said(
    stopped: Path, whole: Path, tmp_path: Path, file: str, damage: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    DAMAGES[damage](run / "checkpoints" / "step_000003" / file)
    said = resumed(run)
    assert f"not used: checkpoints/step_000003: {file} " in said
    assert "going on from checkpoints/step_000002" in said
    assert left(run) == left(whole)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("state.json", {"step": 400}),  # waited for ever
        ("state.json", {"position": 0}),
        ("learner.json", {"steps": 1}),
    ],
)
def test_a_number_that_was_changed_is_noticed(
    stopped: Path, whole: Path, tmp_path: Path, file: str, change: dict[str, int]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    path = run / "checkpoints" / "step_000003" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert f"step_000003: {file} " in resumed(run)
    assert left(run) == left(whole)


def test_two_checkpoints_that_changed_places_are_not_taken(stopped: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    two, three, aside = (run / "checkpoints" / f"step_00000{n}" for n in "239")
    two.rename(aside), three.rename(two), aside.rename(three)
    with pytest.raises(RunError, match=r"no checkpoint .*manifest.json is that of step_000002"):
        resume_run(run, QUIET)


def test_without_a_whole_checkpoint_one_sentence_names_the_files(
    stopped: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    for folder in (run / "checkpoints").iterdir():
        flip(folder / "model.safetensors")
    with pytest.raises(RunError, match=r"step_000003: model.safetensors .* delete checkpoints/"):
        resume_run(run, QUIET)
    # and what it says can be done helps
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints.jsonl").unlink()
    assert "rl step 1/4" in resumed(run)


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_first_evaluation_is_made_again_before_training(
    stopped: Path, whole: Path, tmp_path: Path, damage: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    DAMAGES[damage](run / "eval" / "before.jsonl")
    said = resumed(run)
    assert said.index("eval/before.jsonl") < said.index("rl step 4/4")
    assert left(run) == left(whole)


@pytest.mark.parametrize("name", ["metrics.jsonl", "eval/step_000002.jsonl"])
def test_what_belongs_to_a_checkpoint_is_checked(stopped: Path, tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    content = bytearray((run / name).read_bytes())
    content[20] ^= 1
    (run / name).write_bytes(content)
    with pytest.raises(RunError, match=rf"step_000003: {name} has other content than was written"):
        resume_run(run, QUIET)


def test_a_ledger_that_is_damaged_is_written_again_and_one_removed_is_said(
    stopped: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    flip(ledger.shard(run / "ledger", 3))
    assert "going on from checkpoints/step_000002" in resumed(run)
    assert left(run) == left(whole)

    shutil.copytree(stopped, tmp_path / "without")
    shutil.rmtree(tmp_path / "without" / "ledger")
    assert "ledger/ was removed" in resumed(tmp_path / "without")
    model = "model/model.safetensors"
    assert (tmp_path / "without" / model).read_bytes() == (whole / model).read_bytes()


@pytest.mark.parametrize(
    "name", ["model/model.safetensors", "summary.json", "manifest.json", "eval/after.jsonl"]
)
def test_a_stage_that_was_done_is_mended_from_its_checkpoint(
    whole: Path, tmp_path: Path, name: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    flip(run / name)
    said = resumed(run)
    assert f"run: {name} " in said
    assert "rl step" not in said
    assert left(run) == left(whole)
    assert "done before" in resumed(run)


def test_a_file_that_is_put_into_a_model_is_noticed(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "model" / "adapter_config.json").write_text("{}")
    assert "model/adapter_config.json was put there by something else" in resumed(run)
    assert not (run / "model" / "adapter_config.json").exists()


@pytest.mark.parametrize("name", ["metrics.jsonl", "summary.json", "eval/before.jsonl"])
def test_a_folder_in_the_place_of_a_file_is_a_sentence(
    stopped: Path, tmp_path: Path, name: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    (run / name).unlink(missing_ok=True)
    (run / name).mkdir()
    with pytest.raises(RunError, match=rf"{name} is a folder, and the run keeps a file there"):
        resume_run(run, QUIET)


def test_what_kills_left_is_removed_and_said(stopped: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    checkpoints = run / "checkpoints"
    shutil.copytree(checkpoints / "step_000002", checkpoints / "step_000001")  # one too many
    litter = [checkpoints / "step_000004.tmp", run / "model.1764490000", run / "model.tmp"]
    litter += [run / "best" / "step_000002", run / "best" / "before.tmp"]
    for folder in litter:
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_text("half")
    files = [run / "eval" / "after.tmp", run / "ledger" / "step_000004.jsonl.tmp"]
    for file in files:
        file.write_text("half")
    said = resumed(run)
    for path in (*litter, *files, checkpoints / "step_000001"):
        assert path.relative_to(run).as_posix() in said
        assert not path.exists()
    assert left(run) == left(whole)
    assert len(list(checkpoints.iterdir())) == 2


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_saved_files_have_the_mode_of_the_umask(base: str, tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        tree = recipe(base, tmp_path / "run", learner={"max_steps": 1})
        [stage] = tree["stages"]
        stage["model"]["lora"] = {"rank": 2}
        stage["eval"]["keep_best"] = True
        train_recipe(from_dict(tree), QUIET)
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len([path for path in files if path.suffix == ".safetensors"]) >= 5
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~mask}


# Other stages


def supervised(base: str, folder: Path, **sections: Any) -> dict[str, Any]:
    stage = {
        "kind": "sft",
        "model": {"path": base},
        "data": {"path": f"{base}/rows.jsonl"},
        "learner": {"batch_size": 4, "max_steps": 4, "learning_rate": 1e-2},
        **sections,
    }
    run = {"dir": str(folder), "threads": 1, "save_steps": 1}
    return {"name": "tiny-sft", "run": run, "stages": [stage]}


def test_a_trainers_checkpoint_and_the_model_it_led_to(base: str, tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    train_recipe(from_dict(supervised(base, whole)), QUIET)
    shutil.copytree(whole, run)
    flip(run / "checkpoints" / "step_000004" / "optimizer.pt")
    flip(run / "model" / "model.safetensors")
    said = resumed(run)
    assert "run: model/model.safetensors has other content than was written" in said
    assert "not used: checkpoints/step_000004: optimizer.pt " in said
    name = "model/model.safetensors"
    assert (run / name).read_bytes() == (whole / name).read_bytes()
    flip(run / "checkpoints" / "step_000003" / "model.safetensors")
    flip(run / "checkpoints" / "step_000004" / "model.safetensors")
    (run / "model" / "config.json").write_text("{}")
    with pytest.raises(RunError, match=r"model/config.json has .* cannot be made again: "):
        resume_run(run, QUIET)


def test_cached_reference_losses_are_believed_only_if_they_are_what_was_written(
    base: str, tmp_path: Path
) -> None:
    slm = {"select": "excess", "keep": 0.5, "reference": save_tiny_base(tmp_path / "other", 1)}
    train_recipe(from_dict(supervised(base, tmp_path / "one", slm=slm)), QUIET)
    (tmp_path / "two").mkdir()
    cache = "reference_losses.safetensors"
    shutil.copy(tmp_path / "one" / cache, tmp_path / "two" / cache)
    flip(tmp_path / "two" / cache)
    train_recipe(from_dict(supervised(base, tmp_path / "two", slm=slm)), QUIET)
    ours, other = (load_file(tmp_path / name / cache)["losses"] for name in ("one", "two"))
    assert np.array_equal(ours, other)
    save_file({"something": ours}, tmp_path / "two" / cache)  # another file altogether
    (tmp_path / "two" / "summary.json").unlink()
    resume_run(tmp_path / "two", QUIET)
    assert "losses" in load_file(tmp_path / "two" / cache)


def sampling(base: str, folder: Path) -> dict[str, Any]:
    """Three shards, two rows each."""
    tree = recipe(base, folder)
    [stage] = tree["stages"]
    kept = {name: stage[name] for name in ("model", "data", "rollout", "rewards")}
    filters = {"num_tasks": 6, "min_reward": 0.0}
    tree["stages"] = [{"kind": "reject", "name": "kept", **kept, "filter": filters}]
    return tree


@pytest.fixture(scope="module")
def shards(base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "shards"
    train_recipe(from_dict(sampling(base, folder)), QUIET)
    return folder


@pytest.mark.parametrize(
    "name", ["shards/00001.jsonl", "data/train.jsonl", "data/counts.json", "metrics.jsonl"]
)
def test_rows_that_were_sampled_are_sampled_again(shards: Path, tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(shards, run)
    flip(run / name)
    assert f"{Path(name).name} has other content than was written" in resumed(run)
    files = [f"shards/0000{n}.jsonl" for n in range(3)] + ["data/train.jsonl", "data/README.md"]
    for file in files:
        assert (run / file).read_bytes() == (shards / file).read_bytes()
    assert [line["step"] for line in read_lines(run / "metrics.jsonl")] == [1, 2, 3]


@pytest.mark.parametrize("name", ["progress.json", "shards/made_of.json"])
def test_what_says_which_shards_are_whole_cannot_be_guessed(
    shards: Path, tmp_path: Path, name: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(shards, run)
    (run / "summary.json").unlink()
    shutil.rmtree(run / "data")
    (run / name).write_text("[]")
    with pytest.raises(RunError, match=f"{Path(name).name} is not the JSON .* to sample anew"):
        resume_run(run, QUIET)


def test_a_ledger_folder_may_hold_files_of_other_names(tmp_path: Path) -> None:
    (tmp_path / "step_copied.jsonl.gz").write_text("of a user")
    assert ledger.set_aside(tmp_path, after_step=0) == 0


def test_an_index_of_anything_is_read(tmp_path: Path) -> None:
    with checkpoint.Saver(tmp_path) as saver:
        saver.save(1, lambda folder: None, {"step": 1})
    with open(tmp_path / checkpoint.INDEX, "ab") as index:
        index.write(b'5\n[1]\n{"step": null}\n\xff\xfe\n{"step": 7}\n')
    said: list[str] = []
    found = checkpoint.latest(tmp_path, said.append) or pytest.fail("no checkpoint")
    assert found.state == {"step": 1}
    assert said[0] == "not used: checkpoints/step_000007: it is gone"


def test_a_checkpoint_needs_no_model_that_goes_with_the_one_before_it(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else best models of the one before could be removed while the new one becomes whole."""
    needed: list[set[str]] = []
    save = checkpoint.Saver.save

    def noted(self: Any, step: int, write: Any, state: Any, beside: Any) -> None:
        needed.append({name.split("/")[1] for name in beside if name.startswith("best/")})
        save(self, step, write, state, beside)

    monkeypatch.setattr(checkpoint.Saver, "save", noted)
    monkeypatch.setattr(
        "grpo.stages.rl_evaluations.best", lambda evaluations: list(evaluations)[-1]
    )
    settings = recipe(base, tmp_path / "run")
    settings["stages"][0]["eval"]["keep_best"] = True
    train_recipe(from_dict(settings), QUIET)
    assert needed == [{f"step_{step:06d}"} for step in (1, 2, 3, 3)]
