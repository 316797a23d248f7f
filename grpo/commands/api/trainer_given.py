"""What `GRPOTrainer` is given: checked, and as `grpo.train` takes it."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, cast

from grpo.commands.api.given import is_model, name_of
from grpo.commands.api.run import Run
from grpo.config.locate import local
from grpo.config.trl.settings import GRPOConfig
from grpo.errors import DataError, RecipeError, RunError
from grpo.model import pretrained
from grpo.rundir import checkpoint

_AGENTS = "completions have one turn; use TRL for agents, or write a rollout plug-in (docs/vllm.md)"
# Parameters of the constructor that are there and cannot be honored -> what to do.
REFUSED = {
    "tools": _AGENTS,
    "rollout_func": _AGENTS,
    "environment_factory": _AGENTS,
    "quantization_config": "for QLoRA use grpo.train with **{'model.quantization': 'nf4'}",
}


def check(given: Mapping[str, Any], optimizers: tuple[Any, Any], args: Any) -> None:
    """Refuse by name what cannot be honored. Raises RecipeError."""
    for name, value in given.items():
        if value:
            raise RecipeError(f"GRPOTrainer: {name} is not honored: {REFUSED[name]}")
    if any(one is not None for one in optimizers):
        raise RecipeError(
            "GRPOTrainer: optimizers is not honored: the learner makes its own; set "
            "args.optim, args.learning_rate and args.lr_scheduler_type"
        )
    if args is not None and not isinstance(args, GRPOConfig):
        raise RecipeError(
            f"GRPOTrainer: args is a {type(args).__module__}.{type(args).__name__}; make it with "
            "grpo.GRPOConfig, which has the same fields: from grpo import GRPOConfig, GRPOTrainer"
        )


def path_and_model(model: Any) -> tuple[str, Any]:
    """(the path or id, the model in memory or None). Raises RecipeError."""
    if isinstance(model, str | os.PathLike):
        return local(os.fspath(cast("str | os.PathLike[str]", model))), None
    if any(kind.__module__.startswith("peft.") for kind in type(model).__mro__):
        raise RecipeError(
            "GRPOTrainer: model is a PeftModel; give the base model and peft_config, or "
            "model.merge_and_unload() to train all weights"
        )
    if not is_model(model):
        raise RecipeError(
            f"GRPOTrainer: model is of type {type(model).__name__}; valid: a folder, a hub id, or "
            "a transformers.PreTrainedModel"
        )
    return str(getattr(model, "name_or_path", "") or ""), model


def rows_of(dataset: Any, what: str) -> Any:
    """A data set that has a length. Raises DataError, which names it."""
    if dataset is None:
        raise DataError(f"{what} = None: give rows with a column 'prompt'")
    if isinstance(dataset, Mapping):
        raise DataError(
            f"{what} is a mapping of data sets ({', '.join(map(str, cast(Any, dataset)))}); give "
            "one of them"
        )
    if not hasattr(dataset, "__len__"):
        raise DataError(
            f"{what} is a stream of type {type(dataset).__name__}, and rows are drawn in random "
            "order; give list(dataset.take(n)), or a data set that is not streamed"
        )
    return dataset


def taken_out(train: Any, held: Any) -> list[str]:
    """A sentence on the training rows whose prompt is held out too, which are not trained on."""
    asked = {_text(row) for row in held}
    found = sum(_text(row) in asked for row in train)
    said = f"{found} of {len(train)} rows of train_dataset have a prompt of eval_dataset and are "
    return [f"{said}left out of training, where TRL trains on them"] if found else []


def _text(row: Any) -> str:
    """A prompt as `grpo.data.table` compares it."""
    prompt = row.get("prompt") if isinstance(row, Mapping) else row
    return " ".join(str(prompt).split())


def listed(rewards: Any) -> list[Any]:
    if rewards is None:
        return []
    return list(cast("Sequence[Any]", rewards)) if isinstance(rewards, list) else [rewards]


def reward_entries(rewards: Sequence[Any], tokenizers: Any) -> list[dict[str, Any]]:
    """Entries of `rewards`, each with TRL's name of its metrics. Raises RecipeError."""
    if not rewards:
        raise RecipeError("GRPOTrainer: reward_funcs is empty; give a function or a reward model")
    own = listed(tokenizers) or [None] * len(rewards)
    if len(own) != len(rewards):
        raise RecipeError(
            f"GRPOTrainer: reward_processing_classes has {len(own)} tokenizers for {len(rewards)} "
            "reward_funcs; give one for each, None for a function"
        )
    entries = [_entry(*pair) for pair in zip(rewards, own, strict=True)]
    for index, entry in enumerate(entries):
        taken = [one["label"] for one in entries[:index]]
        label, number = entry["label"], 2
        while entry["label"] in taken:
            entry["label"], number = f"{label}_{number}", number + 1
    return entries


