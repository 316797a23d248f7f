"""`GRPOConfig` with TRL's names and TRL's defaults, checked when it is made."""

from __future__ import annotations

import enum
import inspect
import json
import math
import os
from collections.abc import Mapping
from typing import Any, cast

from grpo.config.trl.field import Field
from grpo.config.trl.grpo_fields import ELSEWHERE, FIELDS
from grpo.errors import RecipeError, did_you_mean

_SCALES = {True: "group", False: "none"}


class GRPOConfig:
    """The settings of a GRPO run as TRL 1.16 names them, each at TRL's default unless given.

        args = GRPOConfig(output_dir="out", learning_rate=1e-5, max_steps=100)

    Every field of TRL's class is an attribute. What becomes of each is in docs/trl.md: it is
    honored, or changes no number, or is refused when a recipe is made of it
    (`grpo.config.trl.convert.to_recipe`). Raises RecipeError for an unknown name, with the names
    that are near, and for a value of another type.
    """

    def __init__(self, **fields: Any) -> None:
        for name, field in FIELDS.items():
            default = field.default
            vars(self)[name] = list(default) if isinstance(default, list) else default
        for name, value in fields.items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a field. Raises RecipeError."""
        if name not in FIELDS:
            known = ELSEWHERE.get(name)
            hint = f": {known}." if known else f".{did_you_mean(name, sorted(FIELDS))}"
            raise RecipeError(f"GRPOConfig has no field {name!r}{hint}")
        vars(self)[name] = checked(name, FIELDS[name], value)

    def __getattr__(self, name: str) -> Any:
        """Only for names that are no fields, and for type checkers."""
        raise AttributeError(f"GRPOConfig has no field {name!r}{did_you_mean(name, list(FIELDS))}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GRPOConfig) and vars(self) == vars(other)

    __hash__ = None  # pyright: ignore[reportAssignmentType]  # fields can be set

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in changed(self).items())
        return f"GRPOConfig({given})"

    def to_dict(self) -> dict[str, Any]:
        """Every field with its value, the token of the hub left out, as TRL has it."""
        return {k: v for k, v in vars(self).items() if k != "hub_token"}


_SIGNATURE = inspect.Signature(
    [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field.default)
        for name, field in FIELDS.items()
    ]
)
GRPOConfig.__signature__ = _SIGNATURE  # pyright: ignore[reportAttributeAccessIssue]  # for help()


def changed(config: GRPOConfig) -> dict[str, Any]:
    """The fields that are not at TRL's default."""
    return {
        name: value for name, value in vars(config).items() if not same(value, FIELDS[name].default)
    }


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal and of one kind: True is not 1, 0 is 0.0."""
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def checked(name: str, field: Field, value: Any) -> Any:
    """The value as plain data, if it is what the field takes. Raises RecipeError."""
    if isinstance(value, enum.Enum):  # transformers' SchedulerType and the like
        value = value.value
    if isinstance(value, os.PathLike):
        value = os.fspath(cast("os.PathLike[str]", value))
    if name == "scale_rewards" and isinstance(value, bool):
        value = _SCALES[value]
    if field.kind == "mapping" and isinstance(value, str) and value.startswith("{"):
        value = _json(name, value)
    if field.kind == "whole number" and isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None and field.default is None:
        return value
    if not _fits(field.kind, value):
        hint = _number_in(value) if field.kind in ("whole number", "number") else ""
        none = " or None" if field.default is None else ""
        what = field.kind if field.kind == "true or false" else f"a {field.kind}"
        raise RecipeError(f"{name} = {value!r} should be {what}{none}{hint}")
    return value


def _fits(kind: str, value: Any) -> bool:
    match kind:
        case "whole number":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            number = isinstance(value, int | float) and not isinstance(value, bool)
            return number and math.isfinite(value)
        case "true or false":
            return isinstance(value, bool)
        case "text":
            return isinstance(value, str)
        case "mapping":
            return isinstance(value, Mapping)
        case "list":
            return isinstance(value, list | tuple)
        case _:
            return True


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise RecipeError(f"{name} = {text!r} is not a mapping in JSON: {error}") from error


def _number_in(value: Any) -> str:
    """A hint for "1e-5", a number in quotes."""
    try:
        float(value)
    except (TypeError, ValueError):
        return ""
    return ", without quotes" if isinstance(value, str) else ""
