"""The result of checking a recipe, and how its errors name the stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from grpo.config.schema import AnyStage, Recipe
from grpo.errors import GrpoError


@dataclass(frozen=True, kw_only=True)
class Found:
    """notes: sentences for whoever starts the recipe. heldout: stage -> number of held-out tasks.

    heldout has the stages that ask any, and whose tasks and tokenizer are on this machine.
    """

    notes: tuple[str, ...] = ()
    heldout: Mapping[str, int] = field(default_factory=dict[str, int])


def prefix(recipe: Recipe, stage: AnyStage) -> str:
    """What stands before a setting of the stage: "STAGE.", or "" for a recipe of one stage."""
    return f"{stage.name}." if len(recipe.stages) > 1 else ""


@contextmanager
def said(recipe: Recipe, stage: AnyStage) -> Iterator[None]:
    """Errors inside begin with the stage, unless they name a setting of it already."""
    where = prefix(recipe, stage)
    try:
        yield
    except GrpoError as error:
        if not where or str(error).startswith(where):
            raise
        raise type(error)(f"stage {stage.name}: {error}") from error
