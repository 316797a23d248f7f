"""Models that are not whole, not there or not for text: one sentence, at every door and at once."""

from __future__ import annotations

import json
import shutil
import string
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaForSequenceClassification,
    Qwen3MoeConfig,
)

from grpo.cli import main
from grpo.commands import chat
from grpo.commands.plan import print_plan
from grpo.commands.train import train_recipe
from grpo.config.config import from_dict
from grpo.config.schema import Model
from grpo.errors import GrpoError, PluginError, RecipeError
from grpo.learner.policy import load_policy
from grpo.model import pretrained
from grpo.outside.terminal.console import Console
from grpo.rewards.reward_model import RewardModel
from grpo.rollout.embedded.torch_engine import TorchEngine
from grpo.rollout.settings import TorchSettings
from grpo.stages import sft
from grpo.stages.from_scratch import build_tokenizer
from grpo.types import EngineSpec
from tests.grpo.tiny_bases import save_tiny_base

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    save_tiny_base(folder, tokenizer=build_tokenizer(string.printable))
    change(folder / "config.json", tie_word_embeddings=False)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = torch.randn_like(weights["model.embed_tokens.weight"])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def model(base: Path, tmp_path: Path) -> Path:
    """A copy of the base, to be spoiled."""
    return Path(shutil.copytree(base, tmp_path / "model"))


