"""The composition root: a recipe becomes a run directory.

    runs/<name>/  resolved.json  provenance.json  summary.json  metrics.jsonl  ledger/
                  checkpoints/  checkpoints.jsonl  eval/*.jsonl  model/

A recipe of several stages gives each stage such a folder inside the run's; the summary of the
last stage is the run's.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from grpo import plugins
from grpo.config import from_dict, resolved
from grpo.data import SOURCES
from grpo.errors import GrpoError, RecipeError, RunError
from grpo.log import RunLog
from grpo.ranks import Ranks, join
from grpo.schema import PretrainStage, Recipe, RLStage, Run
from grpo.stages import rl
from grpo.stages.pretrain import pretrain
from grpo.stages.wiring import build_sampler

PACKAGES = ("torch", "transformers", "accelerate", "numpy")


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
        (folder / "provenance.json").write_text(json.dumps(provenance(), indent=1) + "\n")
    except OSError as error:
        raise RunError(f"run.dir = {str(folder)!r} cannot be written: {error}") from error


def resume_run(path: str | Path, console: Console | None = None) -> dict[str, Any]:
    """Continue the run in `path` from its newest checkpoint; the summary of its last stage."""
    folder = Path(path).expanduser().resolve()
    if not (folder / "resolved.json").is_file():
        raise RunError(f"{str(folder)!r} is not a run: there is no resolved.json in it")
    recipe = from_dict(json.loads((folder / "resolved.json").read_text()))
    return run_stages(recipe, folder, console or Console(stderr=True, highlight=False))


def run_stages(recipe: Recipe, folder: Path, console: Console) -> dict[str, Any]:
    """The stages that have no summary yet, in order."""
    ranks = _join(recipe)
    if ranks.rank:
        console = Console(quiet=True)
    summaries: dict[str, dict[str, Any]] = {}
    for stage in recipe.stages:
        place = stage_folder(recipe, folder, stage.name)
        place.mkdir(exist_ok=True)
        done = place / "summary.json"
        before = ranks.on_first(lambda at=done: at.read_text() if at.is_file() else None)
        if before is not None:
            summaries[stage.name] = json.loads(before)
            console.print(f"stage {stage.name}: done before", markup=False)
            continue
        try:
            if isinstance(stage, PretrainStage):
                summary = ranks.on_first(
                    lambda s=stage, at=place: run_pretrain(s, recipe.run, at, console)
                )
            else:
                path = stage.model.path
                if path.startswith("stage:"):  # found anew: the run may have been moved
                    name = path.removeprefix("stage:")
                    path = str(stage_folder(recipe, folder, name) / "model")
                summary = rl.run(stage, recipe, place, path, console, ranks)
        except (KeyboardInterrupt, OSError):  # OSError: a full disk, say
            console.print(f"continue with: grpo train --resume {folder}", markup=False)
            raise
        summaries[stage.name] = {"recipe": recipe.name, "seed": recipe.run.seed, **summary}
        ranks.on_first(lambda at=done, data=summaries[stage.name]: write_json(at, data))
    last = summaries[recipe.stages[-1].name]
    if len(recipe.stages) > 1:
        ranks.on_first(lambda: write_json(folder / "summary.json", last))
    print_summary(last, folder, console)
    return last


def evaluate_model(
    model: str | Path, recipe: Recipe, console: Console | None = None
) -> dict[str, Any]:
    """Held-out figures of a model folder, a run folder or a hub id on a recipe's last rl stage.

    Every completion is written under `eval/` in a run's folder, or else in `runs/eval-<model>`.
    """
    console = console or Console(stderr=True, highlight=False)
    stages = [stage for stage in recipe.stages if isinstance(stage, RLStage)]
    if not stages:
        raise RecipeError(
            f"recipe {recipe.name!r} has no rl stage, so nothing says how to evaluate"
        )
    folder = Path(model)
    path, home = str(model), Path("runs") / f"eval-{folder.name}"
    if (folder / "resolved.json").is_file():
        home = folder
        path = str(stage_folder(recipe, folder, stages[-1].name) / "model")
        if not Path(path).is_dir():
            raise RunError(
                f"the run {str(model)!r} has no trained model yet: there is no {path!r}. "
                f"Finish it with `grpo train --resume {model}`, or name one of its checkpoints"
            )
    _prepare(recipe)
    sampler = build_sampler(stages[-1], recipe, path)
    out = home / "eval" / "model.jsonl"
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        closing(sampler.engine),
        closing(sampler.heldout.rewards),
        Progress(*columns, console=console, transient=True) as progress,
    ):
        bar = progress.add_task("held-out tasks", total=None)
        figures = sampler.heldout.evaluate(
            sampler.engine,
            out,
            lambda done, total: progress.update(bar, completed=done, total=total),
        )
    console.print(f"every completion: {out}", markup=False, soft_wrap=True)
    return figures


def stage_folder(recipe: Recipe, folder: Path, name: str) -> Path:
    """Where stage `name` of the run in `folder` writes: `folder` itself if it is the only one."""
    return folder if len(recipe.stages) == 1 else folder / name


def _join(recipe: Recipe) -> Ranks:
    """The learner's ranks, before anything loads a model. Raises RecipeError."""
    _prepare(recipe)
    ranks = join()
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
        if stage.rollout.backend == "ray" and not recipe.ray.address:
            raise RecipeError(
                f"rollout.backend = ray with {ranks.count} learner ranks needs a cluster that all "
                "of them join: `ray start --head`, then ray.address=auto"
            )
    return ranks


