"""Refuse passwords and keys in a recipe, because a run keeps all its settings on disk.

A run has to be resumed with the settings it began with, so they cannot be redacted in its
resolved.json, as they are in messages (`grpo.errors.printable.redacted`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from grpo.config.schema import Recipe
from grpo.errors import RecipeError
from grpo.errors.printable import HIDDEN, redacted


def check_secrets(recipe: Recipe) -> None:
    """Raise RecipeError, naming the setting, for a password or key in a recipe."""
    settings = recipe.model_dump(mode="json")
    stages = settings.pop("stages")
    found = list(_differing("", settings, redacted(settings, certain=True)))
    for stage in stages:
        where = f"{stage['name']}." if len(stages) > 1 else ""
        found += _differing(where, stage, redacted(stage, certain=True))
    for setting, shown in found:
        raise RecipeError(
            f"{setting} = {shown!r} holds a password or key, which the run would keep in its "
            "resolved.json for all to read: have it read from an environment variable (judge and "
            "endpoint take its name as api_key_env, a plug-in of yours asks os.environ), or write "
            f"it to a file that the setting names instead ({HIDDEN} stands for it here)"
        )


def _differing(where: str, value: Any, other: Any) -> Iterator[tuple[str, str]]:
    """(setting, redacted text) of each text that is not its own redacted form."""
    if isinstance(value, Mapping):
        for key, item in cast("Mapping[str, Any]", value).items():
            yield from _differing(f"{where}{key}.", item, other[key])
    elif isinstance(value, list):
        for index, item in enumerate(cast("list[Any]", value)):
            yield from _differing(f"{where}{index}.", item, other[index])
    elif value != other:
        yield where.removesuffix("."), other
