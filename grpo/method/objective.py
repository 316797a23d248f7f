"""Objectives: what one token of a completion contributes to the loss, and what it is divided by.

    loss = sum over tokens of  weight * (keep * correction * token_loss + beta * KL)
           - entropy_coef * mean entropy

`token_loss` is a pure function of `LossInputs`, the trained tokens of a micro-batch laid flat
(`grpo/method/losses.py`, which computes the rest of this formula as well). `weight` carries every
denominator. It is decided before any forward pass (`grpo/method/weighted_rows.py`) from totals over
the whole optimizer step: all rows on all ranks, including those that are dropped because they teach
nothing. Which tokens are kept for their entropy, and the denominator of the entropy bonus, are
decided over the same step. So the gradient does not depend on how the batch was cut into
micro-batches.

The built-in objectives stand in `grpo/method/table.py`. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from grpo.method.arguments import Argument
from grpo.types import Group

KlEstimator = Literal["k1", "k2", "k3"]
Level = Literal["token", "sequence"]


@dataclass(frozen=True, kw_only=True)
class Totals:
    """What the weights of one optimizer step are made of, over all ranks."""

    rows: int  # scored completions
    tokens: int  # trained tokens


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


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A token loss with the rule for its weights, and what every objective may add to it.

    token_loss    (LossInputs, Clip) -> policy term [N] and metrics [N], without KL and entropy; a
                  name is a function of `grpo/method/losses.py`
    arguments     keyword arguments of the token loss that a recipe may set; of a function that is
                  given itself, its signature has them
    weight        (length, totals, max_completion_length) -> weight of each of the `length` trained
                  tokens of one completion
    columns       groups of the step -> name -> one number for each group, completion and token, as
                  `token_values.checked` takes them; the token loss reads `inputs.columns[name]`
    keeps_dead_rows   the loss of a token is not 0 where its advantage is 0
    per_micro_batch   the learner divides by what the micro-batch holds instead; keeps dead rows
    corrects      the token loss uses `LossInputs.correction` itself
    caps_ratio    `epsilon_high` is the largest ratio itself; a recipe has to set it
    unused        settings of the recipe's `algorithm` that the token loss does not read; a recipe
                  that sets one is refused
    fixed         names of `arguments.SHARED` that a recipe cannot set for this objective

    kl_estimator                k1, k2 or k3, see `losses.kl_estimate`
    importance_sampling_level   what the ratio is of (GSPO, 2507.18071)
    off_policy_mask_threshold   see `losses.off_policy_mask`; None: off
    top_entropy_quantile        share of the step's tokens, those with the highest entropy, that the
                                policy term keeps ("Beyond the 80/20 rule", 2506.01939); 1: all
    entropy_coef                factor of the mean entropy of those tokens, which is subtracted
    """

    token_loss: Callable[..., Any] | str
    arguments: Mapping[str, Argument] = field(default_factory=dict[str, Argument])
    weight: Callable[[int, Totals, int], float] = per_token
    columns: Callable[[Sequence[Group]], Mapping[str, Any]] | None = None
    keeps_dead_rows: bool = False
    per_micro_batch: bool = False
    corrects: bool = False
    caps_ratio: bool = False
    unused: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    kl_estimator: KlEstimator = "k3"
    importance_sampling_level: Level = "token"
    off_policy_mask_threshold: float | None = None
    top_entropy_quantile: float = 1.0
    entropy_coef: float = 0.0


def keeps_dead_rows(objective: Objective, beta: float) -> bool:
    """Whether rows with advantage 0 still matter.

    They do for the KL term, for a denominator that depends on the cut, for the entropy bonus, for
    the entropies among which the highest are chosen, and for an objective that says so.
    """
    return (
        beta != 0.0
        or objective.keeps_dead_rows
        or objective.per_micro_batch
        or objective.entropy_coef != 0.0
        or objective.top_entropy_quantile < 1.0
    )
