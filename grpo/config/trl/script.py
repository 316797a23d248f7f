"""The arguments of `trl grpo` that are not `GRPOConfig`'s: the script's, the model's, the rows'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grpo.config.trl.field import (
    ANY,
    BOOL,
    DICT,
    INT,
    LIST,
    NUMBER,
    TEXT,
    Field,
    honored,
    ignored,
    refused,
)
from grpo.config.trl.parts import Found
from grpo.config.trl.settings import same

Tree = dict[str, Any]
_LORA = "with use_peft"
_WEIGHTS = "weights that are trained are float32; write bf16: true for products in bfloat16"

SCRIPT_FIELDS: dict[str, Field] = {
    # -- GRPOScriptArguments
    "reward_funcs": honored(None, LIST, "rewards", "TRL's own by address; others as package:name"),
    "reward_model_name_or_path": honored(None, TEXT, "rewards", "the reward `reward_model`"),
    "dataset_name": honored(None, TEXT, "data.args", "the source `hub`, which reads folders too"),
    "dataset_config": honored(None, TEXT, "data.args", "as its name"),
    "dataset_train_split": honored("train", TEXT, "data.args", "as its split"),
    "dataset_test_split": honored("test", TEXT, "data.args", "held out, with eval_strategy"),
    "dataset_streaming": refused(False, BOOL, "the rows are read whole; leave it out"),
    "ignore_bias_buffers": ignored(False, BOOL, "it is for DDP in old versions of torch"),
    # -- DatasetMixtureConfig
    "datasets": refused([], LIST, "write the source `mixture` into the recipe: docs/curriculum.md"),
    "streaming": refused(False, BOOL, "the rows are read whole; leave it out"),
    "test_split_size": refused(None, NUMBER, "write data.args.heldout_fraction into the recipe"),
    # -- ModelConfig
    "model_name_or_path": honored(None, TEXT, "model.path", "a folder or an id of the hub"),
    "model_revision": refused("main", TEXT, "download that revision, and name its folder"),
    "dtype": refused("float32", TEXT, _WEIGHTS, same=("auto", None)),
    "attn_implementation": ignored(None, TEXT, "attention is exact in any of them"),
    "use_peft": honored(False, BOOL, "model.lora", "an adapter on the linear layers"),
    "lora_r": honored(16, INT, "model.lora.rank", _LORA),
    "lora_alpha": honored(32, INT, "model.lora.alpha", _LORA),
    "lora_dropout": honored(
        0.05, NUMBER, "model.lora", "0.0 alone: dropout would train another policy than sampled"
    ),
    "lora_target_modules": honored(
        None, ANY, "model.lora.target_modules", "None: q_proj and v_proj, peft's for most families"
    ),
    "lora_target_parameters": refused(None, LIST, "adapters are on linear layers; leave it out"),
    "lora_modules_to_save": refused(None, LIST, "only the adapter is trained; leave it out"),
    "lora_task_type": refused("CAUSAL_LM", TEXT, "policies are causal models; leave it out"),
    "use_rslora": honored(False, BOOL, "model.lora.use_rslora", _LORA),
    "use_dora": honored(False, BOOL, "model.lora.use_dora", _LORA),
    "load_in_8bit": refused(False, BOOL, "write load_in_4bit: true, or leave it out"),
    "load_in_4bit": honored(False, BOOL, "model.quantization", "nf4, with use_peft"),
    "bnb_4bit_quant_type": refused("nf4", TEXT, "four bits are nf4 here; leave it out"),
    "use_bnb_nested_quant": refused(False, BOOL, "scales are not quantized again; leave it out"),
    "bnb_4bit_quant_storage": ignored(None, TEXT, "it is for FSDP and changes no number"),
    # -- TrlParser, and `accelerate launch`
    "env": refused(None, DICT, "set environment variables where you start the run"),
    "accelerate_config": refused(None, TEXT, "start the recipe with `accelerate launch`"),
    "num_processes": refused(None, INT, "write ray.learners, or start with `accelerate launch`"),
}

# `trl grpo`'s names -> entries of `rewards`.
REWARDS: dict[str, Tree] = {
    "accuracy_reward": {"name": "trl.rewards:accuracy_reward"},
    "reasoning_accuracy_reward": {"name": "trl.rewards:reasoning_accuracy_reward"},
    "think_format_reward": {"name": "trl.rewards:think_format_reward"},
    "get_soft_overlong_punishment": {
        "name": "soft_overlong",
        "args": {"max_length": 1280, "cache": 256},
    },
}


def value(given: Mapping[str, Any], name: str) -> Any:
    """A field as given, or TRL's default."""
    return given.get(name, SCRIPT_FIELDS[name].default)


