"""What is called on a run that is there: it goes on, or is evaluated beside where it started."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, cast

from grpo.commands import train as trains
from grpo.commands.api import given as objects_of
from grpo.commands.api import live
from grpo.commands.api.calling import called
from grpo.commands.api.calls import run_stages
from grpo.commands.api.given import Given
from grpo.commands.api.run import Run
from grpo.commands.api.settings import Tree
from grpo.commands.process import restored
from grpo.config.schema import RLStage
from grpo.errors import RunError
from grpo.outside.code import objects
from grpo.stages.origins import located


@called
def resume(
    run: Run,
    *,
    accept_changes: bool = False,
    stages: Sequence[Mapping[str, Any]] = (),
    **again: Any,
) -> Run:
    """Go on with a run; see `Run.resume`. stages: of a pipeline, as `pipeline` was given them."""
    if not isinstance(run, Run):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise RunError(f"run is of type {type(run).__name__}; grpo.load_run(folder) gives one")
    fixed = [key for key in again if key not in objects_of.OBJECTS and not _has_objects(again[key])]
    if fixed:
        raise RunError(
            f"{fixed[0]} = {again[fixed[0]]!r:.60}: a run goes on with the settings it was started "
            "with; leave it out, or start a new run"
        )
    given = Given(objects=run.given if not (again or stages) else {})
    for stage in [*stages, *([again] if again else [])]:
        _collect(given, dict(stage))
    with (
        live.watched("run.resume") as view,
        objects.given(given.objects),
        restored(),
    ):
        console = view and view.named(run.folder)
        trains.resume(run.folder, console, accept_changes=accept_changes)
    return Run(run.folder, given.objects)


def _has_objects(value: Any) -> bool:
    """Whether a setting has functions or other objects in it."""
    found = Given()
    objects_of.callables(found, value)
    return bool(found.objects)


def _collect(given: Given, stage: Tree) -> None:
    """The objects of a stage, under the names that they had when the run was started."""
    named = {key: stage.pop(key, None) for key in objects_of.OBJECTS}
    if named["rewards"] is not None:
        objects_of.reward_entries(given, named["rewards"])
    objects_of.callables(given, {k: v for k, v in stage.items() if k not in ("kind", "name")})
    dataset = named["dataset"]
    if dataset is not None and not isinstance(dataset, str | os.PathLike):
        objects_of.tasks_entry(given, dataset, named["eval_dataset"], {})


@called
def evaluate_run(
    run: Run, dataset: Any = None, *, rewards: Any = None, name: str = "", **settings: Any
) -> Run:
    """Compare the model of a run with the one it started from; see `Run.evaluate`."""
    stage = cast(RLStage, located(run.stage_of("rl"), run.recipe, run.folder))
    specs = stage.eval.rewards or stage.rewards
    base: Tree = {
        "kind": "eval",
        "name": "eval",
        "models": [stage.model.path, str(run.left_model())],
        "data": stage.data.model_dump(mode="json"),
        "rewards": [spec.model_dump(mode="json") for spec in specs],
        "max_completion_length": stage.rollout.longest_completion,
        "temperature": stage.eval.temperature,
        "top_p": 1.0,
        "num_samples": stage.eval.num_samples,
        **({"num_tasks": stage.eval.num_tasks} if stage.eval.num_tasks else {}),
        "engine": stage.rollout.engine,
        "dtype": stage.model.dtype,
    }
    if dataset is not None:
        base["data"] |= {"source": "", "args": {}}
        base.pop("num_tasks", None)
    given = Given(objects=run.given)
    call = {"dataset": dataset, "rewards": rewards, **settings}
    title = name or f"{run.folder.name}-eval"
    return run_stages("eval", [call], None, title, False, base={"stages": [base]}, given=given)
