"""`grpo train`: run a recipe, or go on with a run that was interrupted.

What any stage would refuse is found before torch is loaded, which takes seconds.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace

from grpo import config, preflight
from grpo.errors import RecipeError
from grpo.options import check_folder, check_form


def main(arguments: Namespace) -> int:
    """Train as the command line says; 0. Raises GrpoError."""
    if arguments.resume is not None:
        _resume(arguments)
        return 0
    check_form("train", "grpo train RECIPE", arguments)
    if arguments.recipe is None:
        raise RecipeError("train needs a RECIPE, or --resume RUN.")
    recipe = config.load(arguments.recipe, arguments.overrides)
    if os.environ.get("RANK", "0") == "0":
        print(f"{recipe.name} -> {recipe.run_dir}", file=sys.stderr, flush=True)
    preflight.first(recipe)
    from grpo.ray_learners import train

    train(recipe)
    return 0


def _resume(arguments: Namespace) -> None:
    if arguments.recipe is not None:
        raise RecipeError(
            f"--resume continues a run with the settings it has; leave out {arguments.recipe!r}"
            + (" and the overrides." if arguments.overrides else ".")
        )
    folder = check_folder(arguments.resume, "--resume")
    from grpo.ray_learners import resume

    resume(folder, accept_changes=bool(arguments.accept_changes))
