"""Settings that need less memory, each with a value that the stage accepts.

No value is smaller than what one row needs.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from grpo.model.compute_types import chosen, narrow

if TYPE_CHECKING:
    from pydantic import BaseModel

# The parts of a run that ask for memory, as a sentence names them.
LEARNING = "the learner's forward and backward pass"
SAMPLING = "the engine, for the rows it samples and their keys and values"
EVALUATING = "the engine in an evaluation, for its rows and their keys and values"
LOADING = "loading the model and making room for its training"
SAVING = "saving the model and reading it back"
SCORING = "a reward"
OTHER = "none of its larger parts"


def of_evaluation(stage: BaseModel, several: bool) -> list[str]:
    """Settings that make a held-out evaluation of `stage` smaller, as overrides."""
    prefix = f"{getattr(stage, 'name', '')}." if several else ""
    return [f"{prefix}{text}" for text in _valid(stage, _of_sampling(stage))]


def of_tasks(engine: str, engine_args: dict[str, Any], max_tokens: int, dtype: str) -> list[str]:
    """Options that make `grpo eval --tasks` smaller. max_tokens: 0 for the task's own length."""
    knob = {"torch": "max_rows", "vllm": "max_num_seqs"}.get(engine)
    found = [f"--engine-args {knob}={max(1, engine_args.get(knob, 256) // 2)}"] if knob else []
    found += [f"--max-tokens {max(1, (max_tokens or 2048) // 2)}"]
    return found + ([f"--dtype {narrow()}"] if chosen(dtype) == "float32" else [])


def cheaper(stage: BaseModel, part: str) -> Iterator[str]:
    """`setting=value (now …)` for each valid setting that makes `part` smaller, mildest first."""
    return _valid(stage, _candidates(stage, part))


def _valid(stage: BaseModel, candidates: Iterator[tuple[str, Any]]) -> Iterator[str]:
    for setting, value in candidates:
        now = _read(stage, setting)
        if value is not None and value != now and _accepts(stage, setting, value):
            was = "" if now is None else f" (now {_yaml(now)})"
            yield f"{setting}={_yaml(value)}{was}"


def _candidates(stage: BaseModel, part: str) -> Iterator[tuple[str, Any]]:
    if part in (LEARNING, OTHER):
        yield from _of_learning(stage)
    if part in (SAMPLING, EVALUATING, SCORING, OTHER):
        yield from _of_sampling(stage)
    yield from _of_weights(stage)
    if part in (LOADING, SAVING, SCORING):
        yield from _of_learning(stage)
        yield from _of_sampling(stage)


def _of_learning(stage: BaseModel) -> Iterator[tuple[str, Any]]:
    budget = _read(stage, "learner.tokens_per_micro_batch")
    if budget is not None:
        row = _read(stage, "data.max_prompt_length") + cast(Any, stage).rollout.longest_completion
        yield "learner.tokens_per_micro_batch", max(row, budget // 2)
        yield "learner.gradient_checkpointing", True
        yield "rollout.max_completion_length", _half(stage, "rollout.max_completion_length")
    if _read(stage, "learner.packing"):
        yield "learner.packing", False
    for setting in ("learner.max_length", "learner.batch_size"):
        yield setting, _half(stage, setting)
    yield "model.dtype", _narrower(_read(stage, "model.dtype"))


def _of_sampling(stage: BaseModel) -> Iterator[tuple[str, Any]]:
    where = "rollout." if _read(stage, "rollout.engine") is not None else ""
    engine, args = _read(stage, f"{where}engine"), _read(stage, f"{where}engine_args")
    knob = {"torch": "max_rows", "vllm": "max_num_seqs"}.get(engine or "")
    if knob:
        rows = (args or {}).get(knob, 256)
        group = _read(stage, "rollout.num_generations")
        if group is not None and _read(stage, "rollout.prompts_per_step"):
            rows = min(rows, group * _read(stage, "rollout.prompts_per_step"))
        yield f"{where}engine_args.{knob}", max(1, rows // 2)
    for length in ("rollout.max_completion_length", "max_completion_length"):
        yield length, _half(stage, length)
    yield "data.max_prompt_length", _half(stage, "data.max_prompt_length")
    engine_dtype = _read(stage, "rollout.dtype") or _read(stage, "model.dtype")
    yield "rollout.dtype", _narrower(engine_dtype)


def _of_weights(stage: BaseModel) -> Iterator[tuple[str, Any]]:
    rank = _read(stage, "model.lora_rank")
    yield "model.lora_rank", 16 if rank == 0 else None
    bytes4 = importlib.util.find_spec("bitsandbytes") is not None
    if rank == 0 and bytes4 and _read(stage, "learner.optim") == "adamw_torch":
        yield "learner.optim", "adamw_bnb_8bit"
    if rank and bytes4 and _read(stage, "model.quantization") == "none":
        yield "model.quantization", "nf4"
    if _read(stage, "algorithm.beta"):
        yield "algorithm.beta", 0.0
    yield "dtype", _narrower(_read(stage, "dtype"))


def _narrower(dtype: str | None) -> str | None:
    """A type of half the size in place of `dtype`; None where there is none."""
    return narrow() if dtype is not None and chosen(dtype) == "float32" else None


def _half(stage: BaseModel, setting: str) -> int | None:
    now = _read(stage, setting)
    return max(1, now // 2) if isinstance(now, int) else None


def _read(stage: BaseModel, setting: str) -> Any:
    """The value of a dotted setting; None where the stage has no such setting."""
    found: Any = stage
    for name in setting.split("."):
        found = found.get(name) if isinstance(found, dict) else getattr(found, name, None)
    return found


def _accepts(stage: BaseModel, setting: str, value: Any) -> bool:
    """Whether `stage` would be valid with this value."""
    from pydantic import ValidationError

    tree: dict[str, Any] = stage.model_dump()
    inner: Any = tree
    *path, leaf = setting.split(".")
    for name in path:
        inner = inner.get(name) if isinstance(inner, dict) else None
    if not isinstance(inner, dict) or (leaf not in inner and path[-1:] != ["engine_args"]):
        return False
    inner[leaf] = value
    try:
        type(stage).model_validate(tree)
    except ValidationError:
        return False
    return True


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
