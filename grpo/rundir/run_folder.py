"""The folder of a run: its settings, the folders of its stages, the model it has left."""

from __future__ import annotations

from pathlib import Path

from grpo.config.config import from_dict, texts
from grpo.config.schema import Recipe
from grpo.config.schema.recipe import LEAVES
from grpo.errors import RunError, UnknownSettingError
from grpo.outside.code.objects import is_object
from grpo.outside.files import durable
from grpo.outside.files.yaml_tree import Tree
from grpo.rundir import finished

SETTINGS = "resolved.json"
NO_RUN = "{!r} is not a run: there is no resolved.json in it"


def recipe_of(path: str | Path) -> Recipe:
    """The recipe of the run in a folder; what a finished stage needed may be gone. RunError."""
    folder = Path(path).expanduser()
    if not (folder / SETTINGS).is_file():
        raise RunError(NO_RUN.format(str(path)))

    def is_done(recipe: Recipe, name: str) -> bool:
        return (stage_folder(recipe, folder, name) / finished.SUMMARY).is_file()

    try:
        return from_dict(durable.read_json(folder / SETTINGS), is_done=is_done)
    except UnknownSettingError as error:
        raise RunError(
            f"{folder / SETTINGS}: {error} A run goes on with the version that began it; with this "
            "one start a new run from a checkpoint (model.path=FOLDER)."
        ) from error


def objects_in(settings: Tree) -> list[tuple[str, str]]:
    """(dotted setting, object:NAME) of every Python object in the settings of a recipe."""
    return [(setting, text) for setting, text in texts(settings) if is_object(text)]


def stage_folder(recipe: Recipe, folder: Path, name: str) -> Path:
    """Where stage `name` of the run in `folder` writes: `folder` itself if it is the only one."""
    return folder if len(recipe.stages) == 1 else folder / name


def model_path(model: str) -> str:
    """`model` itself, or the last model that the run in this folder has left. Raises RunError."""
    folder = Path(model)
    if not (folder / SETTINGS).is_file():
        return model
    recipe = recipe_of(folder)
    for stage in reversed(recipe.stages):
        left = stage_folder(recipe, folder, stage.name) / "model"
        if stage.kind in LEAVES["model"] and left.is_dir():
            return str(left)
    raise RunError(
        f"the run {model!r} has no trained model yet. Finish it with `grpo train --resume {model}`,"
        " or name one of its checkpoints"
    )
