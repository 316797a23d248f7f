"""Read the recipe or the run that a command line names, before torch is imported."""

from __future__ import annotations

import os
import sys
from argparse import Namespace

from grpo.commands.options import check_folder, check_form
from grpo.config import config
from grpo.config.schema import Recipe
from grpo.errors import RecipeError
from grpo.stages import preflight


def recipe(arguments: Namespace) -> Recipe:
    """The recipe with its settings. Raises RecipeError."""
    return config.load(arguments.recipe, arguments.overrides)


def recipe_to_train(arguments: Namespace) -> Recipe:
    """The recipe of `grpo train`, after the checks that need no torch. Raises GrpoError."""
    check_form("train", "grpo train RECIPE", arguments)
    if arguments.recipe is None:
        raise RecipeError("train needs a RECIPE, or --resume RUN.")
    found = recipe(arguments)
    if os.environ.get("RANK", "0") == "0":
        print(f"{found.name} -> {found.run_dir}", file=sys.stderr, flush=True)
    preflight.first(found)
    return found


def folder_to_resume(arguments: Namespace) -> str:
    """The run that `grpo train --resume` continues. Raises RecipeError and RunError."""
    if arguments.recipe is not None:
        raise RecipeError(
            f"--resume continues a run with the settings it has; leave out {arguments.recipe!r}"
            + (" and the overrides." if arguments.overrides else ".")
        )
    return check_folder(arguments.resume, "--resume")
