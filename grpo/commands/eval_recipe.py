"""`grpo eval RUN` and `--recipe`: models on the held-out tasks of a recipe's last rl stage.

All models of one call answer the same tasks with the same noise, so they are compared completion by
completion. `evaluate_models` does it for any stage; the command line and the Python API call it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo.commands.process import prepare_process
from grpo.commands.summary import print_paired
from grpo.config.schema import REFERENCE, Lora, Recipe, RLStage, artefact
from grpo.errors import RecipeError, RunError
from grpo.evaluation import heldout, paired, tally
from grpo.model import pretrained
from grpo.outside.files.durable import write_json
from grpo.outside.terminal.console import Console
from grpo.rollout import LOADING
from grpo.rundir.run_folder import SETTINGS, model_path, recipe_of, stage_folder
from grpo.stages.bars import bar
from grpo.stages.eval import model_names
from grpo.stages.preflight import check_tasks
from grpo.stages.wiring import build_heldout, build_rl_sampler

COMPARISON = "comparison.json"  # what `compare_model` returns, beside the completions


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What a command line means. model: a folder or a hub id. out: for completions."""

    stage: RLStage
    model: str
    out: Path


def evaluate_models(
    models: Sequence[str],
    stage: RLStage,
    recipe: Recipe,
    *,
    baseline: str | None,
    out: Path,
    console: Console,
    names: Sequence[str] = (),
) -> dict[str, Any]:
    """Models of one family on the held-out tasks of `stage`, with its rewards and prompts.

    models, baseline: folders of models or runs, or hub ids; the baseline need not be one of
    models. names: what to call them, the baseline last if it is not one of models; empty: after
    their folders. Every completion is written to `out`/NAME.jsonl.

        models       name -> figures, as `grpo.evaluation.tally.figures` gives them
        paths        name -> model
        completions  name -> file
        baseline     the name of the baseline; None without one
        paired       name -> rows of `grpo.evaluation.paired.compared`, "before" the baseline, for
                     every other model; {} without a baseline

    Raises RecipeError where the stage asks no held-out tasks, and DataError where no completion was
    scored.
    """
    if stage.eval.is_off:
        raise RecipeError(
            "eval.num_tasks = 0 asks no held-out tasks, so there is nothing to evaluate on; "
            "set it for this evaluation, say eval.num_tasks=200"
        )
    prepare_process(recipe.run.threads)
    paths = [*models] if baseline is None or baseline in models else [*models, baseline]
    titles = list(names) or model_names(paths)
    stages = [_with_model(stage, model_path(path)) for path in paths]
    for path, its in zip(paths, stages, strict=True):  # before the first of them is asked
        role = "baseline" if path == baseline else "model"
        pretrained.check_model(its.model.path, role, weights=its.rollout.engine in LOADING)
    check_tasks(recipe, stages[0], ("heldout",))
    files = {title: out / f"{title}.jsonl" for title in titles}
    found = {
        title: tally.checked(_evaluated(title, files[title], its, recipe, console))
        for title, its in zip(titles, stages, strict=True)
    }
    first = titles[paths.index(baseline)] if baseline is not None else None
    rows: dict[str, Any] = {}
    for title in titles:
        if first is not None and title != first:
            lines = [heldout.read_lines(files[name]) for name in (first, title)]
            rows[title] = paired.compared(found[first], found[title], *lines, seed=recipe.run.seed)
    return {
        "models": found,
        "paths": dict(zip(titles, paths, strict=True)),
        "completions": {title: str(file) for title, file in files.items()},
        "baseline": first,
        "paired": rows,
    }


def evaluate_model(
    model: str | Path, recipe: Recipe, console: Console | None = None
) -> dict[str, Any]:
    """Held-out figures of a model folder, a run folder or a hub id on a recipe's last rl stage.

    Every completion is written under `eval/` in a run's folder, or else in `runs/eval-<model>`.
    """
    console = console or Console(stderr=True, highlight=False)
    asked = _asked(model, recipe)
    found = evaluate_models(
        [asked.model],
        asked.stage,
        recipe,
        baseline=None,
        out=asked.out,
        console=console,
        names=["model"],
    )
    return found["models"]["model"]


