"""Room on the disk for what a run writes: checkpoints, best models, the model that is left."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Mapping
from math import ceil, prod
from pathlib import Path
from typing import Any, cast

from grpo.config import schema
from grpo.errors import RunError
from grpo.rundir.run_folder import stage_folder

GB, MB = 10**9, 10**6
WEIGHT = 4  # bytes of a number that is saved: float32


def check_disk(recipe: schema.Recipe, folder: Path, stages: Collection[schema.AnyStage]) -> None:
    """Refuse a folder that cannot be written, or has no room for what `stages` write. RunError."""
    place = folder.resolve()
    while not place.exists():
        place = place.parent
    said = f"run.dir = {str(folder)!r}"
    if not place.is_dir():
        raise RunError(f"{said} cannot be written: {str(place)!r} is a file")
    if not os.access(place, os.W_OK | os.X_OK):
        raise RunError(f"{said} cannot be written: {str(place)!r} may not be changed by this user")
    needed = bytes_of(recipe, stages) - _written(recipe, folder, stages)
    usage = shutil.disk_usage(place)
    if needed > usage.free and usage.total:  # some network file systems tell no size
        limit = recipe.run.save_total_limit
        raise RunError(
            f"{said} has {_size(usage.free)} free, and the run writes {_size(needed)} at least "
            f"(with run.save_total_limit = {limit or '0, every checkpoint'}): choose another "
            "run.dir, or keep fewer checkpoints"
        )


def _size(count: int) -> str:
    return f"{count / GB:.1f} GB" if count >= GB / 10 else f"{count / MB:.1f} MB"


def bytes_of(recipe: schema.Recipe, stages: Collection[schema.AnyStage]) -> int:
    """The most bytes that are on the disk at once, of files whose size is known.

    A checkpoint is float32 weights and two moments. While a checkpoint is written there is one more
    than run.save_total_limit. An adapter's moments are too small to count.
    """
    sizes: dict[str, int] = {}
    left = most = 0
    for stage in recipe.stages:
        count = _parameters(stage, sizes)
        if count is None:
            continue
        sizes[stage.name] = count
        if stage in stages and not isinstance(stage, schema.RejectStage | schema.EvalStage):
            during, after = _stage_bytes(stage, count, recipe)
            most = max(most, left + during, left + after)
            left += after
    return most


def _stage_bytes(stage: schema.AnyStage, count: int, recipe: schema.Recipe) -> tuple[int, int]:
    """Bytes of a stage while it writes its last checkpoint, and after it has left its model."""
    weights, limit = WEIGHT * count, recipe.run.save_total_limit
    if isinstance(stage, schema.PretrainStage):
        return weights, weights
    model, learner = cast(Any, stage).model, cast(Any, stage).learner
    moments = 2 * WEIGHT * count
    if model.lora.on:
        weights //= 1 if model.dtype in ("auto", "float32") else 2  # merged in the compute type
        moments = 0
    elif getattr(learner, "optim", "").endswith("8bit"):
        moments //= WEIGHT
    steps = recipe.run.save_steps
    made = ceil(learner.max_steps / steps) if learner.max_steps and steps else 1
    kept = min(made, limit or made)
    during = min(made, kept + 1) * (weights + moments)
    return during, kept * (weights + moments) + weights


def _written(recipe: schema.Recipe, folder: Path, stages: Collection[schema.AnyStage]) -> int:
    """Bytes of checkpoints and models that exist already and are replaced during the run."""
    total = 0
    for stage in stages:
        place = stage_folder(recipe, folder, stage.name)
        for part in ("checkpoints", "model", "best"):
            for file in (place / part).rglob("*"):
                total += file.stat().st_size if file.is_file() else 0
    return total


def _parameters(stage: schema.AnyStage, sizes: Mapping[str, int]) -> int | None:
    """Numbers in the model that a stage trains, from its files' headers; None where unknown."""
    if isinstance(stage, schema.PretrainStage):
        model = stage.model
        block = 2 * model.hidden_size**2 + 3 * model.hidden_size * model.intermediate_size
        return model.num_layers * block
    path = getattr(getattr(stage, "model", None), "path", "")
    if path.startswith(schema.REFERENCE):
        return sizes.get(path.removeprefix(schema.REFERENCE))
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
            header.pop("__metadata__", None)
            total += sum(prod(map(int, tensor["shape"])) for tensor in header.values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None  # whoever loads the file says what is wrong with it
    return total if files else None
