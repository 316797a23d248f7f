"""`grpo eval`: find out which form is meant, and check its options."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from grpo.commands import out_of_memory
from grpo.commands.options import check_evaluated, check_form, given
from grpo.config import config
from grpo.config.schema import Recipe
from grpo.errors import RecipeError
from grpo.evaluation.builtin_tasks import TASKS
from grpo.outside.files.durable import read_json
from grpo.outside.terminal.streams import write_data


def main(arguments: Namespace) -> int:
    """Evaluate as the command line says, and print what came out; 0. Raises GrpoError."""
    baseline = arguments.baseline
    if baseline and "=" in baseline and not Path(baseline).exists():
        # argparse takes the setting after an option for its value
        arguments.overrides, arguments.baseline = [*arguments.overrides, baseline], ""
    if arguments.tasks is not None or arguments.data:
        _tasks(arguments)
    else:
        _heldout(arguments)
    return 0


def _heldout(arguments: Namespace) -> None:
    """Evaluate on the held-out tasks of a recipe, or of the recipe of a run."""
    recipe = _recipe(arguments)
    names = [stage.name for stage in recipe.stages]
    less: list[str] = []
    for stage in [stage for stage in recipe.stages if stage.kind == "rl"][-1:]:
        check_evaluated(arguments.overrides, names, stage.name, bool(stage.eval.rewards))
        less = out_of_memory.of_evaluation(stage, len(names) > 1)
    from grpo.commands.eval_recipe import compare_model, evaluate_model  # imports torch

    with out_of_memory.explained_by(*less):
        if arguments.baseline is not None:
            compare_model(arguments.model, recipe, arguments.baseline)
            return
        write_data(json.dumps(evaluate_model(arguments.model, recipe), indent=2) + "\n")


def _recipe(arguments: Namespace) -> Recipe:
    run = Path(arguments.model) / "resolved.json"
    if arguments.recipe is not None:
        check_form("eval", "grpo eval MODEL --recipe RECIPE", arguments)
        return config.load(arguments.recipe, arguments.overrides)
    if run.is_file():
        check_form("eval", "grpo eval RUN", arguments)
        return config.from_dict(read_json(run), arguments.overrides)
    raise RecipeError(
        f"{arguments.model!r} is not the folder of a run, so eval needs --tasks NAME,…, "
        "--data FILE --rewards NAME,… or --recipe RECIPE to know the tasks and rewards."
    )


def _tasks(arguments: Namespace) -> None:
    """Evaluate on built-in tasks, and on those of files."""
    if arguments.recipe is not None or arguments.overrides:
        named = "--recipe" if arguments.recipe is not None else repr(arguments.overrides[0])
        raise RecipeError(f"eval takes --tasks or a recipe, not both; leave out {named}.")
    check_form("eval", "grpo eval MODEL --tasks NAME,…", arguments)
    data = _files(arguments.data, own=arguments.tasks is None)
    from grpo.commands.eval_tasks import Asked, evaluate_tasks  # imports torch

    asked = {name: getattr(arguments, name) for name in given(arguments)}
    model = asked.pop("model")
    asked |= {"tasks": arguments.tasks if arguments.tasks is not None else tuple(data)}
    asked |= {"data": data, "engine_args": config.parse_args(arguments.engine_args)}
    asked.pop("verb")
    if "template" in asked:
        asked["templates"] = asked.pop("template")
    if arguments.baseline == "":
        from grpo.commands.eval_recipe import started_from

        asked["baseline"] = started_from(model)
    ask = Asked(**asked)
    args = dict(ask.engine_args)
    less = out_of_memory.of_tasks(ask.engine, args, ask.max_tokens or 0, ask.dtype)
    with out_of_memory.explained_by(*less):
        evaluate_tasks(model, ask)


def _files(words: Sequence[str], own: bool) -> dict[str, str]:
    """What `--data FILE` and `--data TASK=FILE` name: task -> file.

    own: whether FILE alone makes a task, which has the file's name.
    """
    data: dict[str, str] = {}
    for word in words:
        name, equals, file = word.partition("=")
        if own and (not equals or Path(word).is_file()):
            name, file = Path(word).name.partition(".")[0], word
            if name in TASKS:
                raise RecipeError(
                    f"--data {word}: {name!r} is a built-in task. For its published columns write "
                    f"--data {name}={word}, for rows of your own --data my-{name}={word}."
                )
        elif not (name and equals and file):
            raise RecipeError(f"--data takes TASK=FILE.jsonl with --tasks, not {word!r}.")
        if name in data:
            raise RecipeError(f"--data names task {name!r} twice: {data[name]!r} and {file!r}.")
        data[name] = file
    return data
