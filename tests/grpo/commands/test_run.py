"""A whole run on a tiny base: what it writes, and that SIGKILL changes nothing in the end."""

from __future__ import annotations

import gc
import gzip
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo.commands.eval_recipe import evaluate_model
from grpo.commands.train import resume_run, train_recipe
from grpo.config.config import from_dict
from grpo.config.schema import Recipe
from grpo.config.schema.pretrain import PretrainLearner, PretrainModel
from grpo.data import SOURCES
from grpo.errors import RecipeError, RunError
from grpo.outside.terminal.console import Console
from grpo.rundir import ledger
from grpo.stages.pretrain import pretrain
from grpo.stages.rl import settled

STEPS = 8


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.set_num_threads(1)
    folder = str(tmp_path_factory.mktemp("base"))
    pretrain(
        SOURCES["parity"](bits=4, long_fraction=0.5),
        out_dir=folder,
        model=PretrainModel(
            hidden_size=32,
            num_layers=1,
            num_heads=2,
            num_kv_heads=2,
            intermediate_size=64,
            max_position=64,
        ),
        learner=PretrainLearner(max_steps=30, batch_size=64, learning_rate=3e-3),
    )
    return folder


def recipe(base: str, folder: Path, **learner: object) -> dict[str, object]:
    return {
        "name": "tiny",
        "run": {"dir": str(folder), "threads": 1, "save_steps": 3, "seed": 5},
        "model": {"path": base},
        "data": {
            "source": "parity",
            "args": {"bits": 4},
            "template": "raw",
            "max_prompt_length": 16,
        },
        "rollout": {"prompts_per_step": 4, "num_generations": 4, "max_completion_length": 16},
        "rewards": [{"name": "accuracy"}, {"name": "format", "weight": 0.1}],
        "learner": {"max_steps": STEPS, "learning_rate": 1e-3, **learner},
        "eval": {"num_tasks": 4, "num_samples": 2, "steps": 4},
    }


def metrics(folder: Path) -> list[dict[str, float]]:
    """Lines of metrics.jsonl without what a clock decides."""
    timed = ("time", "step_time", "tokens_per_second", "learner/tokens_per_second")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {
            k: v
            for k, v in line.items()
            if k not in timed and not k.startswith(("time/", "schedule/"))
        }
        for line in lines
    ]