def change(file: Path, **settings: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def edit(model: Path, **tensors: torch.Tensor | None) -> None:
    """Replace tensors of a checkpoint; None takes one out."""
    weights = {**load_file(model / "model.safetensors"), **tensors}
    kept = {name: tensor for name, tensor in weights.items() if tensor is not None}
    save_file(kept, model / "model.safetensors", metadata={"format": "pt"})


def engine(path: str) -> Any:
    return TorchEngine.from_spec(EngineSpec(model=path, max_length=32, threads=1), TorchSettings())


DOORS: dict[str, Callable[[str], Any]] = {
    "learner": load_policy,
    "engine": engine,
    "sft": lambda path: sft._policy(Model(path=path), packing=False),
    "chat": chat.load,
}


@pytest.mark.parametrize("door", DOORS)
def test_a_tensor_that_is_missing_is_named(door: str, model: Path) -> None:
    DOORS[door](str(model))
    edit(model, **{UP: None})
    with pytest.raises(RecipeError, match=rf"lacks a tensor of Llama\w+, .*random numbers: {UP}"):
        DOORS[door](str(model))


@pytest.mark.parametrize("door", DOORS)
def test_weights_that_are_not_numbers_are_named(door: str, model: Path) -> None:
    for value in (float("nan"), float("-inf")):
        spoiled = load_file(model / "model.safetensors")[UP]
        spoiled[3, 2] = value
        edit(model, **{UP: spoiled})
        with pytest.raises(RecipeError, match=rf"not numbers .*: {UP};"):
            DOORS[door](str(model))


def test_packed_weights_are_read_and_not_trained(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    packed = AutoModelForCausalLM.from_pretrained(base, quantization_config=how)
    folder = Path(shutil.copytree(base, tmp_path / "packed"))
    packed.save_pretrained(folder)
    pretrained.check_model(str(folder))
    pretrained.load_model(str(folder))
    for train in (load_policy, DOORS["sft"]):
        with pytest.raises(RecipeError, match=r"quantized checkpoint \(.*uint8\).*trained: name"):
            train(str(folder))


def test_large_weights_are_numbers(model: Path) -> None:
    large = torch.full_like(load_file(model / "model.safetensors")[UP], 3e38)
    edit(model, **{UP: large})
    assert pretrained.load_model(str(model)).get_parameter(UP).max() == 3e38


def test_tensors_are_counted_and_the_first_are_named(model: Path) -> None:
    names = [f"model.layers.{n}.mlp.{p}_proj.weight" for n in (0, 1) for p in ("down", "up")]
    edit(model, **dict.fromkeys(names))
    with pytest.raises(RecipeError, match=r"lacks 4 tensors .* and 1 more; use a whole"):
        pretrained.check_model(str(model))


def test_a_head_that_was_not_saved_is_random_unless_it_is_tied(model: Path) -> None:
    whole: Any = AutoModelForCausalLM.from_pretrained(model)
    whole.model.save_pretrained(model)  # the bare LlamaModel: names without `model.`, no head
    with pytest.raises(RecipeError, match=r"lm_head\.weight; it was saved without its head"):
        pretrained.check_model(str(model))
    change(model / "config.json", tie_word_embeddings=True)
    pretrained.check_model(str(model))
    loaded = pretrained.load_model(str(model))
    assert torch.equal(loaded.lm_head.weight, whole.model.embed_tokens.weight)


def test_shapes_and_weights_that_the_configuration_has_no_place_for(model: Path) -> None:
    change(model / "config.json", intermediate_size=48)
    with pytest.raises(RecipeError, match=r"mlp\.\w+_proj\.weight has the shape .* and .*48.*more"):
        pretrained.load_model(str(model))
    change(model / "config.json", intermediate_size=32)
    bias = {f"model.layers.{n}.self_attn.q_proj.bias": torch.ones(16) for n in (0, 1)}
    edit(model, **bias)
    with pytest.raises(RecipeError, match=r"no place for .*layers\.0\.self_attn\.q_proj\.bias"):
        pretrained.load_model(str(model))
    edit(model, **dict.fromkeys(bias))
    change(model / "config.json", num_hidden_layers=1)
    with pytest.raises(RecipeError, match=r"no place for .*model\.layers\.1\."):
        pretrained.load_model(str(model))
    change(model / "config.json", num_nextn_predict_layers=1)  # a layer that predicts ahead
    pretrained.load_model(str(model))


def test_other_tensors_are_left_out_with_a_word(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edit(model, **{"score.weight": torch.zeros(1, 16)})
    pretrained.load_model(str(model))
    assert "one tensor of the checkpoint is no part of LlamaForCausalLM" in caplog.text
    assert "score.weight" in caplog.text


LAYOUTS = ("bfloat16", "float16", "sharded", "bin", "tied", "experts", "cache scales")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_whole_checkpoints_of_every_layout_pass(layout: str, model: Path) -> None:
    whole: Any = AutoModelForCausalLM.from_pretrained(model)
    if layout in ("bfloat16", "float16"):
        whole.to(getattr(torch, layout)).save_pretrained(model)
    elif layout == "sharded":
        (model / "model.safetensors").unlink()
        whole.save_pretrained(model, max_shard_size="4KB")
        assert len(list(model.glob("model-*"))) > 2
    elif layout == "bin":
        (model / "model.safetensors").unlink()
        torch.save(whole.state_dict(), model / "pytorch_model.bin")
    elif layout == "tied":
        change(model / "config.json", tie_word_embeddings=True)
        whole = AutoModelForCausalLM.from_pretrained(model)
        whole.save_pretrained(model)
    elif layout == "experts":  # one tensor in the model, one an expert in its file
        whole = AutoModelForCausalLM.from_config(experts(whole.config.vocab_size))
        whole.save_pretrained(model)
        assert len(load_file(model / "model.safetensors")) > len(whole.state_dict())
    else:
        edit(model, **{"model.layers.0.self_attn.k_scale": torch.ones(())})
    pretrained.check_model(str(model))
    loaded = pretrained.load_model(str(model), torch.float32)
    wanted = {name: p.float() for name, p in whole.state_dict().items()}
    assert all(torch.equal(p, wanted[name]) for name, p in loaded.state_dict().items())


def experts(vocab_size: int) -> Qwen3MoeConfig:
    return Qwen3MoeConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=32,
        moe_intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        eos_token_id=1,
    )


def test_an_expert_that_is_missing_is_named(model: Path) -> None:
    size = json.loads((model / "config.json").read_text())["vocab_size"]
    AutoModelForCausalLM.from_config(experts(size)).save_pretrained(model)
    edit(model, **{"model.layers.0.mlp.experts.2.down_proj.weight": None})
    with pytest.raises(RecipeError, match=r"layers\.0\.mlp\.experts\.down_proj"):
        pretrained.check_model(str(model))


# Folders


def damage_shard(model: Path) -> None:
    whole: Any = AutoModelForCausalLM.from_pretrained(model)
    (model / "model.safetensors").unlink()
    whole.save_pretrained(model, max_shard_size="4KB")
    sorted(model.glob("model-*"))[1].unlink()


def cut_short(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def to_adapter(model: Path) -> None:
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')


def to_run(model: Path) -> None:
    inside = model / "rl" / "model"
    inside.mkdir(parents=True)
    (model / "config.json").rename(inside / "config.json")


def emptied(model: Path) -> None:
    for file in model.iterdir():
        file.unlink()


def rename(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    edit(model, **dict.fromkeys(weights), **{f"module.{k}": v for k, v in weights.items()})


SPOILED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a shard is missing": (damage_shard, r"index\.json names model-00002-.*, which is not there"),
    "cut short": (cut_short, r"model\.safetensors is cut short or damaged"),
    "a pointer": (
        lambda m: (m / "model.safetensors").write_text("version https://git-lfs…"),
        "a pointer of Git LFS",
    ),
    "whole numbers": (
        lambda m: edit(m, **{UP: torch.ones(32, 16, dtype=torch.int8)}),
        rf"{UP} holds whole numbers \(I8\), and config\.json has no quantization_config",
    ),
    "other names": (rename, r"; it has module\.lm_head\.weight instead: save it under the names"),
    "a wrong value": (
        lambda m: change(m / "config.json", vocab_size="many"),
        r"could not be loaded: .*'vocab_size': \w",
    ),
    "no weights": (lambda m: (m / "model.safetensors").unlink(), "and no weights"),
    "an adapter": (to_adapter, "is an adapter of 'org/base', no model: merge it"),
    "a run": (to_run, r"is a folder without config\.json; did you mean '.*model/rl/model'"),
    "empty": (emptied, "is an empty folder"),
    "no tokenizer": (
        lambda m: [file.unlink() for file in m.glob("*token*")],
        "holds no tokenizer: save one there",
    ),
    "no json": (lambda m: (m / "config.json").write_text("{"), "not a valid JSON file"),
    "own code": (
        lambda m: change(m / "config.json", auto_map={"AutoConfig": "c.C"}, model_type="mine"),
        "brings code of its own",
    ),
    "multimodal": (
        lambda m: change(m / "config.json", model_type="gemma3"),
        "is a gemma3 model, which reads more than text, .* model_type = 'gemma3_text'",
    ),
    "encoder and decoder": (
        lambda m: change(m / "config.json", model_type="t5"),
        "transformers has no causal language model of",
    ),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_what_is_no_whole_model_is_one_sentence_without_reading_weights(
    kind: str, model: Path
) -> None:
    spoil, expected = SPOILED[kind]
    spoil(model)
    with pytest.raises(RecipeError, match=expected) as raised:
        pretrained.check_model(str(model), "teacher.path")
    said = str(raised.value)
    assert "teacher.path = " in said
    assert "\n" not in said


def test_paths_to_something_else(model: Path, tmp_path: Path) -> None:
    gguf = tmp_path / "model-q4.gguf"
    gguf.write_bytes(struct.pack("<4sI", b"GGUF", 3))
    for path, expected in {
        str(gguf): "GGUF format, which is for inference",
        str(model / "config.json"): rf"is a file, and a model is a folder; did you mean '{model}'",
        str(tmp_path / "modle"): rf"there is no such folder\. Did you mean '{model}'\?",
        "~/no/where": "there is no such folder",
    }.items():
        with pytest.raises(RecipeError, match=expected):
            pretrained.check_model(path)
    pretrained.check_model(f"{model}/")


# Tokenizers


def test_a_tokenizer_that_writes_tokens_the_model_lacks_is_refused(model: Path) -> None:
    tokens = pretrained.tokenizer(str(model))
    tokens.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokens.save_pretrained(model)
    pretrained.check_model(str(model))  # nothing writes it
    tokens.add_tokens([" plus", " minus"])
    tokens.save_pretrained(model)
    size = json.loads((model / "config.json").read_text())["vocab_size"]
    with pytest.raises(RecipeError, match=rf"which has {size}: ' plus' \({size + 1}\), .*resize"):
        pretrained.check_model(str(model))


# Stages and commands


def recipe(model: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "name": "t",
        "run": {"dir": str(tmp_path / "run"), "threads": 1},
        "model": {"path": str(model)},
        "data": {"source": "parity", "max_prompt_length": 32},
        "rewards": [{"name": "accuracy"}],
    }


def test_a_run_on_a_spoiled_model_ends_before_anything_is_sampled(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(model, **{UP: None})
    file = tmp_path / "t.yaml"
    file.write_text(json.dumps(recipe(model, tmp_path)))
    assert main(["train", str(file)]) == 2
    said = capsys.readouterr().err
    assert f"grpo: error: model.path = '{model}' lacks a tensor" in said
    assert not list((tmp_path / "run").rglob("*.jsonl"))
    assert main(["eval", str(model), "--tasks", "parity", "--limit", "2"]) == 2
    assert "MODEL = " in capsys.readouterr().err


def test_a_reward_model_without_a_trained_head_is_refused(model: Path) -> None:
    with pytest.raises(
        PluginError, match=r"reward_model: path = .*: score\.weight; .*trained head"
    ):
        RewardModel(path=str(model)).scores(completions=["a"])
    config = pretrained.own_config(str(model))
    config.num_labels = 1
    LlamaForSequenceClassification(config).save_pretrained(model)
    (score,) = RewardModel(path=str(model)).scores(completions=["a"])
    assert score.status == "scored"
    spoiled = torch.full((1, 16), float("nan"))
    edit(model, **{"score.weight": spoiled})
    with pytest.raises(PluginError, match="not numbers"):
        RewardModel(path=str(model)).scores(completions=["a"])


def test_the_logit_of_a_padded_text_is_that_of_its_last_token(model: Path) -> None:
    config = pretrained.own_config(str(model))
    config.num_labels, config.pad_token_id = 1, 7  # the tokenizer pads with another
    LlamaForSequenceClassification(config).save_pretrained(model)
    texts = ["a", "a longer text than the other"]
    alone = [RewardModel(path=str(model))(completions=[text]) for text in texts]
    assert [value for (value,) in alone] == pytest.approx(
        RewardModel(path=str(model))(completions=texts), abs=1e-5
    )


def test_rows_are_padded_with_a_token_that_the_model_has(model: Path, tmp_path: Path) -> None:
    tokens = pretrained.tokenizer(str(model))
    tokens.add_special_tokens({"pad_token": "[PAD]"})  # and the embedding was not resized
    tokens.save_pretrained(model)
    rows = [json.dumps({"prompt": "1" * n, "completion": "2" * n}) for n in (1, 3, 5, 7)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    stage = {
        "kind": "sft",
        "model": {"path": str(model)},
        "data": {"path": str(tmp_path / "rows.jsonl")},
        "learner": {"max_steps": 1, "batch_size": 4},
    }
    run = {"dir": str(tmp_path / "run"), "threads": 1}
    train_recipe(from_dict({"name": "t", "run": run, "stages": [stage]}), Console(quiet=True))
    assert pretrained.tokenizer(str(tmp_path / "run" / "model")).pad_token == "[PAD]"


def test_a_configuration_is_read_once_while_it_is_the_same(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = pretrained._load
    monkeypatch.setattr(
        pretrained,
        "_load",
        lambda kind, *a, **k: [read.append(kind.__name__), real(kind, *a, **k)][1],
    )
    for _ in range(3):
        assert pretrained.positions(str(model)) == 64
    assert read == ["AutoConfig"]
    change(model / "config.json", max_position_embeddings=99)
    assert pretrained.positions(str(model)) == 99


def test_what_runs_leave_passes_its_own_checks(model: Path, tmp_path: Path) -> None:
    settings = recipe(model, tmp_path) | {
        "data": {"source": "parity", "args": {"bits": 3}, "template": "raw"},
        "rollout": {"prompts_per_step": 1, "num_generations": 2, "max_completion_length": 4},
        "learner": {"max_steps": 1},
        "eval": {"num_tasks": 2, "num_samples": 1},
    }
    print_plan(from_dict(settings), Console(quiet=True))
    started = time.monotonic()
    train_recipe(from_dict(settings), Console(quiet=True))
    assert time.monotonic() - started < 60
    for folder in (tmp_path / "run").rglob("config.json"):
        pretrained.check_model(str(folder.parent))
    assert isinstance(RecipeError(""), GrpoError)
