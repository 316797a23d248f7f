"""Distillation: controls, what a served teacher is told, its logits, and kills in both phases."""

from __future__ import annotations

import importlib.util
import io
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo.commands.train import resume_run, train_recipe
from grpo.config.config import from_dict
from grpo.config.schema import Data, Model, Run, SFTData, SFTLearner, SFTStage
from grpo.errors import DataError, RecipeError
from grpo.outside.terminal.console import Console
from grpo.rollout.fake import FakeEngine
from grpo.rundir.provenance import content_hash
from grpo.stages import distill
from grpo.stages.served import ServedTemplate
from grpo.stages.sft import fine_tune
from grpo.stages.supervised_rows import TextRow, TokenRow
from grpo.types import Request, Sampling, Task, Version
from tests.grpo.tiny_bases import save_tiny_base

torch.set_num_threads(1)
FILE = Path(__file__).parents[3] / "benchmarks" / "bench_reject.py"
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def planted():
    """benchmarks/bench_reject.py as a module."""
    spec = importlib.util.spec_from_file_location("planted_for_distill", FILE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def place(planted, tmp_path_factory):
    """A folder with planted tasks, a scripted teacher, and two students with weights."""
    folder = tmp_path_factory.mktemp("distill")
    planted.plant(folder, 3, 10)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    for seed, name in enumerate(("student", "other")):
        sizes = {"num_layers": 1, "max_position": 2048}
        save_tiny_base(folder / name, seed, tokenizer, **sizes)
    return folder


def recipe_for(planted, place, name, **changes):
    """A distill recipe over the planted tasks, its run in the folder `name`."""
    recipe = planted.recipe_for(place, 3)
    [stage] = recipe["stages"]
    stage |= {"kind": "distill", "name": "distill", "teacher": {"path": str(place / "model")}}
    stage |= {"model": {"path": str(place / "student")}}
    leaks = stage["filter"]["decontaminate"]
    stage["filter"] = {"keep": 2, "select": "first", "decontaminate": leaks}
    stage["learner"] = {"max_steps": 6, "batch_size": 2}
    recipe["run"] |= {"dir": str(place / name), "save_steps": 2}
    stage |= changes
    return recipe


def test_a_student_learns_what_was_kept_and_resumes_in_both_phases(planted, place, monkeypatch):
    recipe = recipe_for(planted, place, "whole")
    summary = train_recipe(from_dict(recipe), QUIET)
    assert summary["teacher"]["rows"] == len(json_lines(place / "whole" / "data")) > 10
    # eight ordinary tasks and the easy one give two rows, the hard one gives one
    assert summary["steps"] == 6
    assert summary["result"].startswith("kept 19 of 160 completions; student: 19 rows, loss ")
    AutoModelForCausalLM.from_pretrained(summary["model"])

    recipe["run"]["dir"] = str(place / "cut")
    (place / "kill").write_text("poll 9")  # inside the first shard
    with monkeypatch.context() as patched:
        patched.setattr(planted.os, "kill", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_recipe(from_dict(recipe), QUIET)
    assert not (place / "cut" / "data").exists()
    index = place / "cut" / "checkpoints.jsonl"
    child = "import sys; from grpo.commands.train import resume_run; resume_run(sys.argv[1])"
    with subprocess.Popen([sys.executable, "-c", child, str(place / "cut")]) as learning:
        while learning.poll() is None and not index.exists():
            time.sleep(0.005)
        learning.kill()
    assert learning.returncode == -signal.SIGKILL
    assert not (place / "cut" / "model").exists()
    before = content_hash(place / "cut" / "data")
    resume_run(place / "cut", QUIET)
    assert before == content_hash(place / "cut" / "data") == content_hash(place / "whole" / "data")
    assert content_hash(place / "cut" / "model") == content_hash(place / "whole" / "model")


def interrupted(*_):
    """In the place of os.kill."""
    raise KeyboardInterrupt


def json_lines(data):
    return [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]


def test_shuffled_answers_by_hand():
    rows = [TextRow(place="", prompt=p, completion=c) for p, c in ("a1", "a2", "b3", "b4", "c5")]
    found = {(r.prompt, r.completion) for r in distill.shuffled(rows, 0)}
    own = {(r.prompt, r.completion) for r in rows}
    assert not found & own
    assert sorted(c for _, c in found) == ["1", "2", "3", "4", "5"]
    with pytest.raises(DataError, match="one prompt has 2 of 3 rows"):
        distill.shuffled([rows[0], rows[1], rows[4]], 0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=2, max_size=30), st.integers(0, 9))
def test_shuffled_answers_are_another_prompts_and_used_once(prompts, seed):
    rows = [TextRow(place="", prompt=f"{p}", completion=f"{p}/{i}") for i, p in enumerate(prompts)]
    if 2 * max(Counter(prompts).values()) > len(prompts):
        with pytest.raises(DataError):
            distill.shuffled(rows, seed)
        return
    found = distill.shuffled(rows, seed)
    assert all(r.completion.partition("/")[0] != r.prompt for r in found)
    assert sorted(r.completion for r in found) == sorted(r.completion for r in rows)
    assert Counter(r.prompt for r in found) == Counter(r.prompt for r in rows)
    assert found == distill.shuffled(rows, seed)


def test_the_control_trains_on_shuffled_rows_and_leaves_the_data_alone(planted, place, monkeypatch):
    seen = {}
    monkeypatch.setattr(distill, "fine_tune", lambda rows, **_: seen.update(rows=rows) or STUB)
    recipe = recipe_for(planted, place, "control", shuffle_answers=True)
    summary = train_recipe(from_dict(recipe), QUIET)
    assert "student (shuffled answers): stub" in summary["result"]
    tokenizer = AutoTokenizer.from_pretrained(place / "student")
    data = {r["prompt"]: [] for r in json_lines(place / "control" / "data")}
    for line in json_lines(place / "control" / "data"):
        data[line["prompt"]].append(line["completion"])
    for row in seen["rows"]:
        prompt = tokenizer.decode(row.prompt_ids).removesuffix(planted.PREFILL)
        completion = planted.PREFILL + tokenizer.decode(row.ids, skip_special_tokens=True)
        assert completion not in data[prompt]
        assert any(completion in own for own in data.values())


STUB = {"result": "stub", "seconds": 0.0}


class Served(FakeEngine):
    """Takes the place of the endpoint: what it is told is what it plays."""

    told: list = []  # noqa: RUF012 - the stage makes the engine

    def __init__(self, spec, settings, say):
        tokenizer = AutoTokenizer.from_pretrained(spec.model)
        self.told.append((settings.url, settings.model, settings.api_key_env, settings.retries))

        def play(request, index):
            self.told.append(say(request))
            return f"so it is {index}</think><answer>7</answer>"

        super().__init__(play, tokenizer, version=Version(step=0, hash="served"))


def test_a_served_teacher(planted, place, monkeypatch):
    monkeypatch.setattr(distill, "EndpointEngine", Served)
    monkeypatch.setattr(distill, "fine_tune", lambda rows, **_: STUB)
    Served.told.clear()
    recipe = recipe_for(planted, place, "served")
    [stage] = recipe["stages"]
    stage["teacher"] = {"path": "http://host/v1", "model": "big", "api_key_env": "KEY"}
    stage["rollout"] |= {"engine": "torch", "engine_args": {"retries": 3}, "num_generations": 1}
    stage["filter"] |= {"min_reward": 0.0, "num_tasks": 2}
    train_recipe(from_dict(recipe), QUIET)
    head, *said = Served.told
    assert head == ("http://host/v1", "big", "KEY", 3)
    assert len(said) == 2
    assert all(text.endswith(planted.PREFILL) for text in said)  # raw: text to go on with
    assert "model at" not in (card := (place / "served" / "data" / "README.md").read_text())
    assert "big at http://host/v1" in card
    lines = json_lines(place / "served" / "data")
    assert [line["completion"] for line in lines] == [
        "<think>\nso it is 0</think><answer>7</answer>"
    ] * 2


def test_what_a_served_teacher_is_told_in_chat(place):
    tokenizer = AutoTokenizer.from_pretrained(place / "student")
    data = Data(source="x", template="chat", template_args={"system_prompt": "Think."})
    template = ServedTemplate(data, tokenizer)
    user = {"role": "user", "content": "How many?"}
    for task in (Task(uid="1", prompt="How many?"), Task(uid="2", prompt=[user])):
        prompt = template.render(task)
        assert prompt is not None
        assert prompt.task is task
        assert prompt.prefill == ""
        request = Request(uid="0", ids=prompt.ids, n=1, sampling=Sampling(), key=(0,))
        assert template.say(request) == [{"role": "system", "content": "Think."}, user]
    short = data.model_copy(update={"max_prompt_length": 3})
    assert ServedTemplate(short, tokenizer).render(Task(uid="1", prompt="How many?")) is None
    prefilled = data.model_copy(update={"template_args": {"prefill": "<think>"}})
    with pytest.raises(RecipeError, match=r"data\.template_args\.prefill has no place"):
        ServedTemplate(prefilled, tokenizer)


def test_the_loss_of_logits_is_the_forward_divergence_in_nats_per_token(place, tmp_path):
    rows = [
        TokenRow(prompt_ids=(5, 6, 7), ids=(8, 9, 10, 1)),
        TokenRow(prompt_ids=(9, 5), ids=(6, 1)),
    ]
    models = {
        name: AutoModelForCausalLM.from_pretrained(place / name, dtype=torch.float32)
        for name in ("student", "other")
    }
    total = torch.tensor(0.0, dtype=torch.float64)
    for row in rows:
        ids = torch.tensor([[*row.prompt_ids, *row.ids]])
        with torch.no_grad():
            logps = {
                name: model(ids).logits[0].double().log_softmax(-1)
                for name, model in models.items()
            }
        where = slice(len(row.prompt_ids) - 1, -1)
        student, teacher = logps["student"][where], logps["other"][where]
        total += (teacher.exp() * (teacher - student)).sum()
    assert first_loss(place, tmp_path / "a", rows, "other") == pytest.approx(
        total.item() / 6, rel=1e-4
    )
    assert abs(first_loss(place, tmp_path / "b", rows, "student")) < 1e-5


def first_loss(place, folder, rows, teacher):
    """Loss of the first step on all rows, with `teacher`."""
    folder.mkdir()
    model = AutoModelForCausalLM.from_pretrained(place / teacher).eval()
    summary = fine_tune(
        rows,
        stage=SFTStage(
            model=Model(path=str(place / "student")),
            data=SFTData(path="rows"),
            learner=SFTLearner(max_steps=1, batch_size=2, max_length=64),
        ),
        tokenizer=AutoTokenizer.from_pretrained(place / "student"),
        run=Run(),
        folder=folder,
        console=Console(file=io.StringIO()),
        trainer=lambda **given: distill.LogitsTrainer(teacher=model, **given),
    )
    assert (folder / "model" / "model.safetensors").exists()
    return summary["loss"]


def test_logits_need_the_same_tokens_and_the_weights(planted, place):
    recipe = recipe_for(planted, place, "logits", method="logits")
    bigger = place / "bigger"
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(bigger)
    config = json.loads((place / "model" / "config.json").read_text())
    (bigger / "config.json").write_text(json.dumps(config | {"vocab_size": len(tokenizer)}))
    recipe["stages"][0]["teacher"] = {"path": str(bigger)}
    with pytest.raises(RecipeError, match=r"token by token, and teacher.path = .*has other tokens"):
        train_recipe(from_dict(recipe), QUIET)
    recipe["stages"][0]["teacher"] = {"path": "https://host/v1"}
    with pytest.raises(RecipeError, match="'logits' needs the teacher's weights"):
        from_dict(recipe)
    with pytest.raises(RecipeError, match="shuffle_answers is the control of method=sequence"):
        from_dict(recipe_for(planted, place, "x", method="logits", shuffle_answers=True))


def test_a_teacher_that_is_not_there_is_named(planted, place):
    recipe = recipe_for(planted, place, "nobody", teacher={"path": "nobody"})
    with pytest.raises(RecipeError, match=r"^teacher\.path = 'nobody': there is no such"):
        train_recipe(from_dict(recipe), QUIET)
