"""Out of memory: how much was asked for, by which part, and which settings need less.

torch raises its own error on accelerators and a RuntimeError on a CPU. Python, NumPy, the kernel
and vLLM each word it differently. The part is read off the traceback. A setting is named only with
a value that the stage would accept, none smaller than a row needs. Nothing here imports torch.
"""

from __future__ import annotations

import errno
import importlib.util
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from grpo.errors import EngineError, GrpoError, MemoryShortage
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

_SAYS_SO = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|not enough memory|bad_alloc"
    r"|ALLOC_FAILED|unable to allocate|no available memory for the cache blocks"
    r"|less than desired gpu memory utilization|larger than the available kv cache memory",
    re.IGNORECASE,
)
_ASKED = re.compile(r"(?:tried|unable) to allocate ([\d.]+) ?(bytes|[KMGT]i?B)", re.IGNORECASE)
_UNITS = {"b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}

# (module, function) that a traceback goes through -> the part. "" stands for any function. The
# first entry that matches a frame counts, and the innermost frame that has one.
_PARTS: dict[tuple[str, str], str] = {
    ("grpo.learner.learner", "__init__"): LOADING,
    ("grpo.learner.saved", ""): SAVING,
    ("grpo.learner.state", ""): SAVING,
    ("grpo.learner.learner", ""): LEARNING,
    ("grpo.learner.policy", "load_policy"): LOADING,
    ("grpo.learner.policy", "load_with_adapter"): LOADING,
    ("grpo.model.quantize", "quantize_base"): LOADING,
    ("grpo.stages.sft_trainer", ""): LEARNING,
    ("grpo.stages.sft", "_policy"): LOADING,
    ("grpo.model.pretrained", ""): LOADING,
    ("grpo.stages.sft", "fine_tune"): LEARNING,
    ("grpo.stages.slm", ""): LEARNING,
    ("grpo.stages.pretrain", ""): LEARNING,
    ("grpo.rollout", "from_spec"): LOADING,
    ("grpo.rollout", ""): SAMPLING,
    ("grpo.commands.chat", "load"): LOADING,
    ("grpo.commands.chat", ""): SAMPLING,
    ("grpo.rewards", ""): SCORING,
}
_EVALUATIONS = (
    "grpo.commands.eval_tasks",
    "grpo.commands.eval_recipe",
    "grpo.evaluation.heldout",
    "grpo.evaluation.tally",
    "grpo.stages.eval",
)


@contextmanager
def explained(stage: BaseModel, folder: Path, *, several: bool) -> Iterator[None]:
    """Turn a lack of memory into a MemoryShortage that names settings of `stage` that need less.

    folder: where the stage writes; several: whether it is one of several stages of a run.
    """
    name = getattr(stage, "name", "")
    prefix = f"{name}." if several else ""

    def sentence(error: Exception) -> str:
        part = part_of(error)
        less = [f"{prefix}{text}" for text in cheaper(stage, part)]
        return f"stage {name}: {said(error, part)}{_list(less)}{_afterwards(folder, prefix)}."

    with _explained(sentence):
        yield


@contextmanager
def explained_by(*less: str) -> Iterator[None]:
    """The same for a command. less: its options, or the settings it reads, that need less."""
    with _explained(lambda error: f"{said(error, part_of(error))}{_list(less)}."):
        yield


@contextmanager
def _explained(sentence: Callable[[Exception], str]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not is_shortage(error):
            raise
        raise MemoryShortage(sentence(error)) from error


def is_shortage(error: BaseException | None) -> bool:
    """Whether `error`, or what it was raised from, is a lack of memory."""
    for one in _chain(error):
        if isinstance(one, MemoryShortage):
            return False  # it is explained already
        if isinstance(one, MemoryError) or type(one).__name__ == "OutOfMemoryError":
            return True
        if isinstance(one, OSError) and one.errno == errno.ENOMEM:
            return True
        ours = isinstance(one, GrpoError) and not isinstance(one, EngineError)
        says = isinstance(one, RuntimeError | ValueError) and not ours
        if says and _SAYS_SO.search(str(one)):
            return True
    return False


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it was raised from, and so on; each once, since a chain can be a circle."""
    seen: list[BaseException] = []
    while error is not None and not any(error is one for one in seen):
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__


def part_of(error: BaseException) -> str:
    """The part that asked for memory: the innermost known one of the tracebacks in the chain."""
    modules: list[tuple[str, str]] = []  # (module, function), innermost first
    for one in _chain(error):
        frames = [frame for frame, _ in traceback.walk_tb(one.__traceback__)]
        modules += [(f.f_globals.get("__name__", ""), f.f_code.co_name) for f in reversed(frames)]
    evaluating = any(module.startswith(_EVALUATIONS) for module, _ in modules)
    for module, function in modules:
        for (known, where), part in _PARTS.items():
            inside = module == known or module.startswith(f"{known}.")
            if inside and where in ("", function):
                return EVALUATING if part is SAMPLING and evaluating else part
    return OTHER


def said(error: BaseException, part: str) -> str:
    """The shortage in words: how much was asked for, and by what."""
    words = ""
    if found := next(filter(None, (_ASKED.search(str(one)) for one in _chain(error))), None):
        number = float(found[1]) * _UNITS[found[2][0].lower()]
        words = f", which asked for {_size(number)} more"
    return f"out of memory in {part}{words}"


def _list(settings: Sequence[str]) -> str:
    """The first three settings, as the end of a sentence."""
    less = settings[:3]
    if not less:
        return ""
    ways = less[0] if len(less) == 1 else f"{', '.join(less[:-1])} or {less[-1]}"
    return f"; set {ways}"


def _afterwards(folder: Path, prefix: str) -> str:
    """How to go on. A run keeps its settings, so other ones need another run, once it has begun."""
    run = folder.parent if prefix else folder
    if not any(log.stat().st_size for log in run.rglob("metrics.jsonl")):
        return ""
    saved = sorted(folder.glob("checkpoints/step_*/config.json"))
    start = f", from {prefix}model.path={saved[-1].parent}" if saved else ""
    return (
        f" in a new run (another run.dir{start}), since a run keeps its settings; where there is "
        f"more memory it goes on as it is: grpo train --resume {run}"
    )


def _size(number: float) -> str:
    for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return f"{number:.0f} bytes"


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
    has_adapter = _read(stage, "model.lora.on")
    yield "model.lora.rank", 16 if has_adapter is False else None
    bytes4 = importlib.util.find_spec("bitsandbytes") is not None
    if has_adapter is False and bytes4 and _read(stage, "learner.optim") == "adamw_torch":
        yield "learner.optim", "adamw_bnb_8bit"
    if has_adapter and bytes4 and _read(stage, "model.quantization") == "none":
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
