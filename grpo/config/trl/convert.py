"""A recipe with the numbers of a `GRPOConfig`.

    tree, notes = to_recipe(GRPOConfig(max_steps=100), num_rows=1000, num_rewards=2)

The tree has every section that the config decides. Model, rows and rewards are the caller's.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from grpo.config.trl import parts
from grpo.config.trl.batches import Batches, batches_of
from grpo.config.trl.grpo_fields import FIELDS
from grpo.config.trl.parts import Found, changes
from grpo.config.trl.settings import GRPOConfig, same
from grpo.errors import RecipeError
from grpo.method.learning_rate import CURVES

Tree = dict[str, Any]
OPTIMIZERS = {
    "adamw_torch": "adamw_torch",
    "adamw_torch_fused": "adamw_torch",
    "adamw_bnb_8bit": "adamw_bnb_8bit",
    "adamw_8bit": "adamw_bnb_8bit",
    "paged_adamw": "paged_adamw_32bit",
    "paged_adamw_32bit": "paged_adamw_32bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}
TRACKERS = ("tensorboard", "wandb", "trackio")
NO_MODEL_KWARGS = ("attn_implementation", "use_cache", "low_cpu_mem_usage")  # change no number
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # of a recipe
ROW = 16_384  # tokens of a micro-batch, unless a row is longer


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a config does not say itself.

    num_rows: of the training data, None: not known; num_eval_rows: of the evaluation data;
    longest_prompt: tokens; num_processes: learner ranks.
    """

    num_rows: int | None
    num_rewards: int
    num_eval_rows: int = 0
    longest_prompt: int | None = None
    num_processes: int = 1


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """The sections of a recipe, sentences on what changes nothing, field -> why it is refused."""

    tree: Tree
    notes: tuple[str, ...]
    refused: dict[str, str]


def to_recipe(
    config: GRPOConfig,
    *,
    num_rows: int | None,
    num_rewards: int,
    num_eval_rows: int = 0,
    longest_prompt: int | None = None,
    num_processes: int = 1,
) -> tuple[Tree, list[str]]:
    """The sections of an rl recipe with `run`, and what was ignored, a sentence each.

    The arguments are those of `Facts`. Raises RecipeError with a sentence for each field that
    cannot be honored.
    """
    facts = Facts(
        num_rows=num_rows,
        num_rewards=num_rewards,
        num_eval_rows=num_eval_rows,
        longest_prompt=longest_prompt,
        num_processes=num_processes,
    )
    made = convert(config, facts)
    if made.refused:
        raise RecipeError("; ".join(made.refused.values()))
    return made.tree, list(made.notes)


def convert(config: GRPOConfig, facts: Facts) -> Conversion:
    """The same with what is refused as data."""
    found = Found()
    for name, field in FIELDS.items():
        if not changes(config, name):
            continue
        value = getattr(config, name)
        if field.fate == "refused" and not any(same(value, one) for one in field.same):
            found.refuse(config, name, field.why)
        elif field.fate == "ignored":
            found.note(config, name, f"changes nothing here: {field.why}")
    try:
        batches = batches_of(config, num_rows=facts.num_rows, num_processes=facts.num_processes)
    except RecipeError as error:
        found.refused.setdefault(str(error).partition(" ")[0], str(error))
        # the other fields are looked at all the same
        batches = Batches(prompts=1, minibatches=1, updates=1, per_epoch=1, optimizer_steps=1)
    tree: Tree = {
        "run": _run(config, batches, found),
        "model": _model(config, found),
        "data": _data(config, facts),
        "rollout": parts.rollout(config, batches, found),
        "algorithm": parts.algorithm(config, batches, found),
        "learner": _learner(config, batches, facts, found),
        "eval": _eval(config, batches, facts, found),
    }
    tree |= _rewards(config, facts, found)
    if config.run_name:
        tree["name"] = config.run_name
        if not NAME.fullmatch(config.run_name):
            found.refuse(config, "run_name", "letters, digits, dots, _ and -, say parity-1")
    _say_what_epochs_drop(batches, facts, found)
    if config.max_steps > 0 and changes(config, "num_train_epochs"):
        found.note(config, "num_train_epochs", "max_steps says how long the run is")
    if changes(config, "logging_steps") and config.eval_strategy != "steps":
        found.note(config, "logging_steps", "metrics.jsonl has every step")
    tree = {name: section for name, section in tree.items() if section}
    return Conversion(tree=tree, notes=tuple(found.notes), refused=found.refused)


