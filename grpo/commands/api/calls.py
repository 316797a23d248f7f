"""`grpo.train` and its brothers: a call of Python objects is a recipe, which is then run.

    call -> sections and objects (`settings`, `given`) -> Recipe -> train_recipe -> Run

`folders` makes the folder of the run. Every function raises GrpoError for what a user can mend,
with the line of the call in the message (`calling`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from grpo.commands import train as trains
from grpo.commands.api import given as objects_of
from grpo.commands.api import live
from grpo.commands.api.calling import called
from grpo.commands.api.folders import new_folder, on_first, replaces
from grpo.commands.api.given import Given
from grpo.commands.api.run import Run
from grpo.commands.api.settings import Tree, merged
from grpo.commands.process import restored
from grpo.config import config
from grpo.config.schema import STAGES, Recipe
from grpo.config.schema.recipe import LEAVES
from grpo.errors import RecipeError, unknown_name
from grpo.outside.code import objects
from grpo.stages import preflight

_HEAD = ("run", "ray")
_VERBS = {"rl": "train", "sft": "sft", "reject": "reject", "distill": "distill", "eval": "evaluate"}


@called
def train(
    recipe: str | os.PathLike[str] | Recipe | None = None,
    *,
    model: Any = None,
    dataset: Any = None,
    rewards: Any = None,
    eval_dataset: Any = None,
    tokenizer: Any = None,
    name: str = "",
    overwrite: bool = False,
    **settings: Any,
) -> Run:
    """Train a model by reinforcement learning with GRPO; the finished run.

        run = grpo.train(model="runs/base", dataset=rows, rewards=[short], max_steps=20)

    recipe: a recipe to start from (shipped name, file or Recipe); everything else replaces its
    parts. model: a folder, a hub id, a Run, or a PreTrainedModel in memory. One in memory stays as
    it is: the run trains a copy (`run.model`). dataset: rows with a `prompt` (text or messages), as
    a list of dicts, datasets.Dataset, data frame or generator; or a path, a hub id, or the name of
    a built-in source. Rewards get all other columns by their names. rewards: functions by TRL's
    convention (also async, also objects), names of built-in rewards, "file.py:function",
    verifiers, or sequence-classification models; `reward_weights` weighs them. eval_dataset:
    held-out rows; without it a tenth of the prompts is held out. tokenizer: of a model in memory;
    by default from where it was loaded. name: of the folder, runs/NAME-1, runs/NAME-2, …;
    `dir` names another. overwrite: replace the run that is there. settings: a recipe's settings,
    alone (learning_rate=1e-5) or in their section (eval={"steps": 10}).

    Raises GrpoError with what to do, KeyboardInterrupt after saving a checkpoint.
    """
    stage = {"model": model, "dataset": dataset, "rewards": rewards, "tokenizer": tokenizer}
    stage["eval_dataset"] = eval_dataset
    return run_stages("rl", [{**stage, **settings}], recipe, name, overwrite)


@called
def sft(
    *,
    model: Any,
    dataset: Any,
    tokenizer: Any = None,
    name: str = "",
    overwrite: bool = False,
    **settings: Any,
) -> Run:
    """Fine-tune a model on rows with a `prompt` and a `completion`; the finished run.

    The other arguments are those of `grpo.train`, the settings those of an sft stage.
    """
    stage = {"model": model, "dataset": dataset, "tokenizer": tokenizer}
    return run_stages("sft", [{**stage, **settings}], None, name or "sft", overwrite)


@called
def reject(
    *,
    model: Any,
    dataset: Any,
    rewards: Any,
    tokenizer: Any = None,
    name: str = "",
    overwrite: bool = False,
    **settings: Any,
) -> Run:
    """Sample completions and keep the best ones (rejection sampling); a run with rows for `sft`."""
    stage = {"model": model, "dataset": dataset, "rewards": rewards, "tokenizer": tokenizer}
    return run_stages("reject", [{**stage, **settings}], None, name or "reject", overwrite)


@called
def distill(
    *,
    model: Any,
    teacher: Any,
    dataset: Any,
    rewards: Any = None,
    tokenizer: Any = None,
    name: str = "",
    overwrite: bool = False,
    **settings: Any,
) -> Run:
    """Teach `model` what `teacher` answers; the finished run.

    teacher: a folder, a hub id, a Run or a model in memory. rewards: which of its answers are kept.
    """
    stage = {"model": model, "dataset": dataset, "rewards": rewards, "tokenizer": tokenizer}
    stage["teacher"] = teacher
    return run_stages("distill", [{**stage, **settings}], None, name or "distill", overwrite)


@called
def evaluate(
    *,
    model: Any,
    dataset: Any,
    rewards: Any,
    tokenizer: Any = None,
    name: str = "",
    overwrite: bool = False,
    **settings: Any,
) -> Run:
    """Figures of one model or of several (a list) on the rows, with 95% intervals.

    Every row is asked. The first model is the baseline of paired differences.
    """
    stage = {"models": model, "dataset": dataset, "rewards": rewards, "tokenizer": tokenizer}
    return run_stages("eval", [{**stage, **settings}], None, name or "evaluate", overwrite)


@called
def pipeline(
    stages: Sequence[Mapping[str, Any]],
    *,
    name: str = "pipeline",
    overwrite: bool = False,
    **settings: Any,
) -> Run:
    """Run several stages in one folder; the finished run.

        grpo.pipeline([
            dict(kind="sft", model="runs/base", dataset=demonstrations),
            dict(kind="rl", dataset=rows, rewards=[short]),
        ])

    A stage is a dict of the keywords of the function of its kind (rl: `train`), and its `kind`. A
    stage without `model` starts from the one before. settings: those of `run` and `ray`.
    """
    if not isinstance(stages, list | tuple) or not stages:
        raise RecipeError(
            f"stages = {stages!r:.60}: give a list of dicts, say [dict(kind='sft', model=…, "
            "dataset=…), dict(kind='rl', dataset=…, rewards=[…])]"
        )
    for place, stage in enumerate(cast("Sequence[Any]", stages)):
        if not isinstance(stage, Mapping):
            raise RecipeError(
                f"stages[{place}] = {stage!r:.60} is of type {type(stage).__name__}, and a stage "
                "is a dict of keywords with its 'kind'"
            )
    return run_stages("", stages, None, name, overwrite, settings)


# -- from a call to a run -------------------------------------------------------------------


def run_stages(
    kind: str,
    stages: Sequence[Mapping[str, Any]],
    recipe: str | os.PathLike[str] | Recipe | None,
    name: str,
    overwrite: bool,
    shared: Mapping[str, Any] | None = None,
    *,
    base: Tree | None = None,
    given: Given | None = None,
) -> Run:
    """Make the folder and the recipe of a call, run it, and return the run."""
    given, base = given or Given(), base or _base(recipe)
    head: Tree = {key: base[key] for key in _HEAD if key in base}
    name = name or str(base.get("name", "train"))
    with (
        live.watched(f"grpo.{_VERBS.get(kind, 'pipeline')}") as view,
        new_folder(name, [*stages, shared or {}, head], overwrite) as folder,
    ):
        trees: list[Tree] = []
        for stage in stages:
            started = base["stages"] if base else [{}]
            trees += _stages(given, folder, kind, dict(stage), started, trees)
        for tree in [*trees, merged("rl", {}, shared or {})]:
            for key in _HEAD:
                head.setdefault(key, {}).update(tree.pop(key, {}))
        head["run"]["dir"] = str(folder)
        on_first(lambda: objects_of.make_places(given, folder))
        with objects.given(given.objects), restored():
            built = config.from_dict({"name": name, **head, "stages": trees})
            _check_processes(built, given)
            on_first(lambda: objects_of.save_models(given, folder))
            preflight.first(built)
            trains.train(built, view and view.named(folder, instead=replaces(folder)))
    return Run(folder, given.objects)


def _base(recipe: str | os.PathLike[str] | Recipe | None) -> Tree:
    """The recipe to start from, as plain data with a list of stages; {} for none."""
    if recipe is None:
        return {}
    if not isinstance(recipe, str | os.PathLike | Recipe):
        raise RecipeError(
            f"recipe = {recipe!r:.60} is of type {type(recipe).__name__}; valid: the name of a "
            "shipped recipe, a file, or a grpo.Recipe (settings are keywords)"
        )
    return config.resolved(recipe if isinstance(recipe, Recipe) else config.load(os.fspath(recipe)))


def _check_processes(recipe: Recipe, given: Given) -> None:
    """Refuse Python objects where other processes would need them. Raises RecipeError."""
    for setting, count in (("learners", recipe.ray.learners), ("verifiers", recipe.ray.verifiers)):
        if given.objects and count > (setting == "learners"):
            raise RecipeError(
                f"ray.{setting} = {count} starts other processes, which do not have the Python "
                f"objects of this one ({', '.join(given.objects)}); write functions in a file "
                "(rewards=['my_rewards.py:short']) and rows in another (dataset='rows.jsonl')"
            )


def _stages(
    given: Given,
    folder: Path,
    kind: str,
    stage: Tree,
    started: Sequence[Tree],
    earlier: Sequence[Tree],
) -> list[Tree]:
    """The stages that one call makes: one, or those of a recipe of several."""
    if len(started) == 1:
        return [stage_of(given, folder, kind, stage, dict(started[0]), earlier)]
    names = [one["name"] for one in started]
    objects_given = [key for key in objects_of.OBJECTS if stage.get(key) is not None]
    other = [key for key in stage if key not in (*objects_of.OBJECTS, *_HEAD, "dir", *names)]
    if objects_given or other:
        raise RecipeError(
            f"{[*objects_given, *other][0]!r}: the recipe has several stages, so say which one: "
            f"{names[0]}={{'learner': {{'max_steps': 3}}}}; stages: {', '.join(names)}"
        )
    shared = {key: stage[key] for key in (*_HEAD, "dir") if key in stage}
    for one in names:
        if not isinstance(stage.get(one, {}), Mapping):
            raise RecipeError(f"{one} = {stage[one]!r:.60}: it should be a dict of settings")
    found = [merged(one["kind"], dict(one), stage.get(one["name"], {})) for one in started]
    found[0] = merged(found[0]["kind"], found[0], shared)
    return found


def stage_of(
    given: Given, folder: Path, kind: str, stage: Tree, tree: Tree, earlier: Sequence[Tree]
) -> Tree:
    """One stage of a recipe, from the keywords of a call. tree: the stage to start from."""
    kind = _kind_of(stage.pop("kind", None), kind, tree)
    given_by_name = _objects_in(kind, stage)
    name = str(stage.pop("name", tree.get("name", kind)))
    tree |= {"kind": kind, "name": name}
    _with_models(given, folder, tree, given_by_name, earlier)
    rewards, weights = given_by_name.get("rewards"), given_by_name.get("reward_weights")
    if rewards is not None:
        tree["rewards"] = objects_of.reward_entries(given, rewards, weights)
    elif weights is not None:
        raise RecipeError("reward_weights goes with rewards=[…], which the call does not have")
    tree = merged(kind, tree, objects_of.callables(given, stage))
    return _with_data(given, tree, given_by_name.get("dataset"), given_by_name.get("eval_dataset"))


def _kind_of(wanted: Any, called_as: str, tree: Tree) -> str:
    """The kind of a stage: what the call says, the function that was called, or the recipe's."""
    kind = wanted or called_as or tree.get("kind", "rl")
    if kind not in STAGES:
        raise RecipeError(unknown_name("kind", str(kind), STAGES))
    if called_as and kind != called_as:
        raise RecipeError(
            f"kind = {kind!r}, and this function runs stages of kind {called_as!r}; "
            "grpo.pipeline([dict(kind=…, …)]) runs any"
        )
    if tree and tree["kind"] != kind:
        raise RecipeError(
            f"the recipe has a stage of kind {tree['kind']!r}, and grpo.train runs kind 'rl'; "
            "leave out the recipe, or run it with `grpo train`"
        )
    return kind


