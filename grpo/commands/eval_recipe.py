"""`grpo eval RUN` and `--recipe`: a model on the held-out tasks of a recipe's last rl stage."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from grpo.commands.process import prepare_process
from grpo.config.schema import Recipe, RLStage
from grpo.errors import RecipeError, RunError
from grpo.evaluation import tally
from grpo.outside.terminal.console import Console
from grpo.rundir.run_folder import SETTINGS, stage_folder
from grpo.stages.bars import bar
from grpo.stages.preflight import check_tasks
from grpo.stages.wiring import build_heldout, build_rl_sampler


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
    stage, folder = stages[-1], Path(model)
    path, home = str(model), Path("runs") / f"eval-{folder.name}"
    if (folder / SETTINGS).is_file():
        home = folder
        path = str(stage_folder(recipe, folder, stage.name) / "model")
        if not Path(path).is_dir():
            raise RunError(
                f"the run {str(model)!r} has no trained model yet: there is no {path!r}. "
                f"Finish it with `grpo train --resume {model}`, or name one of its checkpoints"
            )
    prepare_process(recipe.run.threads)
    stage = stage.model_copy(update={"model": stage.model.model_copy(update={"path": path})})
    check_tasks(recipe, stage, ("heldout",))
    sampler = build_rl_sampler(stage, recipe)
    judge = build_heldout(sampler, stage.rewards, stage.eval, recipe.run.seed)
    out = home / "eval" / "model.jsonl"
    engine, rewards = closing(sampler.engine), closing(judge.rewards)
    with engine, rewards, bar("held-out tasks", console) as progress:
        figures = judge.evaluate(sampler.engine, out, progress)
    console.print(f"every completion: {out}", markup=False, soft_wrap=True)
    return tally.checked(figures)
