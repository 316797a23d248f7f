"""Objectives: what one token of a completion contributes, and what it is divided by.

    loss = sum over tokens of  weight * (keep * correction * token_loss + beta * KL)
           - entropy_coef * mean entropy

`token_loss` is a pure function of `LossInputs`, the trained tokens of a micro-batch laid flat
(`grpo/token_losses.py`). `weight` carries every denominator and is decided before any forward pass
(`grpo/weighted_rows.py`) from totals over the whole optimizer step: all rows, including those
dropped because they teach nothing, on all ranks. Which tokens are kept for their entropy, and the
bonus's denominator, are decided over the same step. So the gradient does not depend on how the batch was
cut into micro-batches.

    name      token loss          ratio of   weight of a token
    grpo      clipped surrogate   token      1 / (T_i * N)
    dr_grpo   clipped surrogate   token      1 / (max_completion_length * N)
    dapo      clipped surrogate   token      1 / (trained tokens of the step)
    bnpo      clipped surrogate   token      1 / (tokens of the micro-batch) / (micro-batches);
                                             depends on the cut and on dead rows, which are kept
    gspo      clipped surrogate   sequence   1 / (T_i * N)
    luspo     clipped surrogate   sequence   1 / N
    cispo     cispo               token      1 / (trained tokens of the step)
    sapo      sapo                token      1 / (T_i * N)
    vespo     vespo               sequence   1 / (trained tokens of the step)

T_i: trained tokens of completion i. N: scored completions of the step. Papers, TRL's names and when
to use which: docs/objectives.md. A new objective is one function over `LossInputs`, a line in
`OBJECTIVES` and one in `schema.LOSS_TYPES`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, get_args

from grpo import plugins
from grpo.errors import RecipeError, unknown_name
from grpo.token_losses import (
    Clip,
    KlEstimator,
    Level,
    LossInputs,
    TokenLossResult,
    cispo,
    clipped_surrogate,
    kl_penalty,
    off_policy_mask,
    sapo,
    vespo,
)


@dataclass(frozen=True)
class Totals:
    """What the weights of one optimizer step are made of, over all ranks."""

    rows: int
    tokens: int


TokenLoss = Callable[..., TokenLossResult]

# Constants that any objective takes from algorithm.loss_args, beside its token loss's own.
SHARED_ARGS = (
    "kl_estimator",
    "importance_sampling_level",
    "off_policy_mask_threshold",
    "top_entropy_quantile",
    "entropy_coef",
)


def _where(name: str) -> str:
    return f"algorithm.loss_args.{name}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A token loss with the rule for its weights, and what every objective may add to it.

    token_loss    (LossInputs, Clip) -> policy term [N] and metrics [N]; neither KL nor entropy
    weight        (length, totals, max_completion_length) -> weight of each of the `length` trained
                  tokens of one completion
    per_micro_batch   the learner divides by what the micro-batch holds instead; keeps dead rows
    corrects      the token loss uses `LossInputs.correction` itself
    fixed         names in SHARED_ARGS that are this objective's own and cannot be set

    kl_estimator                k1, k2 or k3, see `kl_estimate`
    importance_sampling_level   what the ratio is of (GSPO, 2507.18071)
    off_policy_mask_threshold   see `off_policy_mask`; None: off
    top_entropy_quantile        share of the step's tokens, those with the highest entropy, that the
                                policy term keeps ("Beyond the 80/20 rule", 2506.01939); 1: all
    entropy_coef                factor of the mean entropy of those tokens, which is subtracted
    """

    token_loss: TokenLoss
    weight: Callable[[int, Totals, int], float]
    per_micro_batch: bool = False
    corrects: bool = False
    fixed: tuple[str, ...] = ()
    kl_estimator: KlEstimator = "k3"
    importance_sampling_level: Level = "token"
    off_policy_mask_threshold: float | None = None
    top_entropy_quantile: float = 1.0
    entropy_coef: float = 0.0

    def __post_init__(self) -> None:
        quantile, threshold = self.top_entropy_quantile, self.off_policy_mask_threshold
        for name, valid in (("kl_estimator", KlEstimator), ("importance_sampling_level", Level)):
            if getattr(self, name) not in get_args(valid):
                choices = get_args(valid)
                raise RecipeError(unknown_name(_where(name), str(getattr(self, name)), choices))
        if not _is_number(quantile) or not 0 <= quantile <= 1:
            raise RecipeError(
                f"{_where('top_entropy_quantile')} = {quantile!r}: it is the share of tokens kept, "
                "a number from 0 to 1"
            )
        if threshold is not None and not (_is_number(threshold) and threshold > 0):
            raise RecipeError(
                f"{_where('off_policy_mask_threshold')} = {threshold!r}: it is a number of nats "
                "per token above 0, or null"
            )
        if not _is_number(self.entropy_coef):
            raise RecipeError(f"{_where('entropy_coef')} = {self.entropy_coef!r}: it is a number")

    def __call__(self, inputs: LossInputs, clip: Clip) -> TokenLossResult:
        """The loss of each token [N], without its weight and without the entropy bonus."""
        inputs = replace(inputs, importance_sampling_level=self.importance_sampling_level)
        loss, metrics = self.token_loss(inputs, clip)
        if self.off_policy_mask_threshold is not None:
            keep = off_policy_mask(inputs, self.off_policy_mask_threshold)
            loss = loss * keep
            metrics["off_policy_mask/masked_mean"] = 1 - keep
        if inputs.high_entropy is not None:
            loss = loss * inputs.high_entropy
        if inputs.correction is not None and not self.corrects:
            loss = loss * inputs.correction
        if inputs.logp_ref is not None:  # neither masked nor corrected, as in TRL
            kl = kl_penalty(inputs.ratio(), inputs, self.kl_estimator)
            loss = loss + clip.beta * kl
            metrics["kl"] = kl.detach()
        if inputs.entropy is not None:
            metrics["entropy"] = inputs.entropy.detach()
        return loss, metrics

    def loss(self, inputs: LossInputs, clip: Clip) -> TokenLossResult:
        """What the micro-batch adds to the loss of the step, and per-token quantities [N]."""
        loss_N, metrics = self(inputs, clip)
        loss = (inputs.weights * loss_N).sum()
        if self.entropy_coef:
            assert inputs.entropy is not None
            assert inputs.entropy_weights is not None
            loss = loss - self.entropy_coef * (inputs.entropy_weights * inputs.entropy).sum()
        return loss, metrics