def _prepare(recipe: Recipe) -> None:
    """Process-wide settings: thread count, and silence from libraries that draw their own bars."""
    torch.set_num_threads(recipe.run.threads or os.cpu_count() or 1)
    transformers.utils.logging.disable_progress_bar()


def run_pretrain(
    stage: PretrainStage, settings: Run, folder: Path, console: Console
) -> dict[str, Any]:
    """The pretrain stage: a tiny base in `folder/model`; its summary. Starts over when cut."""
    source = plugins.load("source", stage.data.source, SOURCES, stage.data.args)
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    total = stage.learner.max_steps
    with RunLog(
        folder,
        title=stage.name,
        max_steps=total,
        trackers=settings.trackers,
        config=stage.model_dump(mode="json"),
        console=console,
    ) as log:
        metrics = pretrain(
            source,
            out_dir=str(folder / "model"),
            steps=total,
            batch_size=stage.learner.batch_size,
            learning_rate=stage.learner.learning_rate,
            warmup_steps=stage.learner.warmup_steps,
            weight_decay=stage.learner.weight_decay,
            seed=settings.seed,
            hidden_size=stage.model.hidden_size,
            num_layers=stage.model.num_layers,
            num_heads=stage.model.num_heads,
            num_kv_heads=stage.model.num_kv_heads or stage.model.num_heads,
            intermediate_size=stage.model.intermediate_size,
            architecture=stage.model.architecture,
            max_position=stage.model.max_position,
            progress=log.step,
        )
    return {"stage": stage.name, "model": str(folder / "model"), **metrics}


def provenance() -> dict[str, Any]:
    """What the figures of a run depend on beside its recipe."""
    return {
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "commit": _commit(),
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def _commit() -> str | None:
    """The commit of the checkout this package runs from; None where it is installed."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def print_summary(summary: dict[str, Any], folder: Path, console: Console) -> None:
    """The result table and where everything is."""
    if "before" in summary:
        table = Table(title=f"{summary['recipe']} (seed {summary['seed']}): held-out tasks")
        for heading in ("", "before", "after"):
            table.add_column(heading, justify="left" if not heading else "right")
        before, after = summary["before"], summary["after"]
        shown: Sequence[tuple[str, Callable[[dict[str, Any]], str]]] = (
            ("greedy accuracy", lambda e: f"{e['greedy']:.3f}"),
            ("pass@1", lambda e: f"{e['pass1']:.3f}"),
            ("95% interval", lambda e: f"[{e['pass1_ci'][0]:.3f}, {e['pass1_ci'][1]:.3f}]"),
            ("mean length (tokens)", lambda e: f"{e['mean_length']:.1f}"),
        )
        for heading, cell in shown:
            table.add_row(heading, cell(before), cell(after))
        console.print(table)
        console.print(
            f"{summary['steps']} steps of reinforcement learning in {summary['seconds']:.0f} s",
            markup=False,
        )
    console.print(f"model: {summary['model']}\nrun:   {folder}", markup=False, soft_wrap=True)


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write atomically."""
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(data, indent=1) + "\n")
    os.replace(aside, path)
