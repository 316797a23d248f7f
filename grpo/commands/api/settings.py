"""Keywords of a call, as the sections of a stage of a recipe.

learning_rate=1e-5                  the only setting of that name: learner.learning_rate
eval={"steps": 10}                  a section
**{"eval.steps": 10}                a dotted name
temperature=0.7                     of several settings of that name the usual one (`USUAL`)
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, cast

from grpo.config.config import section_types
from grpo.config.schema import STAGES, Ray, Run
from grpo.errors import RecipeError, did_you_mean
from grpo.errors.sampling_settings import REASONS

Tree = dict[str, Any]
# Of names that several settings of a stage share: the one that a keyword alone means.
USUAL = {
    "temperature": "rollout.temperature",
    "top_p": "rollout.top_p",
    "dtype": "model.dtype",
    "engine": "rollout.engine",
    "seed": "run.seed",
    "chat_template": "data.chat_template",
    "template": "data.template",
    "num_samples": "eval.num_samples",
    "num_tasks": "eval.num_tasks",
}
_SHARED = {"run": Run, "ray": Ray}
_EVERY_STEP = "leave it out, every step is in run.metrics"
_DTYPE = "dtype='bfloat16', 'float16' or 'float32'"
# Names of TRL's trainer that are no settings here -> what is.
TRL = {
    "train_dataset": "dataset=",
    "reward_funcs": "rewards=",
    "processing_class": "tokenizer=",
    "peft_config": "model={'lora': {'rank': 16, 'alpha': 32}}",
    "output_dir": "dir=",
    "run_name": "name=",
    "per_device_train_batch_size": "prompts_per_step=, whole groups of num_generations completions",
    "generation_batch_size": "prompts_per_step=, times num_generations the completions of a step",
    "gradient_accumulation_steps": "tokens_per_micro_batch=, which bounds memory as it does",
    "steps_per_generation": "num_minibatches=, the optimizer steps of one batch of completions",
    "num_train_epochs": "max_steps=, each of prompts_per_step prompts",
    "per_device_eval_batch_size": "leave it out, evaluation samples as training does",
    "eval_strategy": "eval={'steps': 10}",
    "eval_steps": "eval={'steps': 10}",
    "save_strategy": "save_steps=",
    "logging_steps": _EVERY_STEP,
    "logging_strategy": _EVERY_STEP,
    "report_to": "trackers=",
    "use_vllm": "engine='vllm'",
    "vllm_importance_sampling_correction": "sampling_correction=",
    "bf16": _DTYPE,
    "fp16": _DTYPE,
    "warmup_ratio": "warmup_steps=, which counts steps",
    "scale_rewards": "advantage=, which names how rewards become advantages",
    "log_completions": "leave it out, run.completions(step) has all of them",
}


def merged(kind: str, tree: Tree, keywords: Mapping[str, Any]) -> Tree:
    """`tree` of one stage of `kind`, with the keywords in it; `run` and `ray` are sections too.

    Raises RecipeError for a keyword that is no setting, names several, or has a value of a type
    that no setting has, and for a setting that two keywords give different values.
    """
    names = known(kind)
    given: dict[str, tuple[str, Any]] = {}
    for keyword, value in keywords.items():
        place = _place(kind, keyword, value, names)
        if place in _SHARED and not isinstance(value, Mapping):
            raise RecipeError(f"{place} = {value!r:.60}: it should be a dict of settings")
        found = plain(place, value)
        for name, leaf in _leaves(place, found):
            before, other = given.setdefault(name, (keyword, leaf))
            if before != keyword and other != leaf:
                raise RecipeError(
                    f"{name} is given twice, as {other!r:.40} by {before!r} and as {leaf!r:.40} "
                    f"by {keyword!r}; leave one of them out"
                )
        _put(tree, place.split("."), found, keyword)
    return tree


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The settings in `value`, each by its dotted name."""
    if not isinstance(value, dict) or name.endswith("args"):
        yield name, value
        return
    for key, inner in cast(Tree, value).items():
        yield from _leaves(f"{name}.{key}", inner)


def known(kind: str) -> list[str]:
    """The dotted names of all settings of a stage of `kind`, those of `run` and `ray` included."""
    shared = [f"{head}.{name}" for head, model in _SHARED.items() for name in section_types(model)]
    return [*section_types(STAGES[kind]), *shared]


def _place(kind: str, keyword: str, value: Any, names: list[str]) -> str:
    """The dotted name that a keyword means."""
    sections = {*STAGES[kind].model_fields, *_SHARED}
    if keyword in sections or keyword.partition(".")[0] in sections:
        return keyword
    same = [name for name in names if name.rpartition(".")[2] == keyword]
    if keyword in USUAL and USUAL[keyword] in same:
        return USUAL[keyword]
    if len(same) == 1:
        return same[0]
    if same:
        ways = " or ".join(_written(name, value) for name in same)
        raise RecipeError(f"{keyword!r} is the name of several settings: write {ways}")
    if keyword in REASONS:
        raise RecipeError(f"there is no setting {keyword!r}: {REASONS[keyword]}")
    if keyword in TRL:
        raise RecipeError(f"{keyword!r} is a name of TRL's; here: {TRL[keyword]}")
    leaves = {name.rpartition(".")[2] for name in names}
    hint = did_you_mean(keyword, sorted({*leaves, *names, *sections}))
    raise RecipeError(
        f"there is no setting {keyword!r}.{hint} Settings: a recipe's own names, alone "
        "(learning_rate=1e-5) or in their section (learner={'learning_rate': 1e-5})"
    )


def _written(name: str, value: Any) -> str:
    section, _, leaf = name.partition(".")
    return f"{section}={{{leaf!r}: {value!r:.20}}}"


def _put(tree: Tree, parts: list[str], value: Any, keyword: str) -> None:
    """Set a value in place; a mapping for a section leaves the section's other settings."""
    node = tree
    for part in parts[:-1]:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise RecipeError(f"{keyword!r}: {part} is one value and has no settings in it")
    last = parts[-1]
    if isinstance(value, dict) and isinstance(node.get(last), dict) and not last.endswith("args"):
        for key, inner in cast(Tree, value).items():
            _put(node, [last, *str(key).split(".")], inner, keyword)
    else:
        node[last] = value


def plain(name: str, value: Any) -> Any:
    """`value` as a recipe has it: numbers, texts, lists and mappings. Raises RecipeError."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(cast("os.PathLike[str]", value))
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        return {str(key): plain(f"{name}.{key}", inner) for key, inner in items}
    if isinstance(value, list | tuple):
        return [plain(f"{name}.{i}", inner) for i, inner in enumerate(cast("list[Any]", value))]
    kind = cast("type[Any]", type(value))
    if kind.__module__ == "numpy" and hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        return plain(name, value.item())
    if kind.__module__ == "torch" and kind.__name__ == "dtype":
        return str(value).removeprefix("torch.")
    raise RecipeError(
        f"{name} = {value!r:.60} is of type {kind.__name__}, and a setting is a number, a text, "
        "true or false, or a list or dict of those"
    )
