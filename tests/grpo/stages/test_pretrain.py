"""Pretraining: the tokenizer's round trip, the loss by hand, and a model that learns and loads."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo.commands.plan import print_plan
from grpo.config import config
from grpo.config.schema.pretrain import PretrainLearner, PretrainModel
from grpo.data.parity import Parity
from grpo.data.source import TaskOrder
from grpo.errors import DataError, RecipeError
from grpo.outside.terminal.console import Console
from grpo.stages.from_scratch import build_tokenizer, save_tokenizer
from grpo.stages.pretrain import by_length, completion_loss, demonstration_rows, pretrain, schedule
from grpo.types import Task
from tests.grpo.tiny_bases import SIZES, tiny_base

torch.set_num_threads(1)
TEXT = "<think>01</think><answer>1</answer>"
WIDER = {**SIZES, "hidden_size": 32, "num_kv_heads": 1, "intermediate_size": 64}  # it has to learn


def test_tokenizer_round_trip_survives_saving(tmp_path):
    made = build_tokenizer("01=- \n")
    save_tokenizer(made, str(tmp_path))
    for tokenizer in (made, AutoTokenizer.from_pretrained(tmp_path)):
        ids = tokenizer(TEXT)["input_ids"]
        assert len(ids) == 7
        assert tokenizer.decode(ids) == TEXT
        assert tokenizer.decode([*ids, 1, 0], skip_special_tokens=True) == TEXT
        spaced = "0 1\n= <think> -"
        assert tokenizer.decode(tokenizer.encode(spaced)) == spaced
        assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
        assert tokenizer.encode("01") == tokenizer.encode("0") + tokenizer.encode("1")
        with pytest.raises(Exception, match="UNK"):
            tokenizer.encode("x")


def make(architecture="llama", **sizes):
    tokenizer = build_tokenizer("01=-")
    return tiny_base(tokenizer, architecture=architecture, **sizes), tokenizer


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_loss_counts_completion_tokens_only_and_ignores_padding(architecture):
    model, _ = make(architecture)
    rows = [([6, 7, 8], [2, 7, 3, 1]), ([7], [4, 1])]
    expected = torch.zeros(())
    for prompt, completion in rows:
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0]
        for i, token in enumerate(completion):
            expected = expected - F.log_softmax(logits[len(prompt) + i - 1], dim=-1)[token]
    assert completion_loss(model, rows).item() == pytest.approx(expected.item(), rel=1e-5)


def test_rows_of_like_length_share_a_chunk_and_none_is_lost():
    rows = [([0] * 17, [1] * n) for n in (7, 22, 7, 22, 7, 20)]
    chunks = by_length(rows)
    assert [[len(c) for _, c in chunk] for chunk in chunks] == [[22, 22, 20], [7, 7, 7]]


def test_demonstrations_end_in_eos_and_follow_the_order():
    source, tokenizer = Parity(bits=6, long_fraction=0.5), build_tokenizer("01=-")
    rows = demonstration_rows(source, TaskOrder(source, "train", 0), tokenizer, 60)
    assert rows == demonstration_rows(source, TaskOrder(source, "train", 0), tokenizer, 60)
    assert all(c[-1] == 1 and c.count(1) == 1 for _, c in rows)
    assert {len(c) for _, c in rows} == {
        12,
        7,
    }  # four tags, six bits or one dash, the answer, <eos>
    drawn = TaskOrder(source, "train", 0).take(60)
    assert [tokenizer.decode(p) for p, _ in rows] == [t.prompt for t, _ in drawn]


def test_repeated_tasks_draw_fresh_demonstrations():
    class One(Parity):
        def size(self, split):
            return 1

    source, tokenizer = One(bits=6, long_fraction=0.5), build_tokenizer("01=-")
    order = TaskOrder(source, "train", 0)
    rows = [demonstration_rows(source, order, tokenizer, 1)[0] for _ in range(20)]
    assert len({tuple(prompt) for prompt, _ in rows}) == 1
    assert {len(completion) for _, completion in rows} == {7, 12}


def test_initial_weights_depend_on_the_seed_alone():
    tokenizer = build_tokenizer("01=-")
    before = torch.get_rng_state()
    found = []
    for seed in (0, 0, 1):
        model = tiny_base(tokenizer, seed)
        found.append(model.get_input_embeddings().weight.detach())
        assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    model = tiny_base(tokenizer)
    assert torch.equal(model.get_input_embeddings().weight, found[0])


def test_schedule():
    assert [schedule(i, 100, 4) for i in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert schedule(4, 100, 4) == 1.0
    assert schedule(52, 100, 4) == pytest.approx(0.5)
    assert 0 < schedule(99, 100, 4) < 0.001
    assert schedule(0, 10, 0) == 1.0


def run(out_dir, steps=150, seed=0, progress=None, **sizes):
    learner = PretrainLearner(
        max_steps=steps, batch_size=16, learning_rate=5e-3, warmup_steps=5, weight_decay=0.01
    )
    model = PretrainModel(**{**WIDER, **sizes})
    source = Parity(bits=3, long_fraction=1.0)
    return pretrain(
        source, out_dir=str(out_dir), model=model, learner=learner, seed=seed, progress=progress
    )


def test_it_learns_loads_and_generates(tmp_path):
    seen = []
    metrics = run(tmp_path, progress=lambda step, values: seen.append((step, values["loss"])))
    assert [step for step, _ in seen] == list(range(1, 151))
    assert seen[0][1] == pytest.approx(2.3, abs=0.3)  # log of 10 tokens: knows nothing
    assert metrics["loss"] < 0.25
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert metrics["parameters"] == sum(p.numel() for p in model.parameters())
    assert model.generation_config.eos_token_id == 1
    assert model.generation_config.pad_token_id == 0
    inputs = tokenizer("011=", return_tensors="pt")
    out = model.generate(**inputs, do_sample=False, max_new_tokens=20)[0]
    assert out[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(out, skip_special_tokens=True).startswith("011=<think>")


def test_same_seed_same_weights(tmp_path):
    for name, seed in [("a", 0), ("b", 0), ("c", 1)]:
        run(tmp_path / name, steps=3, seed=seed)
    a, b, c = ((tmp_path / n / "model.safetensors").read_bytes() for n in "abc")
    assert a == b
    assert a != c


def test_heldout_tasks_are_never_shown(tmp_path):
    shown = []

    class Watched(Parity):
        def demonstration(self, task: Task, rng: random.Random) -> str:
            shown.append(task.uid)
            return super().demonstration(task, rng)

    source = Watched(bits=5)
    learner = PretrainLearner(max_steps=3, batch_size=16)
    pretrain(source, out_dir=str(tmp_path), model=PretrainModel(**SIZES), learner=learner)
    heldout = {source.task("heldout", i).uid for i in range(source.size("heldout"))}
    assert len(set(shown)) == source.size("train")
    assert heldout.isdisjoint(shown)


class Mute:
    def size(self, split):
        return 1

    def task(self, split, index):
        return Task(uid="u", prompt="0=")


class Lying(Mute):
    def alphabet(self):
        return "0="

    def demonstration(self, task, rng):
        return "<think>9</think><answer>0</answer>"


def test_sources_that_cannot_be_pretrained_on(tmp_path):
    small = {"model": PretrainModel(**SIZES), "learner": PretrainLearner(max_steps=1)}
    with pytest.raises(DataError, match=r"Mute cannot be pretrained on: it has no alphabet"):
        pretrain(Mute(), out_dir=str(tmp_path), **small)
    with pytest.raises(DataError, match=r"characters \['9'\] are missing"):
        pretrain(Lying(), out_dir=str(tmp_path), **small)
    with pytest.raises(DataError, match=r"more than model.max_position=8"):
        run(tmp_path, max_position=8)


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"hidden_size": 33}, "model.hidden_size=33"),
        ({"num_heads": 4, "num_kv_heads": 3}, "model.num_kv_heads=3 must divide"),
        ({"architecture": "gpt"}, "llama or qwen2, not 'gpt'"),
    ],
)
def test_sizes_that_cannot_be_built(sizes, says):
    with pytest.raises(RecipeError, match=says):
        make(**sizes)


def test_kv_heads_default_to_heads():
    model, _ = make(num_kv_heads=None)
    assert model.config.num_key_value_heads == 2


def test_demonstrations_that_do_not_fit_are_found_before_the_first_stage(tmp_path):
    model = {"hidden_size": 16, "num_layers": 1, "num_heads": 2}
    stage = {"kind": "pretrain", "learner": {"max_steps": 1}}
    early = {**stage, "name": "early", "data": {"source": "parity"}, "model": model}
    late = {
        **stage,
        "name": "late",
        "data": {"source": "parity", "args": {"bits": 40}},
        "model": {**model, "max_position": 48},
    }
    recipe = {"name": "t", "run": {"dir": str(tmp_path / "run")}, "stages": [early, late]}
    with pytest.raises(DataError, match=r"stage late: .*tokens, more than model\.max_position=48"):
        print_plan(config.from_dict(recipe), Console(quiet=True))
