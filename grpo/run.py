"""The composition root: a recipe becomes a run directory.

    runs/<name>/  resolved.json  provenance.json  summary.json  metrics.jsonl  ledger/
                  checkpoints/  checkpoints.jsonl  eval/*.jsonl  model/

A recipe of several stages gives each stage such a folder inside the run's; the summary of the
last stage is the run's.
"""

from __future__ import annotations

import json
import os
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from pydantic import BaseModel
from rich.console import Console
from torch.utils import deterministic

from grpo import finished, litter, preflight, provenance
from grpo.config import from_dict, resolved
from grpo.errors import GrpoError, PluginError, RecipeError, RunError
from grpo.foreign import said
from grpo.memory import keep_freed_memory
from grpo.ranks import Ranks, join
from grpo.schema import REFERENCE, AnyStage, Recipe, RLStage, artefact, references
from grpo.summary import print_stages, print_summary


def train_recipe(recipe: Recipe, console: Console | None = None) -> dict[str, Any]:
    """Run every stage of `recipe` in a new run directory; the summary of the last one.

    Raises RunError if the directory holds another run already.
    """
    folder = Path(recipe.run_dir).expanduser().resolve()
    ranks = _join(recipe)
    ranks.on_first(lambda: _found(recipe, folder))
    try:
        return run_stages(recipe, folder, console or Console(stderr=True, highlight=False))
    except GrpoError:
        logs = folder.rglob("metrics.jsonl")
        if ranks.rank == 0 and not any(log.stat().st_size for log in logs):
            # nothing was done yet, so the corrected command may use the folder
            (folder / "resolved.json").unlink()
        raise


def _found(recipe: Recipe, folder: Path) -> None:
    """The run directory with what it says about itself. Raises RunError."""
    if (folder / "resolved.json").exists():
        raise RunError(
            f"run.dir = {str(folder)!r} already holds a run; continue it with "
            f"`grpo train --resume {folder}`, or choose another run.dir"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "resolved.json").write_text(json.dumps(resolved(recipe), indent=1) + "\n")
        (folder / "provenance.json").write_text(
            json.dumps(provenance.provenance(), indent=1) + "\n"
        )
    except OSError as error:
        raise RunError(f"run.dir = {str(folder)!r} cannot be written: {error}") from error


def resume_run(path: str | Path, console: Console | None = None) -> dict[str, Any]:
    """Continue the run in `path` from its newest checkpoint; the summary of its last stage."""
    folder = Path(path).expanduser().resolve()
    recipe = recipe_of(folder)
    return run_stages(recipe, folder, console or Console(stderr=True, highlight=False))


def recipe_of(path: str | Path) -> Recipe:
    """The recipe of the run in a folder. Raises RunError."""
    file = Path(path).expanduser() / "resolved.json"
    if not file.is_file():
        raise RunError(f"{str(path)!r} is not a run: there is no resolved.json in it")
    return from_dict(json.loads(file.read_text()))


def run_stages(recipe: Recipe, folder: Path, console: Console) -> dict[str, Any]:
    """The stages that have no summary yet, in order."""
    ranks = _join(recipe)
    if ranks.rank:
        console = Console(quiet=True)
    ranks.on_first(lambda: preflight.start(recipe, folder, partial(console.print, markup=False)))
    summaries: dict[str, dict[str, Any]] = {}
    ranks.on_first(lambda: litter.tidy(folder, console))
    for stage in recipe.stages:
        place = stage_folder(recipe, folder, stage.name)
        before, damage = ranks.on_first(lambda at=place: finished.look(at, console))
        if before is not None:
            summaries[stage.name] = before
            console.print(f"stage {stage.name}: done before", markup=False)
            continue
        try:
            # Paths are found anew: the run may have been moved.
            with finished.again(place, damage):
                summary = _run_stage(located(stage, recipe, folder), recipe, place, console, ranks)
        except SystemExit as exit:  # a script that trains would end well
            raise PluginError(f"stage {stage.name}: code of a plug-in {said(exit)}") from exit
        except (KeyboardInterrupt, OSError):  # OSError: a full disk, say
            console.print(f"continue with: grpo train --resume {folder}", markup=False)
            raise
        made_of = {} if ranks.rank else _origin(stage, recipe, folder)
        head = {"recipe": recipe.name, "seed": recipe.run.seed, "stage": stage.name}
        summaries[stage.name] = {**head, **summary, "origin": made_of}
        ranks.on_first(lambda at=place, done=summaries[stage.name]: finished.leave(at, done))
    last = summaries[recipe.stages[-1].name]
    if len(recipe.stages) > 1:
        ranks.on_first(lambda: write_json(folder / "summary.json", last))
        print_stages({stage.name: stage.kind for stage in recipe.stages}, summaries, console)
    print_summary(last, folder, console)
    return last