def _objects_in(kind: str, stage: Tree) -> Tree:
    """The arguments of a stage that are no settings, taken out of `stage`. Raises RecipeError.

    `model={"lora": {"rank": 8}}` is a section of settings, and stays.
    """
    if kind == "eval" and "model" in stage:  # `grpo.evaluate` takes one or several
        stage["models"] = stage.pop("model")
    names = [name for name in objects_of.OBJECTS if not isinstance(stage.get(name), Mapping)]
    found = {name: stage.pop(name) for name in names if stage.get(name) is not None}
    for name in names:
        stage.pop(name, None)
    wrong = [name for name in found if name not in objects_of.TAKEN[kind]]
    if wrong:
        raise RecipeError(
            f"a stage of kind {kind!r} takes no {wrong[0]}; it takes "
            f"{', '.join(objects_of.TAKEN[kind]) or 'settings only'}"
        )
    for name in ("dataset", "eval_dataset", "rewards"):
        if name in stage and name in objects_of.TAKEN[kind]:
            found[name] = stage.pop(name)
    return found


def _with_models(
    given: Given, folder: Path, tree: Tree, found: Tree, earlier: Sequence[Tree]
) -> None:
    """Put the models of a call into `tree`; without one, that of the stage before."""
    model, tokenizer = found.get("model"), found.get("tokenizer")
    if model is None and earlier and "model" not in tree:
        left = [one["name"] for one in earlier if one["kind"] in LEAVES["model"]]
        model = f"stage:{left[-1]}" if left and "model" in objects_of.TAKEN[tree["kind"]] else None
    if "models" in found:
        models = found["models"]
        listed = list(cast("list[Any]", models)) if isinstance(models, list | tuple) else [models]
        named = "model" if len(listed) == 1 else "model_{}"
        tree["models"] = [
            objects_of.model_entry(given, folder, one, tokenizer, named.format(i))
            for i, one in enumerate(listed, 1)
        ]
    elif model is not None:
        path = objects_of.model_entry(given, folder, model, tokenizer, "model")
        tree["model"] = {**tree.get("model", {}), "path": path}
    elif tokenizer is not None:
        raise RecipeError("tokenizer goes with model=, which the call does not have")
    if "teacher" in found:
        path = objects_of.model_entry(given, folder, found["teacher"], None, "teacher")
        tree["teacher"] = {**tree.get("teacher", {}), "path": path}


def _with_data(given: Given, tree: Tree, dataset: Any, eval_dataset: Any) -> Tree:
    """`tree` with the rows that the call was given, if any."""
    if dataset is None and eval_dataset is not None:
        raise RecipeError("eval_dataset goes with dataset=, which the call does not have")
    if dataset is None:
        return tree
    data: Tree = tree.setdefault("data", {})
    if tree["kind"] == "sft":
        data["path"] = objects_of.rows_entry(given, dataset)
        return tree
    args: Tree = data.pop("args", {})
    if tree["kind"] == "eval":  # every row is asked
        args.setdefault("heldout_fraction", 1.0)
    data |= objects_of.tasks_entry(given, dataset, eval_dataset, args)
    counts = tree["kind"] == "eval" and "num_tasks" not in tree
    table = objects_of.table_of(given, data) if counts or "template" not in data else None
    if table is None:
        return tree
    if counts:
        tree["num_tasks"] = table.size("heldout")
    if "template" not in data:
        first = next(task for tasks in table.tasks.values() for task in tasks)
        data["template"] = "raw" if isinstance(first.prompt, str) else "chat"
    return tree
