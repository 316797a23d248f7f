"""What a run was started with is compared when it goes on: settings, process, one trainer."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo import cli
from grpo.commands.eval_recipe import evaluate_model
from grpo.commands.show import print_run
from grpo.commands.train import resume_run, train_recipe
from grpo.config.config import from_dict
from grpo.errors import RecipeError, RunError
from grpo.kernels import native
from grpo.rundir import record
from grpo.rundir.run_folder import recipe_of

from .interrupted import QUIET, ROWS, prepared, resumed, rl, stopped, write


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, rows and a reward."""
    return prepared(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was interrupted, for tests that do not go on with it."""
    with pytest.MonkeyPatch.context() as patch:
        return stopped(prepared(tmp_path_factory.mktemp("begun"), patch))


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(begun, tmp_path / "copy"))


def edited(file: Path, change: Callable[[Any], Any]) -> None:
    tree = json.loads(file.read_text())
    change(tree)
    file.write_text(json.dumps(tree))


# Settings


def set_in(tree: Any, name: str, value: Any) -> None:
    *path, last = name.split(".")
    node = tree if path[0] in ("run", "ray") else tree["stages"][0]
    for part in path:
        node = node[int(part)] if isinstance(node, list) else node[part]
    node[last] = value


@pytest.mark.parametrize(
    ("name", "value", "was"),
    [
        ("run.seed", 6, "5"),
        ("run.threads", 2, "1"),
        ("learner.learning_rate", 0.5, "0.001"),
        ("learner.max_grad_norm", 0.1, "1.0"),
        ("learner.tokens_per_micro_batch", 1024, "16384"),
        ("rollout.prompts_per_step", 4, "2"),
        ("rollout.num_generations", 8, "4"),
        ("rollout.temperature", 0.5, "1.0"),
        ("rewards.0.weight", 2.0, "1.0"),
        ("rewards.0.name", "accuracy", "mine.py:reward"),
        ("algorithm.beta", 0.1, "0.0"),
        ("schedule.mode", "sync", "one_step_off"),
        ("data.args.heldout_fraction", 0.2, "0.3"),
        ("data.template", "r1_zero", "raw"),
        ("model.lora.rank", 4, "0"),
        ("learner.learning_rate", "much", "0.001"),
        ("eval.num_tasks", True, "3"),
    ],
)
def test_an_edited_setting_is_named(run: Path, name: str, value: Any, was: str) -> None:
    edited(run / "resolved.json", lambda tree: set_in(tree, name, value))
    said = rf"{re.escape(name)} = {re.escape(json.dumps(value))} \(was .*{re.escape(was)}"
    with pytest.raises(RunError, match=said):
        resume_run(run, QUIET)
    with pytest.raises(RunError, match=said):  # inputs may be accepted, settings not
        resume_run(run, QUIET, accept_changes=True)


def test_a_run_with_a_section_that_is_called_otherwise_now_says_how(run: Path) -> None:
    edited(run / "resolved.json", lambda tree: tree["stages"][0].update(parity={}))
    with pytest.raises(RunError, match=r"resolved.json: .*'parity'.* 'agreement'.*model.path="):
        recipe_of(run)


def test_what_changes_no_number_may_be_edited_and_is_said_once(place: Path) -> None:
    run = stopped(place)
    whole = rl(place, "whole", at=0)
    whole["learner"]["max_steps"] = 5
    train_recipe(from_dict(whole), QUIET)
    for name, value in (("run.save_steps", 1), ("learner.max_steps", 5)):
        edited(run / "resolved.json", lambda tree, n=name, v=value: set_in(tree, n, v))
    said = resumed(run)
    assert "resolved.json: run.save_steps = 1 (was 0)" in said
    assert "resolved.json: learner.max_steps = 5 (was 4)" in said
    changes = record.read(run)["changes"]
    assert ["run.save_steps" in changes[0]["what"], len(changes)] == [True, 2]
    ours, theirs = (r / "model" / "model.safetensors" for r in (run, place / "whole"))
    assert ours.read_bytes() == theirs.read_bytes()
    assert "was 0" not in resumed(run)


def test_the_length_is_fixed_where_the_learning_rate_depends_on_it(place: Path) -> None:
    run = stopped(
        place, learner={"max_steps": 4, "learning_rate": 1e-3, "lr_scheduler_type": "linear"}
    )
    edited(run / "resolved.json", lambda tree: set_in(tree, "learner.max_steps", 5))
    with pytest.raises(RunError, match=r"learner.max_steps = 5 \(was 4\)"):
        resume_run(run, QUIET)


def test_moved_files_are_found_under_their_new_paths(place: Path) -> None:
    run = stopped(place)
    (place / "there").mkdir()
    for name in ("base", "d.jsonl", "mine.py", "helper.py"):
        (place / name).rename(place / "there" / name)
    text = (run / "resolved.json").read_text()
    (run / "resolved.json").write_text(text.replace(f'"{place}/', f'"{place}/there/'))
    edited(run / "resolved.json", lambda tree: tree["run"].__setitem__("dir", str(run)))
    with (place / "there" / "d.jsonl").open("a") as file:
        file.write('{"prompt": "hhhhhh", "answer": "a"}\n')
    with pytest.raises(RunError, match="1 added"):
        resume_run(run, QUIET)
    write(place / "there" / "d.jsonl", ROWS)
    resumed(run)
    assert any("model.path" in change["what"] for change in record.read(run)["changes"])


# Damage


@pytest.mark.parametrize("file", ["resolved.json", "provenance.json"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda old: b"",
        lambda old: old[: len(old) // 2],
        lambda old: b"\0" * len(old),
        lambda old: b"\xff\xfe" + old,
        lambda old: b"[]",
        lambda old: b"null",
        lambda old: b'"text"',
        lambda old: b"[" * 100_000,
        lambda old: old.replace(b"0.001", b"0.003"),
        lambda old: old.replace(b'"stages"', b'"stage"'),
        lambda old: old.replace(b'"seed": 5', b'"seed": 7'),
        None,
    ],
)
def test_a_damaged_record_is_one_sentence(run: Path, file: str, damage: Any) -> None:
    path = run / file
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RunError) as raised:
        resume_run(run, QUIET)
    assert file in str(raised.value)
    assert "\n" not in str(raised.value)


def test_every_command_says_which_file_is_damaged(run: Path, capsys: Any) -> None:
    (run / "resolved.json").write_text("{")
    for words in (["train", "--resume"], ["eval"], ["show"]):
        assert cli.main([*words, str(run)]) == 2, words
        assert "resolved.json is damaged: it is not JSON" in capsys.readouterr().err


def test_flipped_bits_of_the_record_never_pass_for_a_change(run: Path) -> None:
    whole = (run / "provenance.json").read_bytes()
    for at in range(0, len(whole), len(whole) // 40):
        (run / "provenance.json").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with suppress(ValueError):  # a space of the layout became another, say
            if json.loads((run / "provenance.json").read_bytes()) == json.loads(whole):
                continue
        with pytest.raises(RunError, match=r"provenance\.json is damaged"):
            record.read(run)


@pytest.mark.parametrize("left", [(), ("versions", "commit"), ("versions", "process", "stages")])
def test_a_record_without_the_settings_is_none(place: Path, left: tuple[str, ...]) -> None:
    run = stopped(place)
    old = record.read(run)
    (run / "provenance.json").write_text(json.dumps({name: old[name] for name in left}))
    with pytest.raises(RunError, match=r"provenance\.json is damaged"):
        resumed(run)


# The process


def test_a_run_keeps_its_number_of_threads(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = place / "log"
    callback = {"name": f"{place / 'mine.py'}:Stop", "args": {"at": 2, "log": str(log)}}
    settings = rl(place, callbacks=[callback])
    settings["run"]["threads"] = 0  # all cores
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with pytest.raises(KeyboardInterrupt):
        train_recipe(from_dict(settings), QUIET)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    torch.set_num_threads(1)
    said = resumed(place / "run")
    assert "started with 2 threads" in said
    assert "1 cores" in said
    assert log.read_text().split() == ["1", "2", "2", "2", "3", "2", "4", "2"]
    torch.set_num_threads(1)


def test_kernels_stay_as_they_were(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.SWITCH, "0")
    native.library.cache_clear()
    train_recipe(from_dict(rl(place, "whole", at=0)), QUIET)
    run = stopped(place)
    monkeypatch.setenv(native.SWITCH, "1")
    native.library.cache_clear()
    said = resumed(run)
    assert "compiled kernels are off (GRPO_NATIVE=0), as the run was started" in said
    ours, theirs = (r / "model" / "model.safetensors" for r in (run, place / "whole"))
    assert ours.read_bytes() == theirs.read_bytes()
    assert os.environ[native.SWITCH] == "1"


def test_other_versions_are_said_once(place: Path) -> None:
    run = stopped(place)
    data = record.read(run)
    data["versions"]["torch"] = "1.0"
    data["computes"]["compiler"] = "another"
    record.write(run, data)
    (run / "summary.json").unlink(missing_ok=True)
    said = resumed(run)
    assert f"torch {torch.__version__} (was 1.0)" in said
    assert "(was another)" in said
    assert "was 1.0" not in resumed(run)


@pytest.mark.parametrize(("name", "value"), [("ranks", 2), ("device", "cuda")])
def test_other_ranks_and_devices_are_refused_or_accepted(
    place: Path, name: str, value: Any
) -> None:
    run = stopped(place)
    data = record.read(run)
    data["process"][name] = value
    record.write(run, data)
    with pytest.raises(RunError, match=rf"{name} = .* \(was {value}\); .*--accept-changes"):
        resume_run(run, QUIET)
    assert f"(was {value})" in resumed(run, accept_changes=True)


# Real processes


@pytest.fixture
def started(place: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """`grpo train` with some words; what it says is in a file of the given name."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(name: str, *words: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "grpo.cli", "train", *words]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(place), *sys.path])}
        with (place / name).open("wb") as said:
            processes.append(
                subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said, env=env)
            )
        return processes[-1]

    yield start
    for process in processes:  # whatever came of the test
        process.kill()
        process.wait()