def _say_what_epochs_drop(batches: Batches, facts: Facts, found: Found) -> None:
    left = (facts.num_rows or 0) % batches.prompts
    if left and batches.per_epoch and batches.rollout_steps > batches.per_epoch:
        found.notes.append(
            f"TRL leaves the last {left} rows of each epoch out, a short batch; here they are "
            "drawn, and the next epoch begins within a batch"
        )


def _run(config: GRPOConfig, batches: Batches, found: Found) -> Tree:
    tree: Tree = {
        "seed": config.seed,
        "save_steps": _save_steps(config, batches, found),
        "save_total_limit": config.save_total_limit or 0,
        "num_samples_logged": 0,
    }
    if config.output_dir:
        tree["dir"] = config.output_dir
    if config.log_completions:
        shown = config.num_completions_to_print
        tree["num_samples_logged"] = batches.prompts if shown is None else shown
    elif changes(config, "num_completions_to_print"):
        found.note(config, "num_completions_to_print", "changes nothing without log_completions")
    named = config.report_to
    names = [named] if isinstance(named, str) else list(named or [])
    names = [name for name in names if name != "none"]
    if unknown := [name for name in names if name not in TRACKERS]:
        why = f"there is no tracker {unknown[0]!r} here; valid: {', '.join(TRACKERS)}, none"
        found.refuse(config, "report_to", why)
    elif names:
        tree["trackers"] = names
    return tree


def _save_steps(config: GRPOConfig, batches: Batches, found: Found) -> int:
    """Rollout batches between checkpoints; 0: the last only."""
    match config.save_strategy:
        case "no":
            return 0
        case "epoch":
            return _per_epoch(config, "save_strategy", batches, found)
        case "steps":
            return _in_batches(config, "save_steps", config.save_steps, batches, found)
        case "best":
            why = "set eval.keep_best in the recipe; valid here: no, steps, epoch"
        case _:
            why = "valid: no, steps, epoch"
    found.refuse(config, "save_strategy", why)
    return 0


def _per_epoch(config: GRPOConfig, name: str, batches: Batches, found: Found) -> int:
    if not batches.per_epoch:
        found.refuse(config, name, "needs the number of rows, which is not known; count in steps")
    return batches.per_epoch


def _in_batches(config: GRPOConfig, name: str, steps: float, batches: Batches, found: Found) -> int:
    """Optimizer steps as rollout batches, rounded up with a note."""
    if steps <= 0:
        found.refuse(config, name, "a number of optimizer steps, or a share of the run below 1")
        return 1
    if steps >= 1 and steps % batches.updates:
        found.note(
            config,
            name,
            f"a rollout batch has {batches.updates} optimizer steps, so it happens every "
            f"{batches.steps(steps)} batches",
        )
    return batches.steps(steps)


def _model(config: GRPOConfig, found: Found) -> Tree:
    given = dict(config.model_init_kwargs or {})
    for name, value in given.items():
        if name == "dtype" and str(value).removeprefix("torch.") in ("float32", "auto"):
            continue
        if name == "dtype":
            why = "weights that are trained are float32; set bf16=True for bfloat16 products"
            found.refuse(config, "model_init_kwargs", f"dtype: {why}")
        elif name in NO_MODEL_KWARGS:
            found.notes.append(f"model_init_kwargs: {name} changes nothing here")
        elif value is not None and not (name == "trust_remote_code" and value is False):
            why = f"{name} is not taken; load the model yourself and give the object"
            found.refuse(config, "model_init_kwargs", why)
    if config.fp16 and config.bf16:
        found.refuse(config, "fp16", "bf16 is set too; give one of them")
    if config.use_cpu:
        found.note(
            config,
            "use_cpu",
            "on a machine with a GPU, set ACCELERATE_USE_CPU=1 before the process starts",
        )
    if config.fp16:
        return {"dtype": "float16"}
    if config.bf16 is None:  # True in TRL, which refuses a CPU then unless use_cpu is set
        return {"dtype": "bfloat16" if config.use_cpu else "auto"}
    return {"dtype": "bfloat16" if config.bf16 else "float32"}