def per_completion(length: int, totals: Totals, max_completion_length: int) -> float:
    """1 / (T_i * N): each completion counts the same, whatever its length."""
    return 1.0 / (length * totals.rows)


def per_budget(length: int, totals: Totals, max_completion_length: int) -> float:
    """1 / (max_completion_length * N): a constant, so that length is neither paid nor punished."""
    return 1.0 / (max_completion_length * totals.rows)


def per_token(length: int, totals: Totals, max_completion_length: int) -> float:
    """1 / (tokens of the optimizer step): each token counts the same."""
    return 1.0 / totals.tokens


def per_row(length: int, totals: Totals, max_completion_length: int) -> float:
    """1 / N: a completion counts by its length."""
    return 1.0 / totals.rows


_sequence = partial(
    Objective,
    token_loss=clipped_surrogate,
    importance_sampling_level="sequence",
    fixed=("importance_sampling_level",),
)

OBJECTIVES: dict[str, Objective] = {
    "grpo": Objective(token_loss=clipped_surrogate, weight=per_completion),
    "dr_grpo": Objective(token_loss=clipped_surrogate, weight=per_budget),
    "dapo": Objective(token_loss=clipped_surrogate, weight=per_token),
    "bnpo": Objective(token_loss=clipped_surrogate, weight=per_token, per_micro_batch=True),
    "gspo": _sequence(weight=per_completion),
    "luspo": _sequence(weight=per_row),
    "cispo": Objective(token_loss=cispo, weight=per_token),
    "sapo": Objective(token_loss=sapo, weight=per_completion),
    "vespo": Objective(
        token_loss=vespo,
        weight=per_token,
        corrects=True,
        fixed=("importance_sampling_level",),
    ),
}


def _own(objective: Objective) -> partial[TokenLossResult]:
    """The token loss without the (inputs, clip) it is called with: what follows can be set."""
    return partial(objective.token_loss, None, None)


def settable(objective: Objective) -> set[str]:
    """The names that `algorithm.loss_args` may have for `objective`."""
    return {*SHARED_ARGS, *inspect.signature(_own(objective)).parameters} - set(objective.fixed)


def find_objective(
    loss_type: str | Objective, loss_args: Mapping[str, Any] | None = None
) -> Objective:
    """The objective of that name or plug-in address (or the one given), with `loss_args` set.

    A plug-in is an `Objective`, or a token loss alone, whose tokens then weigh as in `dapo`.
    Raises RecipeError or PluginError.
    """
    objective, name = loss_type, "your own"
    if isinstance(objective, str):
        objective, name = _named(objective), objective
    args = dict(loss_args or {})
    valid = settable(objective)
    for arg in args:
        if arg not in valid:
            raise RecipeError(unknown_name(f"argument of algorithm.loss_type = {name}", arg, valid))
    shared = {arg: args.pop(arg) for arg in SHARED_ARGS if arg in args}
    plugins.check_args("objective", name, _own(objective), args)
    if name in OBJECTIVES:
        for arg, value in args.items():
            if not (_is_number(value) and value > 0):
                raise RecipeError(f"{_where(arg)} = {value!r}: it is a number above 0")
    if args:
        shared["token_loss"] = partial(objective.token_loss, **args)
    return replace(objective, **shared)


def _named(loss_type: str) -> Objective:
    if plugins.is_address(loss_type):
        found = plugins.find("objective", loss_type, OBJECTIVES)
        if isinstance(found, Objective):
            return found
        return Objective(token_loss=found, weight=per_token)
    if loss_type not in OBJECTIVES:
        raise RecipeError(unknown_name("algorithm.loss_type", loss_type, OBJECTIVES))
    return OBJECTIVES[loss_type]


def keeps_dead_rows(objective: Objective, beta: float) -> bool:
    """Whether rows with advantage 0 still matter.

    They do for the KL term, for a denominator that depends on the cut, for the entropy bonus, and
    for the entropies among which the highest are chosen.
    """
    return (
        beta != 0.0
        or objective.per_micro_batch
        or objective.entropy_coef != 0.0
        or objective.top_entropy_quantile < 1.0
    )