def steps(run: Path) -> list[int]:
    log = run / "metrics.jsonl"
    if not log.exists():
        return []
    return [json.loads(line)["step"] for line in log.read_text().splitlines()]


def test_two_that_start_at_once_and_a_kill_with_an_immediate_resume(
    place: Path, started: Callable[..., subprocess.Popen[bytes]]
) -> None:
    settings = rl(place, at=0)
    settings["learner"]["max_steps"] = 10_000
    settings["run"]["save_steps"] = 2
    run, recipe = place / "run", place / "tiny.yaml"
    recipe.write_text(json.dumps(settings))
    both = {name: started(name, str(recipe)) for name in ("a", "b")}
    deadline = time.monotonic() + 240
    while all(process.poll() is None for process in both.values()) or len(steps(run)) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    refused, one = sorted(both, key=lambda name: both[name].poll() is None)
    assert both[refused].returncode == 2
    said = (place / refused).read_text()
    assert f"is being trained by process {both[one].pid} on" in said
    heading, error = said.splitlines()
    assert (heading, error[:5]) == (f"tiny -> {run}", "grpo:")
    print_run(run, QUIET)  # looking is allowed
    with pytest.raises(RunError, match="no trained model yet"):
        evaluate_model(run, from_dict(json.loads((run / "resolved.json").read_text())), QUIET)
    both[one].kill()
    again = started("again", "--resume", str(run))
    done = len(steps(run))
    while len(steps(run)) <= done + 2:
        assert again.poll() is None, (place / "again").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    again.send_signal(signal.SIGINT)
    assert again.wait() == 130
    assert steps(run) == list(range(1, len(steps(run)) + 1))
    assert not (run / "run.lock").exists()


def test_accepting_is_for_a_resume(place: Path) -> None:
    (place / "tiny.yaml").write_text(json.dumps(rl(place)))
    assert cli.main(["train", str(place / "tiny.yaml"), "--accept-changes"]) == 2
    with pytest.raises(RecipeError, match="--accept-changes"):
        cli._train(cli._parse(["train", str(place / "tiny.yaml"), "--accept-changes"]))