def _data(config: GRPOConfig, facts: Facts) -> Tree:
    """TRL never cuts or drops a prompt."""
    tree: Tree = {"overlong": "error"}
    if facts.longest_prompt:
        tree["max_prompt_length"] = facts.longest_prompt
    if config.chat_template_kwargs:
        tree["template_args"] = {"chat_template_kwargs": dict(config.chat_template_kwargs)}
    return tree


def _learner(config: GRPOConfig, batches: Batches, facts: Facts, found: Found) -> Tree:
    checkpointing = config.activation_checkpointing
    if checkpointing is None:
        checkpointing = config.gradient_checkpointing
    tree: Tree = {
        "max_steps": batches.rollout_steps,
        "learning_rate": config.learning_rate,
        "optim": OPTIMIZERS.get(config.optim, "adamw_torch"),
        "weight_decay": config.weight_decay,
        "adam_betas": [config.adam_beta1, config.adam_beta2],
        "max_grad_norm": config.max_grad_norm,
        "gradient_checkpointing": checkpointing,
        **_schedule(config, batches, found),
    }
    if config.optim not in OPTIMIZERS:
        found.refuse(config, "optim", f"valid: {', '.join(OPTIMIZERS)}")
    longest = (facts.longest_prompt or 0) + config.max_completion_length
    if longest > ROW:
        tree["tokens_per_micro_batch"] = longest
    return tree


def _schedule(config: GRPOConfig, batches: Batches, found: Found) -> Tree:
    """The learning rate of each optimizer step, as transformers' scheduler gives it."""
    kind, given, warmup = config.lr_scheduler_type, config.lr_scheduler_kwargs, config.warmup_steps
    if kind == "constant_with_warmup":
        kind = "constant"
    elif kind == "constant" and warmup:
        found.note(config, "warmup_steps", "'constant' has none in transformers")
        warmup = 0
    if kind not in CURVES:
        valid = ", ".join([*CURVES, "constant_with_warmup"])
        found.refuse(config, "lr_scheduler_type", f"valid: {valid}")
        kind, given = "constant", None
    if given is not None and not isinstance(given, dict):
        found.refuse(config, "lr_scheduler_kwargs", "it should be a mapping")
        given = None
    steps = batches.optimizer_steps
    warmup = int(warmup) if warmup >= 1 else math.ceil(steps * warmup)
    if warmup > steps or warmup < 0:
        found.refuse(config, "warmup_steps", f"the run has {steps} optimizer steps")
    return {
        "lr_scheduler_type": kind,
        "lr_scheduler_kwargs": dict(given or {}),
        "lr_scheduler_step": "optimizer",
        "warmup_steps": warmup,
    }


def _eval(config: GRPOConfig, batches: Batches, facts: Facts, found: Found) -> Tree:
    """No evaluation unless `eval_strategy` or `eval_on_start` asks for one."""
    strategy, every = config.eval_strategy, config.eval_steps
    if strategy not in ("no", "steps", "epoch"):
        found.refuse(config, "eval_strategy", "valid: no, steps, epoch")
    if strategy == "no" and not config.eval_on_start:
        for name in ("eval_steps", "num_generations_eval"):
            if changes(config, name):
                found.note(config, name, "changes nothing without eval_strategy")
        return {"num_tasks": 0}
    if not facts.num_eval_rows:
        name = "eval_strategy" if strategy != "no" else "eval_on_start"
        found.refuse(config, name, "there are no evaluation rows; give eval_dataset")
    steps = 0
    if strategy == "epoch":
        steps = _per_epoch(config, "eval_strategy", batches, found)
    elif strategy == "steps":
        name = "eval_steps" if every else "logging_steps"
        steps = _in_batches(config, name, every or config.logging_steps, batches, found)
    for name in ("top_p", "top_k", "min_p"):
        if changes(config, name):
            found.note(config, name, "held-out completions are sampled from the whole distribution")
    return {
        "num_tasks": max(1, facts.num_eval_rows),
        "num_samples": config.num_generations_eval or config.num_generations,
        "temperature": config.temperature,
        "steps": steps,
        "before": config.eval_on_start,
    }


def _rewards(config: GRPOConfig, facts: Facts, found: Found) -> Tree:
    weights = config.reward_weights
    if weights is None:
        return {}
    if len(weights) != facts.num_rewards:
        why = f"{len(weights)} weights for {facts.num_rewards} rewards; give one for each"
        found.refuse(config, "reward_weights", why)
    return {"rewards": [{"weight": float(weight)} for weight in weights]}