def _run_stage(
    stage: AnyStage, recipe: Recipe, place: Path, console: Console, ranks: Ranks
) -> dict[str, Any]:
    """One stage; its file is named after its kind, and imported when it is needed."""
    run = import_module(f"grpo.stages.{stage.kind}").run
    if isinstance(stage, RLStage):
        return run(stage, recipe, place, console, ranks)
    return ranks.on_first(lambda: run(stage, recipe, place, console))


def located(stage: AnyStage, recipe: Recipe, folder: Path) -> AnyStage:
    """`stage` with every `stage:NAME` replaced by the folder of that stage's model or rows."""

    def place(text: Any, kind: str) -> Any:
        if not isinstance(text, str) or not text.startswith(REFERENCE):
            return text
        return str(stage_folder(recipe, folder, text.removeprefix(REFERENCE)) / kind)

    def walk(section: BaseModel, where: str = "") -> BaseModel:
        found: dict[str, Any] = {}
        for name in type(section).model_fields:
            value, kind = getattr(section, name), artefact(f"{where}{name}")
            if isinstance(value, BaseModel):
                value = walk(value, f"{where}{name}.")
            elif isinstance(value, dict):
                value = {place(key, kind): item for key, item in value.items()}
            elif isinstance(value, tuple):
                value = tuple(place(item, kind) for item in value)
            found[name] = place(value, kind)
        return section.model_copy(update=found)

    return cast(AnyStage, walk(stage))


def _origin(stage: AnyStage, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Hashes of what the stage started from: settings, earlier stages, local models and rows."""
    inputs: dict[str, str] = {}
    for setting, name in references(stage):
        place = stage_folder(recipe, folder, name) / artefact(setting)
        inputs[f"{setting} = stage:{name}"] = str(place)
    for section in ("model", "data", "teacher"):
        path = getattr(getattr(stage, section, None), "path", None)
        if isinstance(path, str) and not path.startswith(REFERENCE):
            inputs[f"{section}.path"] = path
    mixed = getattr(getattr(stage, "data", None), "mix", {})
    inputs |= {f"data.mix.{p}": p for p in mixed if not p.startswith(REFERENCE)}
    slm = getattr(getattr(stage, "slm", None), "reference", "")
    if slm and not slm.startswith(REFERENCE):
        inputs["slm.reference"] = slm
    args = getattr(getattr(stage, "data", None), "args", {})
    inputs |= {f"data.args.{k}": v for k, v in args.items() if isinstance(v, str) and "path" in k}
    return provenance.origin(stage.model_dump(mode="json"), recipe.run.seed, inputs)


def stage_folder(recipe: Recipe, folder: Path, name: str) -> Path:
    """Where stage `name` of the run in `folder` writes: `folder` itself if it is the only one."""
    return folder if len(recipe.stages) == 1 else folder / name


def _join(recipe: Recipe) -> Ranks:
    """The learner's ranks, before anything loads a model. Raises RecipeError."""
    prepare_process(recipe.run.threads)
    ranks = join()
    if recipe.ray.learners not in (1, ranks.count):
        raise RecipeError(
            f"ray.learners = {recipe.ray.learners}, but {ranks.count} learner ranks were launched; "
            "`grpo train` starts them on Ray, and so does grpo.ray_learners.train"
        )
    for stage in recipe.stages if ranks.count > 1 else ():
        if not isinstance(stage, RLStage):
            continue
        wrong = {
            "schedule.mode": stage.schedule.mode != "sync" and stage.schedule.mode,
            "rollout.oversample": stage.rollout.oversample != 1 and stage.rollout.oversample,
            "rollout.max_rounds": stage.rollout.max_rounds != 1 and stage.rollout.max_rounds,
        }
        for setting, value in wrong.items():
            if value:
                raise RecipeError(
                    f"{setting} = {value} works with one learner rank only, and {ranks.count} were "
                    "launched: each rank samples its own prompts, in turns with learning; leave "
                    "the setting out"
                )
        if stage.rollout.backend == "ray" and not recipe.ray.address and recipe.ray.learners == 1:
            raise RecipeError(
                f"rollout.backend = ray with {ranks.count} learner ranks needs a cluster that all "
                "of them join: `ray start --head`, then ray.address=auto"
            )
    return ranks


def prepare_process(threads: int) -> None:
    """Process-wide settings: thread count (0: all), sums in one order, no bars of libraries.

    On a CPU every operation is one whose threads add up in a fixed order, also in the code of a
    model (experts read a token more than once, and the gradients of these reads are added up).
    """
    torch.set_num_threads(threads or os.cpu_count() or 1)
    if not torch.cuda.is_available():
        torch.use_deterministic_algorithms(True, warn_only=True)
        # a pass over memory that nobody reads
        deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    keep_freed_memory()
    transformers.utils.logging.disable_progress_bar()


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write atomically."""
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(data, indent=1) + "\n")
    os.replace(aside, path)