def sections(given: Mapping[str, Any], evaluated: bool, found: Found) -> Tree:
    """`model`, `data` and `rewards`. given: checked values of the script's fields.

    evaluated: whether the test split is asked.
    """
    for name, field in SCRIPT_FIELDS.items():
        if name not in given or same(given[name], field.default):
            continue
        if field.fate == "refused" and given[name] not in field.same:
            found.refused.setdefault(name, f"{name} = {given[name]!r}: {field.why}")
        elif field.fate == "ignored":
            found.notes.append(f"{name} = {given[name]!r}: changes nothing here: {field.why}")
    return {
        "model": _model(given, found),
        "data": _data(given, evaluated, found),
        "rewards": _rewards(given, found),
    }


def _model(given: Mapping[str, Any], found: Found) -> Tree:
    tree: Tree = {"path": value(given, "model_name_or_path") or ""}
    if not tree["path"]:
        found.refused["model_name_or_path"] = "model_name_or_path is missing: a folder or a hub id"
    if not value(given, "use_peft"):
        if value(given, "load_in_4bit"):
            found.refused["load_in_4bit"] = (
                "load_in_4bit = True: weights in four bits are not trained themselves; write "
                "use_peft: true"
            )
        for name in given:
            if name.startswith("lora_") or name in ("use_rslora", "use_dora"):
                found.notes.append(f"{name} = {given[name]!r}: changes nothing without use_peft")
        return tree
    if dropout := value(given, "lora_dropout"):
        found.refused["lora_dropout"] = (
            f"lora_dropout = {dropout} (TRL's default is 0.05): with dropout the policy that "
            "learns is not the one that sampled; write lora_dropout: 0.0"
        )
    targets = value(given, "lora_target_modules")
    if targets is None:
        targets = ["q_proj", "v_proj"]
        found.notes.append(
            "lora_target_modules is peft's own choice for llama, mistral, qwen and gemma; write "
            "another family's names"
        )
    if isinstance(targets, list) and len(targets) == 1 and targets[0] == "all-linear":
        targets = "all-linear"
    tree["lora"] = {
        "rank": value(given, "lora_r"),
        "alpha": value(given, "lora_alpha"),
        "target_modules": targets,
        **{name: True for name in ("use_rslora", "use_dora") if value(given, name)},
    }
    if value(given, "load_in_4bit"):
        tree["quantization"] = "nf4"
    return tree


def _data(given: Mapping[str, Any], evaluated: bool, found: Found) -> Tree:
    name = value(given, "dataset_name")
    if name is None and not value(given, "datasets"):
        found.refused["dataset_name"] = (
            "dataset_name is missing: a data set of the hub, or a folder"
        )
    args: Tree = {"path": name or ""}
    if config := value(given, "dataset_config"):
        args["name"] = config
    args |= {"split": value(given, "dataset_train_split"), "answer": None}
    if evaluated:
        args["heldout_split"] = value(given, "dataset_test_split")
    else:
        args["heldout_fraction"] = 0.0
    found.notes.append(
        "data.template = chat takes prompts that are lists of messages; for prompts of plain "
        "text write raw"
    )
    return {"source": "hub", "args": args, "template": "chat"}


def _rewards(given: Mapping[str, Any], found: Found) -> list[Tree]:
    model = value(given, "reward_model_name_or_path")
    rewards: list[Tree] = [{"name": "reward_model", "args": {"path": model}}] if model else []
    for name in value(given, "reward_funcs") or []:
        module, _, function = str(name).rpartition(".")
        if name in REWARDS:
            rewards.append(dict(REWARDS[name]))
        elif module:
            rewards.append({"name": f"{module}:{function}"})
        else:
            found.refused["reward_funcs"] = (
                f"reward_funcs has {name!r}; valid: {', '.join(REWARDS)}, or a dotted path such "
                "as my_package.rewards.short"
            )
    if not rewards and "reward_funcs" not in found.refused:
        found.refused["reward_funcs"] = "reward_funcs is missing: a recipe needs a reward"
    return rewards
