"""Objectives: what one token of a completion contributes, and what it is divided by.

    loss = sum over tokens of  weight * (keep * correction * token_loss + beta * KL)
           - entropy_coef * mean entropy

`token_loss` is a pure function of `LossInputs`, the trained tokens of a micro-batch laid flat
(`grpo/method/losses.py`). `weight` carries every denominator and is decided before any forward pass
(`grpo/method/weighted_rows.py`) from totals over the whole optimizer step: all rows, including
those dropped because they teach nothing, on all ranks. Which tokens are kept for their entropy, and
the bonus's denominator, are decided over the same step. So the gradient does not depend on how the
batch was cut into micro-batches.

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
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from grpo.errors import RecipeError, unknown_name
from grpo.method.losses import (
    SHARED_ARGS,
    Objective,
    TokenLossResult,
    Totals,
    cispo,
    clipped_surrogate,
    is_number,
    sapo,
    setting,
    vespo,
)
from grpo.outside.code import plugins


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
            if not (is_number(value) and value > 0):
                raise RecipeError(f"{setting(arg)} = {value!r}: it is a number above 0")
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
