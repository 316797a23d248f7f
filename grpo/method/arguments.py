"""Arguments that a recipe sets for an estimator or an objective: defaults, and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from grpo.errors import RecipeError, unknown_name


def is_number(value: Any) -> bool:
    """Whether it is a finite int or float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a value has to be, in words and as a test; `choices` are the only valid names."""

    words: str = ""
    holds: Callable[[Any], bool] = bool
    choices: tuple[str, ...] = ()

    def check(self, setting: str, value: Any) -> None:
        """Raises RecipeError for a value that is not of this kind."""
        if self.choices:
            if value not in self.choices:
                raise RecipeError(unknown_name(setting, str(value), self.choices))
        elif not self.holds(value):
            raise RecipeError(f"{setting} = {value!r}: it is {self.words}")


NUMBER = Kind(words="a number", holds=is_number)
POSITIVE = Kind(words="a number above 0", holds=lambda v: is_number(v) and v > 0)
COUNT = Kind(words="a whole number above 0", holds=lambda v: type(v) is int and v > 0)
SHARE = Kind(
    words="the share of tokens kept, a number from 0 to 1",
    holds=lambda v: is_number(v) and 0 <= v <= 1,
)
THRESHOLD = Kind(
    words="a number of nats per token above 0, or null",
    holds=lambda v: v is None or (is_number(v) and v > 0),
)

# What algorithm.loss_args may set for any objective: fields of `Objective`, with their defaults.
SHARED = {
    "kl_estimator": Kind(choices=("k1", "k2", "k3")),
    "importance_sampling_level": Kind(choices=("token", "sequence")),
    "off_policy_mask_threshold": THRESHOLD,
    "top_entropy_quantile": SHARE,
    "entropy_coef": NUMBER,
}


@dataclass(frozen=True)
class Argument:
    """A keyword argument of a built-in: what it is where a recipe does not set it, and its kind."""

    default: Any
    kind: Kind


def check_names(what: str, args: Mapping[str, Any], valid: Collection[str]) -> None:
    """Refuse arguments that are not among the valid ones. Raises RecipeError.

    check_names("algorithm.advantage = 'pass@k'", {"n": 4}, ["k"])
    """
    for name in args:
        if name not in valid:
            said = unknown_name(f"argument of {what}:", name, valid) if valid else ""
            raise RecipeError(said or f"{what} takes no arguments, and was given {name!r}")


def with_defaults(
    setting: str, arguments: Mapping[str, Argument], args: Mapping[str, Any]
) -> dict[str, Any]:
    """Every argument of a built-in: as given, else its default. Raises RecipeError for a value.

    setting: where a recipe has them, such as algorithm.loss_args.
    """
    for name, value in args.items():
        if name in arguments:
            arguments[name].kind.check(f"{setting}.{name}", value)
    return {name: argument.default for name, argument in arguments.items()} | dict(args)
