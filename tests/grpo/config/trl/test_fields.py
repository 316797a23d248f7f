"""The table of TRL's fields: it has all of them, and what it says of each is what happens."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest

import grpo
from grpo.config.trl.convert import Facts, convert
from grpo.config.trl.grpo_fields import ELSEWHERE, FIELDS
from grpo.config.trl.settings import GRPOConfig
from grpo.errors import RecipeError

FACTS = Facts(num_rows=96, num_rewards=2, num_eval_rows=8)
# What makes a field count, where TRL reads it in some modes only.
CONTEXT: dict[str, dict[str, Any]] = {
    "logging_steps": {"eval_strategy": "steps"},
    "eval_steps": {"eval_strategy": "steps"},
    "num_generations_eval": {"eval_strategy": "steps"},
    "num_completions_to_print": {"log_completions": True},
    "vllm_mode": {"use_vllm": True},
    "vllm_enable_sleep_mode": {"use_vllm": True},
    "vllm_gpu_memory_utilization": {"use_vllm": True},
    "vllm_max_model_length": {"use_vllm": True},
    "vllm_tensor_parallel_size": {"use_vllm": True},
    "vllm_importance_sampling_correction": {"use_vllm": True},
    "vllm_importance_sampling_mode": {"use_vllm": True},
    "vllm_importance_sampling_clip_max": {"use_vllm": True},
    "vllm_importance_sampling_cap": {"use_vllm": True},
    "vllm_server_base_url": {"use_vllm": True, "vllm_mode": "server"},
    "vllm_server_host": {"use_vllm": True, "vllm_mode": "server"},
    "vllm_server_port": {"use_vllm": True, "vllm_mode": "server"},
    "vllm_server_timeout": {"use_vllm": True, "vllm_mode": "server"},
    "sapo_temperature_neg": {"loss_type": "sapo"},
    "sapo_temperature_pos": {"loss_type": "sapo"},
    "vespo_k_pos": {"loss_type": "vespo"},
    "vespo_lambda_pos": {"loss_type": "vespo"},
    "vespo_k_neg": {"loss_type": "vespo"},
    "vespo_lambda_neg": {"loss_type": "vespo"},
    "lr_scheduler_kwargs": {"lr_scheduler_type": "cosine"},
    "ref_model_sync_steps": {"sync_ref_model": True, "ref_model_mixup_alpha": 1.0, "beta": 0.1},
    "sync_ref_model": {"ref_model_mixup_alpha": 1.0, "beta": 0.1},
    "steps_per_generation": {"num_generations": 4},
}
# Values that are not the default, where adding one or turning round gives none that is valid.
VALUES: dict[str, Any] = {
    "output_dir": "out",
    "max_steps": 5,
    "lr_scheduler_type": "cosine",
    "lr_scheduler_kwargs": {"num_cycles": 1.0},
    "warmup_steps": 0.5,
    "optim": "paged_adamw_8bit",
    "gradient_accumulation_steps": 2,
    "steps_per_generation": 3,
    "generation_batch_size": 16,
    "per_device_train_batch_size": 16,
    "num_train_epochs": 2.0,
    "report_to": ["wandb"],
    "run_name": "mine",
    "eval_strategy": "steps",
    "save_strategy": "no",
    "num_generations": 4,
    "top_p": 0.9,
    "min_p": 0.05,
    "generation_kwargs": {"stop": ["\n"]},
    "chat_template_kwargs": {"enable_thinking": False},
    "vllm_mode": "server",
    "vllm_server_base_url": "http://10.0.0.1:80",
    "vllm_server_host": "10.0.0.1",
    "vllm_importance_sampling_mode": "token_mask",
    "importance_sampling_level": "sequence",
    "reward_weights": [1.0, 0.5],
    "multi_objective_aggregation": "normalize_then_sum",
    "scale_rewards": "batch",
    "loss_type": "dr_grpo",
    "eval_steps": 4,
    "activation_checkpointing": False,
    "vllm_importance_sampling_cap": 2.0,
    "save_steps": 100,
}
# They allow a value, and set nothing alone: `test_settings.py`.
ALLOWING = ("model_init_kwargs", "ref_model_mixup_alpha")


def other(name: str) -> Any:
    """A value of the field that is not its default."""
    field = FIELDS[name]
    if name in VALUES:
        return VALUES[name]
    default = field.default
    if isinstance(default, bool):
        return not default
    if isinstance(default, int | float):
        return default + 1 if field.kind == "whole number" else default / 2 + 0.25
    plain = {"mapping": {"a": 1}, "list": ["a"], "text": "other", "true or false": True}
    return plain.get(field.kind, 3)


def converted(**fields: Any) -> Any:
    return convert(GRPOConfig(**fields), FACTS)


def test_the_table_has_every_field_and_default_of_trl() -> None:
    trl = pytest.importorskip("trl")
    fields: Any = dataclasses.fields(trl.GRPOConfig)
    missing = dataclasses.MISSING
    theirs = {
        field.name: field.default if field.default is not missing else field.default_factory()
        for field in fields
    }
    ours = {name: field.default for name, field in FIELDS.items()}
    assert {k: (type(v), v) for k, v in ours.items() if k != "warmup_steps"} == {
        k: (type(v), v) for k, v in theirs.items() if k != "warmup_steps"
    }
    assert ours["warmup_steps"] == theirs["warmup_steps"]
    assert not ELSEWHERE.keys() & theirs.keys()


@pytest.mark.parametrize(
    "name", [n for n, f in FIELDS.items() if f.fate == "honored" and n not in ALLOWING]
)
def test_a_field_that_is_honored_changes_the_recipe(name: str) -> None:
    context = CONTEXT.get(name, {})
    before, after = converted(**context), converted(**context, **{name: other(name)})
    assert not before.refused
    assert not after.refused
    assert after.tree != before.tree
    sections = after.tree.keys() | before.tree.keys()
    changed = {s for s in sections if after.tree.get(s) != before.tree.get(s)}
    said = {setting.strip().partition(".")[0] for setting in FIELDS[name].setting.split(",")}
    assert changed & said


@pytest.mark.parametrize("name", [n for n, f in FIELDS.items() if f.fate == "ignored"])
def test_a_field_that_is_ignored_changes_nothing_and_is_named(name: str) -> None:
    before, after = converted(), converted(**{name: other(name)})
    assert after.tree == before.tree
    assert not after.refused
    assert [note for note in after.notes if note.startswith(f"{name} = ")]
    assert not before.notes


@pytest.mark.parametrize("name", [n for n, f in FIELDS.items() if f.fate == "refused"])
def test_a_field_that_is_refused_is_named_with_what_to_do(name: str) -> None:
    refused = converted(**{name: other(name)}).refused
    assert list(refused) == [name]
    assert refused[name].startswith(f"{name} = {other(name)!r}: ")
    for same in FIELDS[name].same:
        assert not converted(**{name: same}).refused


def test_all_that_is_refused_is_said_at_once() -> None:
    config = GRPOConfig(
        repetition_penalty=1.1,
        generation_kwargs={"num_beams": 4, "logit_bias": {1: 2.0}, "do_sample": True},
        model_init_kwargs={"dtype": "bfloat16"},
        deepspeed="zero3.json",
        num_generations=3,
    )
    refused = convert(config, FACTS).refused
    assert list(refused) == [
        "deepspeed",
        "repetition_penalty",
        "num_generations",
        "model_init_kwargs",
        "generation_kwargs",
    ]
    assert "beam search" in refused["generation_kwargs"]
    assert "logit_bias" in refused["generation_kwargs"]
    assert "do_sample:" not in refused["generation_kwargs"]
    assert "valid: 2, 4, 8" in refused["num_generations"]


def test_names_and_types_are_checked_where_they_are_written() -> None:
    for fields, message in (
        ({"learning_rat": 1e-5}, "Did you mean 'learning_rate'"),
        ({"learning_rate": "1e-5"}, "'1e-5' should be a number, without quotes"),
        ({"max_steps": True}, "max_steps = True should be a whole number"),
        ({"warmup_ratio": 0.1}, r"warmup_steps=0\.1"),
        ({"max_prompt_length": 512}, "cuts no prompts"),
        ({"bf16": "yes"}, "true or false or None"),
        ({"temperature": float("nan")}, "should be a number"),
    ):
        with pytest.raises(RecipeError, match=message):
            GRPOConfig(**fields)
    config = GRPOConfig()
    with pytest.raises(RecipeError, match="Did you mean 'max_steps'"):
        config.max_step = 3
    config.max_steps = 3
    assert repr(config) == "GRPOConfig(max_steps=3)"
    assert config != GRPOConfig()


def test_values_of_trls_own_types_are_taken(tmp_path: Any) -> None:
    from transformers import SchedulerType

    config = GRPOConfig(
        output_dir=tmp_path,
        lr_scheduler_type=SchedulerType.COSINE,
        scale_rewards=False,
        lr_scheduler_kwargs='{"num_cycles": 2}',
    )
    assert (config.output_dir, config.lr_scheduler_type) == (str(tmp_path), "cosine")
    assert (config.scale_rewards, config.lr_scheduler_kwargs) == ("none", {"num_cycles": 2})
    assert GRPOConfig(scale_rewards=True) == GRPOConfig()


def test_the_config_is_public_and_needs_neither_torch_nor_trl() -> None:
    assert grpo.GRPOConfig is GRPOConfig
    code = (
        "import sys, grpo; grpo.GRPOConfig(max_steps=3); import grpo.config.trl.convert;"
        "print(sorted({'torch', 'trl', 'transformers'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
