"""What is taken of peft's settings, from an object or a file, and what is refused by its name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import save_file

from grpo.config.config import from_dict, load, resolved
from grpo.config.schema import Lora, Model, Recipe
from grpo.errors import GrpoError, RecipeError, UnknownSettingError
from grpo.model.adapter_config import CONFIG, DECIDED, FIELDS, HONORED, WEIGHTS, lora_of
from grpo.model.adapter_config import read_adapter as read
from grpo.stages.adapters import adapter_of
from grpo.stages.preflight.paths import check_paths
from grpo.types import LoraSpec

LAYERS = tuple(f"model.layers.{i}.self_attn.{n}_proj" for i in (0, 1) for n in "qv")
_ANY = {"a": 1}
# a value other than the default for each field that is refused
OTHER: dict[str, Any] = {
    "lora_dropout": 0.1,
    "task_type": "SEQ_CLS",
    "peft_type": "LOHA",
    "bias": "all",
    "modules_to_save": ["lm_head"],
    "trainable_token_indices": [1],
    "exclude_modules": ["q_proj"],
    "layers_to_transform": [0],
    "layers_pattern": "layers",
    "rank_pattern": {"q_proj": 2},
    "alpha_pattern": {"q_proj": 2},
    "init_lora_weights": "pissa",
    "target_parameters": ["experts.weight"],
    "lora_bias": True,
    "ensure_weight_tying": True,
    "layer_replication": [(0, 1)],
    "megatron_config": {"a": 1},
    "megatron_core": "other",
    "alora_invocation_tokens": [1],
    "use_bdlora": {"a": 1},
    "use_qalora": True,
    "qalora_group_size": 8,
    **dict.fromkeys(("loftq_config", "eva_config", "corda_config", "lora_ga_config"), _ANY),
    **dict.fromkeys(("arrow_config", "kasa_config", "monteclora_config", "velora_config"), _ANY),
}


def test_the_table_has_the_fields_of_peft_and_a_reason_for_each() -> None:
    fields = {field.name for field in dataclasses.fields(LoraConfig)}
    assert fields == FIELDS.keys()
    refused = {name for name, why in FIELDS.items() if why not in (HONORED, DECIDED)}
    assert refused == OTHER.keys()
    honored = {name for name, why in FIELDS.items() if why == HONORED}
    assert honored == {"r", "lora_alpha", "target_modules", "use_rslora", "use_dora"}


@pytest.mark.parametrize("name", OTHER)
def test_what_is_not_honored_is_refused_by_name(name: str) -> None:
    config = LoraConfig(target_modules=["q_proj"])
    setattr(config, name, OTHER[name])
    with pytest.raises(RecipeError, match=rf"^peft_config\.{name} = .* is not honored: \w+"):
        lora_of(config)


def test_a_config_becomes_the_mapping_of_a_recipe() -> None:
    config = LoraConfig(
        r=16,
        lora_alpha=8,
        target_modules=["v_proj", "q_proj"],
        use_rslora=True,
        task_type="CAUSAL_LM",
        base_model_name_or_path="somewhere",
    )
    found = lora_of(config)
    assert found == {
        "rank": 16,
        "alpha": 8,
        "target_modules": ["q_proj", "v_proj"],
        "use_rslora": True,
        "use_dora": False,
    }
    spec = adapter_of(Model(path="x", lora=Lora(**found)))
    assert spec is not None
    assert spec.scaling == 2.0
    assert lora_of(LoraConfig(target_modules="all-linear"))["target_modules"] == "all-linear"
    plain = LoraConfig()
    assert lora_of(plain, "llama") | {"alpha": 0} == {
        "rank": 8, "alpha": 0, "target_modules": ["q_proj", "v_proj"], "use_rslora": False,
        "use_dora": False,
    }  # fmt: skip
    for kind in (None, "of-nobody"):
        with pytest.raises(RecipeError, match=r"target_modules is not set"):
            lora_of(plain, kind)


def recipe(*settings: str) -> Recipe:
    return load("parity-r1-zero", settings)


def spec_of(*settings: str) -> LoraSpec | None:
    return adapter_of(recipe(*settings).stages[0].model)  # pyright: ignore


def test_a_recipe_says_it_in_one_mapping_and_keeps_it() -> None:
    assert spec_of() is None
    assert spec_of("model.lora.rank=4") == LoraSpec(rank=4)
    assert spec_of("model.lora={rank: 4, alpha: 12, target_modules: [q_proj]}") == LoraSpec(
        rank=4, alpha=12, target_modules=("q_proj",)
    )
    made = recipe("model.lora={rank: 4, use_dora: true}", "model.lora.target_modules='.*_proj'")
    assert from_dict(resolved(made)) == made
    assert adapter_of(made.stages[0].model) == LoraSpec(  # pyright: ignore
        rank=4, use_dora=True, target_modules=".*_proj"
    )
    assert spec_of("model.lora={rank: 4, alpha: 12}", "model.lora={}") is None


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("model.lora_rank=4", r"'lora_rank' in model\. Did you mean 'model\.lora\.rank'"),
        ("model.lora.r=4", r"unknown key 'r' in model\.lora\. Did you mean 'model\.lora\.rank'"),
        ("model.lora.lora_alpha=4", r"'lora_alpha' .*\. Did you mean 'model\.lora\.alpha'"),
        ("model.lora={rank: 4, use_dorra: true}", r"Did you mean 'use_dora'"),
        ("model.lora={rank: 4, dropout: 0.1}", r"model\.lora\.dropout = 0\.1: there is no dropout"),
        ("model.lora={rank: 4, lora_dropout: 0}", r"model\.lora\.lora_dropout = 0: there is no"),
        ("model.lora={alpha: 4}", r"model\.lora\.alpha does nothing without model\.lora\.rank"),
        ("model.lora={rank: 4, alpha: 0}", r"model\.lora\.alpha = 0 .*greater than 0"),
        ("model.lora={rank: 4, target_modules: []}", r"target_modules = \[\]; valid: all-linear"),
        ("model.lora={rank: 4, target_modules: 3}", r"target_modules = 3; valid: all-linear"),
        ("model.lora={rank: 4, target_modules: '(q'}", r"'\(q' is no regex: missing \)"),
        ("model.lora={adapter: 'stage:sft'}", r"'stage:sft' should be a folder.*merged in"),
        ("model={path: x, lora: {rank: 4, use_dora: true}, quantization: nf4}", r"norms of the"),
    ],
)  # fmt: skip
def test_mistakes_in_a_recipe_are_answered(setting: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said) as caught:
        recipe(setting)
    assert isinstance(caught.value, UnknownSettingError) == ("Did you mean" in said)


def folder(place: Path, layers: tuple[str, ...] = LAYERS, **changes: Any) -> str:
    """An adapter of rank 4 as peft writes one."""
    place.mkdir()
    LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj"]).save_pretrained(str(place))
    settings = json.loads((place / CONFIG).read_text()) | changes
    (place / CONFIG).write_text(json.dumps(settings))
    tensors = {f"base_model.model.{n}.lora_A.weight": torch.zeros(4, 8) for n in layers}
    tensors |= {f"base_model.model.{n}.lora_B.weight": torch.zeros(8, 4) for n in layers}
    save_file(tensors, place / WEIGHTS)
    return str(place)


def test_an_adapter_says_its_own_settings_and_others_contradict_it(tmp_path: Path) -> None:
    place = folder(tmp_path / "a", use_rslora=True, lora_dropout=0.3, base_model_name_or_path="b")
    found = read(place, "b")
    assert found == LoraSpec(
        rank=4, alpha=6, target_modules=found.target_modules, use_rslora=True, adapter=place
    )
    assert sorted(found.target_modules) == sorted(LAYERS)

    def given(**settings: Any) -> LoraSpec | None:
        return adapter_of(Model(path="b", lora=Lora(adapter=place, **settings)))

    assert given() == given(rank=4, alpha=6.0, use_rslora=True) == found
    assert given(target_modules=("q_proj", "v_proj")) == found
    assert given(target_modules=r".*\.[qv]_proj") == found
    with pytest.raises(RecipeError, match=r"model\.lora\.rank = 8 contradicts .*, where it is 4"):
        given(rank=8)
    with pytest.raises(RecipeError, match=r"use_dora = true contradicts .*, where it is false"):
        given(use_dora=True)
    for targets in ("q_proj",), ("q_proj", "v_proj", "k_proj"), r".*q_proj":
        with pytest.raises(
            RecipeError, match=r"target_modules contradicts .* is on q_proj, v_proj"
        ):
            given(target_modules=targets)
    with pytest.raises(RecipeError, match=r"is an adapter of 'b', and model\.path = 'c'; set"):
        read(place, "c")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "LOHA"}, r"peft_type = 'LOHA' is not honored: only LORA"),
        ({"bias": "all"}, r"bias = 'all' is not honored: biases stay"),
        ({"rank_pattern": {"q_proj": 2}}, r"rank_pattern = .* one rank"),
        ({"init_lora_weights": "pissa"}, r"init_lora_weights = 'pissa' is not honored"),
        ({"of_next_year": 3}, r"of_next_year = 3 is not honored: this field of peft is not known"),
        ({"r": 5}, r"has rank 4, and r = 5"),
        ({"r": "many"}, r"has r = 'many'"),
    ],
)
def test_an_adapter_that_cannot_be_gone_on_with_is_refused(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=said):
        read(folder(tmp_path / "a", **changes), "b")


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"has no adapter_config\.json; name the folder"):
        read(str(tmp_path), "b")
    place = folder(tmp_path / "a")
    weights = Path(place) / WEIGHTS
    whole = weights.read_bytes()
    weights.write_bytes(whole[:50])
    with pytest.raises(RecipeError, match=r"adapter_model\.safetensors is cut short or damaged"):
        read(place, "b")
    weights.unlink()
    with pytest.raises(RecipeError, match=r"has no adapter_model\.safetensors"):
        read(place, "b")
    save_file({"base_model.model.embed.lora_embedding_A": torch.zeros(4, 8)}, weights)
    with pytest.raises(RecipeError, match=r"holds '.*embedding_A': only the pairs A and B"):
        read(place, "b")
    (Path(place) / CONFIG).write_text("[]")
    with pytest.raises(RecipeError, match=r"is no configuration of a LoRA adapter"):
        read(place, "b")


def test_before_the_first_step(tmp_path: Path) -> None:
    def check(*settings: str) -> None:
        check_paths(recipe(*settings).stages[0], "")

    dora = "model.lora={rank: 4, use_dora: true}"
    check(dora)
    with pytest.raises(GrpoError, match=r"use_dora = true with rollout\.engine = 'vllm': vLLM ser"):
        check(dora, "rollout.engine=vllm")
    place = folder(tmp_path / "a", use_dora=True)
    check(f"model.lora.adapter={place}")
    with pytest.raises(GrpoError, match=r"vLLM serves no DoRA"):
        check(f"model.lora.adapter={place}", "rollout.engine=vllm")
    with pytest.raises(GrpoError, match=r"is a DoRA adapter, .*model\.quantization = 'nf4'"):
        check(f"model.lora.adapter={place}", "model.quantization=nf4")
    with pytest.raises(GrpoError, match=r"adapter = './none': there is no such file or folder"):
        check("model.lora.adapter=./none")
