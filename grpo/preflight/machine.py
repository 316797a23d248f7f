"""What a run needs of the machine: packages that its stages import, room on the disk.

Looked for without importing any of it. Addresses (a judge, a server that samples) are not called:
one that sleeps now may be up when its stage comes, and the other way around.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from math import ceil
from pathlib import Path
from typing import Any, cast

from grpo.errors import RecipeError, RunError
from grpo.schema import (
    REFERENCE,
    AnyStage,
    DistillStage,
    EvalStage,
    PretrainStage,
    Recipe,
    RejectStage,
    RLStage,
    SFTStage,
)

GB = 10**9
WEIGHT = 4  # bytes of a number that is saved: float32
EXTRAS = {  # package -> what to install
    "bitsandbytes": "'grpo-toolkit[quantize]'",
    "peft": "'grpo-toolkit[lora]'",
    "ray": "'grpo-toolkit[ray]'",
    "tensorboard": "'grpo-toolkit[trackers]'",
    "vllm": "'grpo-toolkit[vllm]'",
    "math_verify": "'math-verify[antlr4_13_2]'",
    "reasoning_gym": "'reasoning-gym>=0.1.25,<0.2'",
}
LAUNCHED = "WORLD_SIZE"  # set where the process is one of several ranks
INSTEAD = {"tensorboard": "tensorboardX"}  # does as well
OF_REWARDS = {"math": ("math_verify", "sympy"), "reward_model": ("transformers",)}
OF_SOURCES = {"reasoning_gym": "reasoning_gym", "hub": "datasets"}


def check_machine(recipe: Recipe, folder: Path | None = None, done: Collection[str] = ()) -> None:
    """Refuse what this machine has not got for the stages still to come.

    folder: of the run, run.dir by default; done: stages of it that are finished. Raises RecipeError
    for a package, RunError for a folder that cannot be written or a disk that is too small.
    """
    stages = [stage for stage in recipe.stages if stage.name not in done]
    many = len(recipe.stages) > 1
    ranks = max(recipe.ray.learners, int(os.environ.get(LAUNCHED, "1")))
    for stage in stages if ranks > 1 else ():
        if isinstance(stage, SFTStage | DistillStage):
            raise RecipeError(
                f"stage {stage.name!r} fine-tunes in one process, and {ranks} were launched: "
                "run it with `grpo train`, without accelerate launch or ray.learners"
            )
    for setting, package in _packages(recipe, stages, many):
        names = (package, *([INSTEAD[package]] if package in INSTEAD else []))
        if not any(map(_is_there, names)):
            what = EXTRAS.get(package, package)
            raise RecipeError(
                f"{setting} needs {package}, which is not installed: pip install {what}"
            )
    _check_disk(recipe, folder or Path(recipe.run_dir).expanduser(), stages)


def _is_there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # a module put into sys.modules by hand has no spec
        return False


def _packages(
    recipe: Recipe, stages: Collection[AnyStage], many: bool
) -> Iterator[tuple[str, str]]:
    """(setting, package) of everything that is imported when its turn comes."""
    for name in recipe.run.trackers:
        yield f"run.trackers = {name!r}", name
    if recipe.ray.learners > 1:
        yield f"ray.learners = {recipe.ray.learners}", "ray"
    for stage in stages:
        where = f"{stage.name}." if many else ""
        for setting, package in _of_stage(stage):
            yield f"{where}{setting}", package


def _of_stage(stage: AnyStage) -> Iterator[tuple[str, str]]:
    if isinstance(stage, SFTStage | DistillStage):
        yield f"kind = {stage.kind!r}", "trl"
    if rank := getattr(getattr(stage, "model", None), "lora_rank", 0):
        yield f"model.lora_rank = {rank}", "peft"
    if (kind := getattr(getattr(stage, "model", None), "quantization", "none")) != "none":
        yield f"model.quantization = {kind!r}", "bitsandbytes"
    if isinstance(stage, RLStage) and stage.learner.optim != "adamw_torch":
        yield f"learner.optim = {stage.learner.optim!r}", "bitsandbytes"
    rollout = getattr(stage, "rollout", None)
    served = isinstance(stage, DistillStage) and stage.teacher.is_endpoint
    if rollout is not None and rollout.engine == "vllm" and not served:
        yield "rollout.engine = 'vllm'", "vllm"
    if rollout is not None and rollout.backend == "ray" and not served:
        yield "rollout.backend = 'ray'", "ray"
    if isinstance(stage, EvalStage) and stage.engine == "vllm":
        yield "engine = 'vllm'", "vllm"
    if isinstance(stage, SFTStage):
        return
    for setting, name in _sources(stage.data.source, stage.data.args):
        if name in OF_SOURCES:
            yield f"data.{setting} = {name!r}", OF_SOURCES[name]
    if isinstance(stage, PretrainStage):
        return
    for field, specs in (("rewards", stage.rewards), ("eval.rewards", _eval_rewards(stage))):
        for index, spec in enumerate(specs):
            for name in (spec.name, *_inner_rewards(spec.args)):
                for package in OF_REWARDS.get(name, ()):
                    yield f"{field}.{index} = {name!r}", package
            if spec.name == "language_consistency" and spec.args.get("identify"):
                yield f"{field}.{index}.args.identify = true", "py3langid"


def _eval_rewards(stage: AnyStage) -> Collection[Any]:
    return stage.eval.rewards if isinstance(stage, RLStage) else ()


def _sources(source: str, args: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "source", source
    for index, part in enumerate(args.get("parts", ()) if source == "mixture" else ()):
        if isinstance(part, Mapping):
            yield f"args.parts.{index}.source", str(part.get("source"))


def _inner_rewards(args: Any) -> Iterator[str]:
    """The rewards that arguments name, as those of `gate`, `gdpo` and `routed` do."""
    for key, value in args.items() if isinstance(args, Mapping) else ():
        if key in ("name", "reward", "verifier") and isinstance(value, str):
            yield value
        elif isinstance(value, Mapping | list | tuple):
            yield from _inner_rewards(value)
    for value in args if isinstance(args, list | tuple) else ():
        yield from _inner_rewards(value)


# The disk


def _check_disk(recipe: Recipe, folder: Path, stages: Collection[AnyStage]) -> None:
    place = folder.resolve()
    while not place.exists():
        place = place.parent
    said = f"run.dir = {str(folder)!r}"
    if not place.is_dir():
        raise RunError(f"{said} cannot be written: {str(place)!r} is a file")
    if not os.access(place, os.W_OK | os.X_OK):
        raise RunError(f"{said} cannot be written: {str(place)!r} may not be changed by this user")
    needed = bytes_of(recipe, stages) - _written(recipe, folder, stages)
    free = shutil.disk_usage(place).free
    if needed > free:
        limit = recipe.run.save_total_limit
        raise RunError(
            f"{said} has {free / GB:.1f} GB free, and the run writes {needed / GB:.1f} GB at least "
            f"(with run.save_total_limit = {limit or '0, every checkpoint'}): choose another "
            "run.dir, or keep fewer checkpoints"
        )


def bytes_of(recipe: Recipe, stages: Collection[AnyStage]) -> int:
    """The most that lies on the disk at once of what the stages write and whose size is known.

    A checkpoint is float32 weights and two moments; one more than run.save_total_limit is there
    while the next is written. Under an adapter the moments are too few to count.
    """
    sizes: dict[str, int] = {}
    left = most = 0
    for stage in recipe.stages:
        count = _parameters(stage, sizes)
        if count is None:
            continue
        sizes[stage.name] = count
        if stage in stages and not isinstance(stage, RejectStage | EvalStage):
            during, after = _stage_bytes(stage, count, recipe)
            most = max(most, left + during, left + after)
            left += after
    return most


def _stage_bytes(stage: AnyStage, count: int, recipe: Recipe) -> tuple[int, int]:
    """Bytes of a stage while it writes its last checkpoint, and when it has left its model."""
    weights, limit = WEIGHT * count, recipe.run.save_total_limit
    if isinstance(stage, PretrainStage):
        return weights, weights
    model, learner = cast(Any, stage).model, cast(Any, stage).learner
    moments = 2 * WEIGHT * count
    if model.lora_rank:
        weights //= 1 if model.dtype == "float32" else 2  # merged in the compute type
        moments = 0
    elif getattr(learner, "optim", "").endswith("8bit"):
        moments //= WEIGHT
    steps = recipe.run.save_steps
    made = ceil(learner.max_steps / steps) if learner.max_steps and steps else 1
    kept = min(made, limit or made)
    during = min(made, kept + 1) * (weights + moments)
    return during, kept * (weights + moments) + weights


def _written(recipe: Recipe, folder: Path, stages: Collection[AnyStage]) -> int:
    """Bytes of checkpoints and models that are there already and are replaced as the run goes."""
    total = 0
    for stage in stages:
        place = folder if len(recipe.stages) == 1 else folder / stage.name
        for part in ("checkpoints", "model", "best"):
            for file in (place / part).rglob("*"):
                total += file.stat().st_size if file.is_file() else 0
    return total


def _parameters(stage: AnyStage, sizes: Mapping[str, int]) -> int | None:
    """Numbers in the model that a stage trains, from its files' headers; None where unknown."""
    if isinstance(stage, PretrainStage):
        model = stage.model
        block = 2 * model.hidden_size**2 + 3 * model.hidden_size * model.intermediate_size
        return model.num_layers * block
    path = getattr(getattr(stage, "model", None), "path", "")
    if path.startswith(REFERENCE):
        return sizes.get(path.removeprefix(REFERENCE))
    return weights_in(Path(path).expanduser()) if path else None


def weights_in(folder: Path) -> int | None:
    """Numbers in the safetensors files of a folder, from their headers; None without such files."""
    total = 0
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        try:
            with file.open("rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
                header: dict[str, Any] = json.loads(stream.read(min(length, 1 << 27)))
            for name, tensor in header.items():
                if name != "__metadata__":
                    count = 1
                    for size in tensor["shape"]:
                        count *= int(size)
                    total += count
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None  # what is wrong with the file is said by who loads it
    return total if files else None
