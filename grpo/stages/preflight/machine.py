"""What a run needs of the machine: packages that its stages import, room on the disk (`disk`).

Packages are looked for without importing them. Addresses (a judge, a server that samples) are not
called: a server may be down now and up when its stage comes, or the other way around.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from grpo.config.schema import (
    AnyStage,
    DistillStage,
    EvalStage,
    Recipe,
    RLStage,
    SFTStage,
)
from grpo.errors import RecipeError
from grpo.stages.preflight.disk import check_disk
from grpo.stages.preflight.found import prefix
from grpo.stages.preflight.paths import reward_specs

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
    ranks = max(recipe.ray.learners, int(os.environ.get(LAUNCHED, "1")))
    for stage in stages if ranks > 1 else ():
        if isinstance(stage, SFTStage | DistillStage):
            raise RecipeError(
                f"stage {stage.name!r} fine-tunes in one process, and {ranks} were launched: "
                "run it with `grpo train`, without accelerate launch or ray.learners"
            )
    for setting, package in _packages(recipe, stages):
        names = (package, *([INSTEAD[package]] if package in INSTEAD else []))
        if not any(map(_is_there, names)):
            what = EXTRAS.get(package, package)
            raise RecipeError(
                f"{setting} needs {package}, which is not installed: pip install {what}"
            )
    check_disk(recipe, folder or Path(recipe.run_dir).expanduser(), stages)


def _is_there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # a module put into sys.modules by hand has no spec
        return False


def _packages(recipe: Recipe, stages: Collection[AnyStage]) -> Iterator[tuple[str, str]]:
    """(setting, package) of everything that is imported when its turn comes."""
    for name in recipe.run.trackers:
        yield f"run.trackers = {name!r}", name
    if recipe.ray.learners > 1:
        yield f"ray.learners = {recipe.ray.learners}", "ray"
    for stage in stages:
        for setting, package in _of_stage(stage):
            yield f"{prefix(recipe, stage)}{setting}", package


def _of_stage(stage: AnyStage) -> Iterator[tuple[str, str]]:
    if isinstance(stage, SFTStage | DistillStage):
        yield f"kind = {stage.kind!r}", "trl"
    model = getattr(stage, "model", None)
    if (lora := getattr(model, "lora", None)) is not None and lora.on:
        yield "model.lora", "peft"
    if (kind := getattr(model, "quantization", "none")) != "none":
        yield f"model.quantization = {kind!r}", "bitsandbytes"
    if isinstance(stage, RLStage) and stage.learner.optim != "adamw_torch":
        yield f"learner.optim = {stage.learner.optim!r}", "bitsandbytes"
    served = isinstance(stage, DistillStage) and stage.teacher.is_endpoint
    rollout = None if served else getattr(stage, "rollout", None)
    if rollout is not None and rollout.engine == "vllm":
        yield "rollout.engine = 'vllm'", "vllm"
    if rollout is not None and rollout.backend == "ray":
        yield "rollout.backend = 'ray'", "ray"
    if isinstance(stage, EvalStage) and stage.engine == "vllm":
        yield "engine = 'vllm'", "vllm"
    if isinstance(stage, SFTStage):
        return
    for setting, name in _sources(stage.data.source, stage.data.args):
        if name in OF_SOURCES:
            yield f"data.{setting} = {name!r}", OF_SOURCES[name]
    for setting, spec in reward_specs(stage):
        for name in (spec.name, *_inner_rewards(spec.args)):
            for package in OF_REWARDS.get(name, ()):
                yield f"{setting} = {name!r}", package
        if spec.name == "language_consistency" and spec.args.get("identify"):
            yield f"{setting}.args.identify = true", "py3langid"


def _sources(source: str, args: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "source", source
    for index, part in enumerate(args.get("parts", ()) if source == "mixture" else ()):
        if isinstance(part, Mapping):
            yield f"args.parts.{index}.source", str(part.get("source"))


def _inner_rewards(args: Any) -> Iterator[str]:
    """The rewards that arguments name, as those of `gate` and `routed` do."""
    for key, value in args.items() if isinstance(args, Mapping) else ():
        if key in ("name", "reward", "verifier") and isinstance(value, str):
            yield value
        elif isinstance(value, Mapping | list | tuple):
            yield from _inner_rewards(value)
    for value in args if isinstance(args, list | tuple) else ():
        yield from _inner_rewards(value)