@pytest.fixture(scope="module")
def finished(base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train_recipe(from_dict(recipe(base, folder)), Console(quiet=True))
    return folder


def test_a_run_leaves_what_it_promises(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    for when in ("before", "after"):
        assert {"greedy", "pass1", "pass1_ci", "mean_length"} <= summary[when].keys()
        low, high = summary[when]["pass1_ci"]
        assert low <= summary[when]["pass1"] <= high
    assert summary["seconds"] > 0
    assert [line["step"] for line in metrics(finished)] == list(range(1, STEPS + 1))
    model = AutoModelForCausalLM.from_pretrained(finished / "model")
    tokenizer = AutoTokenizer.from_pretrained(finished / "model")
    assert tokenizer.decode(tokenizer.encode("01=", add_special_tokens=False)) == "01="
    # The learning was real: the trained model is not the base.
    first = AutoModelForCausalLM.from_pretrained(finished / "checkpoints" / "step_000006")
    pairs = zip(model.parameters(), first.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


def test_a_second_verifier_checks_the_first(finished: Path) -> None:
    # Strict and lenient extraction agree on this format, up to answers that are not there.
    assert all(0.5 <= line["sentinel/second_opinion"] <= 1.0 for line in metrics(finished))


def test_the_ledger_holds_the_tokens_that_were_trained_on(finished: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(finished / "model")
    lines = list(ledger.read(finished / "ledger", 1))
    assert len(lines) == 16
    for line in lines:
        ids = [i for segment in line["segments"] for i in segment["ids"]]
        assert tokenizer.decode(ids, skip_special_tokens=True) == line["completion"]
        assert len(line["segments"][0]["logprobs"]) == len(ids)
    # Advantages of a group sum to zero.
    for start in range(0, 16, 4):
        assert abs(sum(line["advantage"] for line in lines[start : start + 4])) < 1e-5


AHEAD = ["schedule.mode=one_step_off", "agreement.steps=3"]


def test_a_killed_run_resumes_to_the_same_bits(base: str, finished: Path, tmp_path: Path) -> None:
    killed_and_resumed(recipe(base, tmp_path / "killed"), finished, tmp_path)


def test_a_run_that_samples_ahead_resumes_to_the_same_bits(base: str, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    train_recipe(from_dict(recipe(base, whole), AHEAD), Console(quiet=True))
    ages = [line["staleness/max"] for line in metrics(whole)]
    assert (ages[0], max(ages)) == (0, 1)  # 0 also where the step before had nothing to learn
    assert ["agreement/z" in line for line in metrics(whole)] == [
        step % 3 == 1 for step in range(1, STEPS + 1)
    ]
    # The batch of the next step at least lies in every checkpoint but the last.
    with gzip.open(whole / "checkpoints" / "step_000006" / "rollouts.json.gz") as file:
        saved = json.load(file)
    assert [batch["step"] for batch in saved["ready"]] == list(range(7, saved["next"]))
    assert saved["next"] >= 8
    killed_and_resumed(recipe(base, tmp_path / "killed"), whole, tmp_path, *AHEAD)


def killed_and_resumed(
    settings: dict[str, Any], finished: Path, tmp_path: Path, *overrides: str
) -> None:
    """Train `settings` on the command line, kill that after step 5, resume, and compare."""
    folder = Path(settings["run"]["dir"])
    file = tmp_path / "tiny.yaml"
    file.write_text(json.dumps(settings))  # JSON is YAML
    process = subprocess.Popen(
        [sys.executable, "-m", "grpo.cli", "train", str(file), *overrides],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    log = folder / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not log.exists() or len(log.read_bytes().splitlines()) < 5:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "summary.json").exists()

    resume_run(folder, Console(quiet=True))
    assert metrics(folder) == metrics(finished)
    for step in range(1, STEPS + 1):
        ours, whole = (ledger.shard(f / "ledger", step) for f in (folder, finished))
        assert ours.read_bytes() == whole.read_bytes()
    for name in ("model/model.safetensors", "eval/after.jsonl"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes()


def test_a_run_directory_is_not_overwritten(base: str, finished: Path) -> None:
    with pytest.raises(RunError, match="--resume"):
        train_recipe(from_dict(recipe(base, finished)), Console(quiet=True))


def test_the_learner_gets_the_settings_of_sampling_and_algorithm(base: str, tmp_path: Path) -> None:
    settings = recipe(base, tmp_path / "run", max_steps=1)
    overrides = ["temperature=0.7", "top_p=0.9", "top_k=6", "prompts_per_step=4"]
    overrides = [f"rollout.{text}" for text in overrides]
    overrides += ["algorithm.beta=0.1", "algorithm.num_minibatches=2", "algorithm.num_iterations=3"]
    train_recipe(from_dict(settings, overrides), Console(quiet=True))
    (line,) = metrics(tmp_path / "run")
    assert line["sampling/sampling_logp_difference/max"] < 1e-4
    assert line["optimizer_steps"] == 6
    assert line["kl"] > 0


def test_completions_longer_than_the_model_are_refused(base: str, tmp_path: Path) -> None:
    settings = from_dict(recipe(base, tmp_path / "run"), ["rollout.max_completion_length=60"])
    with pytest.raises(RecipeError, match=r"max_completion_length = 60 .* valid: 1 to 59"):
        train_recipe(settings, Console(quiet=True))


def test_a_run_that_could_not_start_leaves_its_folder_free(base: str, tmp_path: Path) -> None:
    settings = recipe(base, tmp_path / "run", max_steps=1)
    with pytest.raises(RecipeError, match="no chat template"):
        train_recipe(from_dict(settings, ["data.template=chat"]), Console(quiet=True))
    train_recipe(from_dict(settings), Console(quiet=True))


def test_eval_gives_the_figures_of_the_summary(base: str, finished: Path) -> None:
    after = json.loads((finished / "summary.json").read_text())["after"]
    figures = evaluate_model(finished, from_dict(recipe(base, finished)), Console(quiet=True))
    assert json.loads(json.dumps(figures)) == after
    same = (finished / "eval" / f"{name}.jsonl" for name in ("model", "after"))
    assert len({file.read_bytes() for file in same}) == 1


CALLBACK = """
import os, signal

def interrupt(step, at):
    if step.step == at:
        os.kill(os.getpid(), signal.SIGINT)
"""


def test_two_stages_interrupted_moved_and_resumed(base: str, tmp_path: Path) -> None:
    (tmp_path / "stop.py").write_text(CALLBACK)

    def two(name: str, at: int) -> Recipe:
        one = recipe("stage:base", tmp_path / name, max_steps=4)
        head = {key: one.pop(key) for key in ("name", "run")}
        stop = {"name": f"{tmp_path / 'stop.py'}:interrupt", "args": {"at": at}}
        small = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "intermediate_size": 64}
        first = {
            "name": "base",
            "kind": "pretrain",
            "model": small,
            "data": {"source": "parity", "args": {"bits": 4}},
            "learner": {"max_steps": 5, "batch_size": 16},
        }
        return from_dict({**head, "stages": [first, {**one, "name": "rl", "callbacks": [stop]}]})

    train_recipe(two("whole", at=0), Console(quiet=True))
    said = Console(file=io.StringIO())
    with pytest.raises(KeyboardInterrupt, match="saved at step 2"):
        train_recipe(two("cut", at=2), said)
    assert "grpo train --resume" in said.file.getvalue()
    assert [line["step"] for line in metrics(tmp_path / "cut" / "rl")] == [1, 2]

    (tmp_path / "cut").rename(tmp_path / "moved")
    resume_run(tmp_path / "moved", Console(quiet=True))
    for name in ("base/model/model.safetensors", "rl/model/model.safetensors"):
        ours, whole = (tmp_path / folder / name for folder in ("moved", "whole"))
        assert ours.read_bytes() == whole.read_bytes()
    assert metrics(tmp_path / "moved" / "rl") == metrics(tmp_path / "whole" / "rl")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_unwritable_run_directory_is_one_sentence(base: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        train_recipe(from_dict(recipe(base, tmp_path / "file" / "run")), Console(quiet=True))


def test_what_a_stage_leaves_is_garbage_again() -> None:
    with settled():
        assert gc.get_freeze_count() > 10_000
    assert gc.get_freeze_count() == 0


def test_later_rl_stages_draw_their_own_tasks() -> None:
    from grpo.stages.wiring import training_seed

    one = recipe("stage:base", Path("x"), max_steps=1)
    head = {key: one.pop(key) for key in ("name", "run")}
    one.pop("model")
    stages = [
        {**one, "name": "first", "model": {"path": "org/m"}},
        {**one, "name": "second", "model": {"path": "stage:first"}},
        {**one, "name": "third", "model": {"path": "stage:second"}},
    ]
    whole = from_dict({**head, "stages": stages})
    seeds = [training_seed(stage, whole) for stage in whole.stages]
    assert seeds[0] == whole.run.seed
    assert len(set(seeds)) == 3