def compare_model(
    model: str | Path, recipe: Recipe, baseline: str, console: Console | None = None
) -> dict[str, Any]:
    """Print the paired table of a model and a baseline; the result of `evaluate_models`.

    baseline: a folder of a model or a run, or a hub id; "": the model that the last rl stage
    started from. The completions are written where `evaluate_model` writes them, as
    `model.jsonl` and `baseline.jsonl`, beside `comparison.json` with the result.
    """
    live = Console(stderr=True, highlight=False)  # so that the table can be piped
    console = console or Console(highlight=False)
    asked = _asked(model, recipe)
    other = baseline or started_from(str(model), recipe)
    if other in (asked.model, str(model)):
        raise RecipeError(f"--baseline {other} is the model itself; name another one")
    found = evaluate_models(
        [asked.model],
        asked.stage,
        recipe,
        baseline=other,
        out=asked.out,
        console=live,
        names=["model", "baseline"],
    )
    write_json(asked.out / COMPARISON, found)
    before, after = ("before", "after") if not baseline else model_names([other, asked.model])
    judged = found["models"]["model"]
    title = f"{recipe.name} (seed {recipe.run.seed}): {judged['tasks']} held-out tasks"
    print_paired(found["paired"]["model"], (before, after), title, console)
    console.print(f"every figure: {asked.out / COMPARISON}", markup=False, soft_wrap=True)
    return found


def _asked(model: str | Path, recipe: Recipe) -> _Asked:
    """The stage, the model and the folder for answers. Raises RecipeError and RunError."""
    stages = [stage for stage in recipe.stages if isinstance(stage, RLStage)]
    if not stages:
        raise RecipeError(
            f"recipe {recipe.name!r} has no rl stage, so nothing says how to evaluate"
        )
    stage, folder = stages[-1], Path(model)
    if not (folder / SETTINGS).is_file():
        out = Path("runs") / f"eval-{folder.name}" / "eval"
        return _Asked(stage=stage, model=str(model), out=out)
    path = stage_folder(recipe, folder, stage.name) / "model"
    if not path.is_dir():
        raise RunError(
            f"the run {str(model)!r} has no trained model yet: there is no {str(path)!r}. "
            f"Finish it with `grpo train --resume {model}`, or name one of its checkpoints"
        )
    return _Asked(stage=stage, model=str(path), out=folder / "eval")


def started_from(model: str, recipe: Recipe | None = None) -> str:
    """The model that the last rl stage of a run started from, or that of a recipe.

    model: what is evaluated, perhaps the folder of a run. Raises RecipeError where neither says.
    """
    is_run = (Path(model) / SETTINGS).is_file()
    recipe = recipe_of(model) if recipe is None and is_run else recipe
    stages = [stage for stage in recipe.stages if isinstance(stage, RLStage)] if recipe else []
    if recipe and stages:
        path = stages[-1].model.path
        if is_run and path.startswith(REFERENCE):
            stage = path.removeprefix(REFERENCE)
            path = str(stage_folder(recipe, Path(model), stage) / artefact("model.path"))
        if not path.startswith(REFERENCE):
            return path
    raise RecipeError(
        "--baseline alone means the model that the last rl stage of a run started from, and "
        f"{model!r} is not the folder of such a run; write --baseline MODEL"
    )


def _with_model(stage: RLStage, path: str) -> RLStage:
    # A model that was saved has its adapter merged in.
    whole = stage.model.model_copy(update={"path": path, "lora": Lora()})
    return stage.model_copy(update={"model": whole})


def _evaluated(
    title: str, out: Path, stage: RLStage, recipe: Recipe, console: Console
) -> dict[str, Any]:
    """The figures of the stage's model, whose completions are written to `out`."""
    sampler = build_rl_sampler(stage, recipe)
    judge = build_heldout(sampler, stage.rewards, stage.eval, recipe.run.seed)
    engine, rewards = closing(sampler.engine), closing(judge.rewards)
    with engine, rewards, bar(f"{title}: held-out tasks", console) as progress:
        figures = judge.evaluate(sampler.engine, out, progress)
    console.print(f"every completion: {out}", markup=False, soft_wrap=True)
    return figures
