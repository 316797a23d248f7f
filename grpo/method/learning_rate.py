"""The learning rate of a step: a warm-up, then a curve, as a share of the peak.

    linear              falls to 0 at the last step
    cosine              half a wave down to 0; num_cycles: waves
    cosine_with_restarts  num_cycles waves that each begin at the peak
    cosine_with_min_lr  down to min_lr, or to min_lr_rate times the peak
    polynomial          (1 - progress) ** power, down to lr_end
    inverse_sqrt        1 / sqrt(steps after the warm-up, in timescales)

The curves and their arguments are those of transformers' schedulers of the same names. A curve is
a function of the step number, so it has no state. Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from grpo.errors import RecipeError
from grpo.method.arguments import check_names


@dataclass(frozen=True, kw_only=True)
class At:
    """Where a step is. step: from 0; peak: the learning rate that the curve is a share of."""

    step: int
    warmup: int
    steps: int
    peak: float

    @property
    def progress(self) -> float:
        """The share of the steps after the warm-up that are over."""
        return (self.step - self.warmup) / max(1, self.steps - self.warmup)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What follows the warm-up: share(at, **arguments), and the arguments with their defaults."""

    share: Callable[..., float]
    arguments: Mapping[str, float | None] = field(default_factory=dict[str, "float | None"])


def _constant(_: At) -> float:
    return 1.0


def _linear(at: At) -> float:
    return max(0.0, 1.0 - at.progress)


def _cosine(at: At, num_cycles: float) -> float:
    waves = min(1.0, at.progress) * num_cycles * 2.0
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * waves)))


def _restarts(at: At, num_cycles: float) -> float:
    if at.progress >= 1.0:
        return 0.0
    return 0.5 * (1.0 + math.cos(math.pi * ((num_cycles * at.progress) % 1.0)))


def _floor(at: At, min_lr: float | None, min_lr_rate: float | None, num_cycles: float) -> float:
    if (min_lr is None) == (min_lr_rate is None):
        raise RecipeError("cosine_with_min_lr needs one of min_lr and min_lr_rate")
    floor = min_lr / at.peak if min_lr is not None else min_lr_rate or 0.0
    share = 0.5 * (1.0 + math.cos(math.pi * num_cycles * 2.0 * at.progress))
    return max(0.0, share * (1.0 - floor) + floor)


def _polynomial(at: At, lr_end: float, power: float) -> float:
    if lr_end >= at.peak:
        raise RecipeError(f"lr_end = {lr_end} should be below the learning rate, {at.peak}")
    left = max(0.0, 1.0 - at.progress)
    return ((at.peak - lr_end) * left**power + lr_end) / at.peak


def _inverse_sqrt(at: At, timescale: float | None) -> float:
    scale = timescale or at.warmup or 10_000
    return 1.0 / math.sqrt((at.step + scale - at.warmup) / scale)


CURVES: dict[str, Curve] = {
    "constant": Curve(share=_constant),
    "linear": Curve(share=_linear),
    "cosine": Curve(share=_cosine, arguments={"num_cycles": 0.5}),
    "cosine_with_restarts": Curve(share=_restarts, arguments={"num_cycles": 1}),
    "cosine_with_min_lr": Curve(
        share=_floor, arguments={"min_lr": None, "min_lr_rate": None, "num_cycles": 0.5}
    ),
    "polynomial": Curve(share=_polynomial, arguments={"lr_end": 1e-7, "power": 1.0}),
    "inverse_sqrt": Curve(share=_inverse_sqrt, arguments={"timescale": None}),
}


def check_curve(name: str, arguments: Mapping[str, Any], at: At) -> None:
    """Refuse arguments that the curve `name` does not take or cannot use. Raises RecipeError.

    at: any step of the schedule.
    """
    check_names(f"learner.lr_scheduler_type = {name!r}", arguments, CURVES[name].arguments)
    for key, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise RecipeError(f"learner.lr_scheduler_kwargs.{key} = {value!r}: 0 or more")
    try:
        share_of_peak(name, arguments, at)
    except RecipeError as error:
        raise RecipeError(f"learner.lr_scheduler_kwargs: {error}") from error


def share_of_peak(name: str, arguments: Mapping[str, Any], at: At) -> float:
    """The share of the peak at a step after the warm-up. Raises RecipeError."""
    curve = CURVES[name]
    return curve.share(at, **{**curve.arguments, **arguments})