def _entry(reward: Any, tokenizer: Any) -> dict[str, Any]:
    """A reward with TRL's name as its label. Raises RecipeError."""
    if isinstance(reward, str):
        label = reward.rstrip("/").split("/")[-1]
        if tokenizer is None:
            return {"name": "reward_model", "args": {"path": reward}, "label": label}
        loaded = pretrained.load_model(reward, kind=pretrained.CLASSIFIER)
        return {"name": (loaded, tokenizer), "label": label}
    reward = getattr(reward, "_orig_mod", reward)  # of a compiled model
    if is_model(reward):
        path = str(reward.config._name_or_path)
        label = path.rstrip("/").split("/")[-1] or "reward_model"
        return {"name": reward if tokenizer is None else (reward, tokenizer), "label": label}
    if not callable(reward):
        raise RecipeError(
            f"GRPOTrainer: reward_funcs has a {type(reward).__name__}; valid: a function, a "
            "sequence-classification model, or the id of one"
        )
    return {"name": reward, "label": name_of(reward)}


def with_state(reward: Any, state: Any) -> Any:
    """A function whose `trainer_state` is the trainer's own; anything else as it is."""
    if isinstance(reward, str | tuple) or is_model(reward):
        return reward

    @functools.wraps(reward)
    def called(**columns: Any) -> Any:
        if "trainer_state" in columns:
            columns["trainer_state"] = state
        return reward(**columns)

    called.__name__ = name_of(reward)
    return called


def longest(tokenizer: Any, rows: Sequence[Mapping[str, Any]], args: GRPOConfig) -> int:
    """Tokens of the longest prompt; 1 where no row has one, which is refused later."""
    prompts = [row["prompt"] for row in rows if row.get("prompt")]
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]] if texts else []
    more = args.chat_template_kwargs or {}
    for prompt in (prompt for prompt in prompts if not isinstance(prompt, str)):
        ids = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=True, return_dict=True, **more
        )
        lengths.append(len(ids["input_ids"]))
    return max(lengths, default=1)


def check_same(run: Run, settings: Mapping[str, Any]) -> None:
    """Refuse to go on with a run under other settings than it has. Raises RunError.

    settings: the sections of a recipe, as `to_recipe` makes them of `args`.
    """
    stage = run.stage_of("rl")
    for section in ("algorithm", "rollout", "learner", "eval"):
        before = getattr(stage, section)
        now = type(before).model_validate_json(json.dumps(settings[section]))
        old, new = (one.model_dump(mode="json") for one in (before, now))
        for name, value in old.items():
            if new[name] != value:
                raise RunError(
                    f"args give {section}.{name} = {new[name]!r:.60}, and the run in "
                    f"{str(run.folder)!r} was started with {value!r:.60}: a run goes on with the "
                    "settings it has; put it back, or train from its model in another output_dir"
                )


def check_newest(run: Run, folder: str) -> None:
    """Refuse a checkpoint that is not the newest one of a run. Raises RunError."""
    steps = checkpoint.steps(run.place(run.stage_of("rl")))
    name = os.path.basename(os.path.abspath(folder))
    if steps and name.startswith("step_") and name != f"step_{steps[-1]:06d}":
        raise RunError(
            f"resume_from_checkpoint = {folder!r} is not the newest checkpoint of the run, which "
            f"is that of step {steps[-1]}, and a run goes on from its newest; give True, or remove "
            "the later ones"
        )
