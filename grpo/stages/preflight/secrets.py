"""Refuse passwords and keys in a recipe, because a run keeps all its settings on disk.

A run has to be resumed with the settings it began with, so they cannot be redacted in its
resolved.json, as they are in messages (`grpo.errors.printable.redacted`).
"""

from __future__ import annotations

from grpo.config.config import resolved, texts
from grpo.config.schema import Recipe
from grpo.errors import RecipeError
from grpo.errors.printable import HIDDEN, redacted


def check_secrets(recipe: Recipe) -> None:
    """Raise RecipeError, naming the setting, for a password or key in a recipe."""
    settings = resolved(recipe)
    stages = settings.pop("stages")
    parts = [("", settings)]
    parts += [(f"{stage['name']}." if len(stages) > 1 else "", stage) for stage in stages]
    for where, part in parts:
        pairs = zip(texts(part), texts(redacted(part, certain=True)), strict=True)
        for (setting, text), (_, shown) in pairs:
            if text != shown:
                raise RecipeError(
                    f"{where}{setting} = {shown!r} holds a password or key, which the run would "
                    "keep in its resolved.json for all to read: have it read from an environment "
                    "variable (judge and endpoint take its name as api_key_env, a plug-in of yours "
                    "asks os.environ), or write it to a file that the setting names instead "
                    f"({HIDDEN} stands for it here)"
                )
