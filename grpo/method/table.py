"""Every built-in advantage estimator and objective: its name, its arguments, its least group.

This is the one place that lists them. The recipe's schema, its messages and its help text, dry runs
and preflight read these two dicts. Nothing here imports torch: an objective names its token loss,
which `find_objective` looks up in `grpo/method/losses.py`.

    objective  token loss          ratio of   weight of a token
    grpo       clipped surrogate   token      1 / (T_i * N)
    dr_grpo    clipped surrogate   token      1 / (max_completion_length * N)
    dapo       clipped surrogate   token      1 / (trained tokens of the step)
    bnpo       clipped surrogate   token      1 / (tokens of the micro-batch) / (micro-batches);
                                              depends on the cut and on dead rows, which are kept
    gspo       clipped surrogate   sequence   1 / (T_i * N)
    luspo      clipped surrogate   sequence   1 / N
    cispo      cispo               token      1 / (trained tokens of the step)
    sapo       sapo                token      1 / (T_i * N)
    vespo      vespo               sequence   1 / (trained tokens of the step)

T_i: trained tokens of completion i. N: scored completions of the step. The estimators' formulas are
in `grpo/method/advantage.py`; papers, TRL's names and when to use which in docs/objectives.md.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from grpo.errors import RecipeError, unknown_name
from grpo.method import advantage
from grpo.method.arguments import COUNT, POSITIVE, SHARED, Argument, check_names, with_defaults
from grpo.method.objective import Objective, per_budget, per_completion, per_row, per_token
from grpo.outside.code import plugins
from grpo.types import Group

LOSSES = "grpo.method.losses"  # the module with the token losses
# What an estimator is given by name where it has a parameter of that name.
GIVEN = ("groups", "reward_weights", "tokenizer")


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """An advantage estimator.

    function      rewards_P_G and what it names of `GIVEN`, with `arguments` -> advantages, in one
                  of the two forms of `grpo/method/token_values.py`
    least_group   completions of a prompt without which every advantage is 0; of the arguments
                  where it depends on them
    """

    function: Callable[..., Any]
    arguments: Mapping[str, Argument] = field(default_factory=dict[str, Argument])
    least_group: int | Callable[..., int] = 2


ADVANTAGES = {
    "grpo": Estimator(function=advantage.grpo),
    "dr_grpo": Estimator(function=advantage.dr_grpo),
    "rloo": Estimator(function=advantage.rloo),
    "batch": Estimator(function=advantage.batch),
    "reinforce_plus_plus_baseline": Estimator(function=advantage.reinforce_plus_plus_baseline),
    "maxrl": Estimator(function=advantage.maxrl),
    "gdpo": Estimator(function=advantage.gdpo),
    "pass@k": Estimator(
        function=advantage.pass_at_k,
        arguments={"k": Argument(4, COUNT)},
        least_group=lambda k: k + 1,
    ),
    "none": Estimator(function=advantage.none, least_group=1),
}

_sequence = partial(
    Objective,
    token_loss="clipped_surrogate",
    importance_sampling_level="sequence",
    fixed=("importance_sampling_level",),
)
OBJECTIVES = {
    "grpo": Objective(token_loss="clipped_surrogate", weight=per_completion),
    "dr_grpo": Objective(token_loss="clipped_surrogate", weight=per_budget),
    "dapo": Objective(token_loss="clipped_surrogate", weight=per_token),
    "bnpo": Objective(token_loss="clipped_surrogate", weight=per_token, per_micro_batch=True),
    "gspo": _sequence(weight=per_completion),
    "luspo": _sequence(weight=per_row),
    "cispo": Objective(token_loss="cispo", weight=per_token, caps_ratio=True, unused=("delta",)),
    "sapo": Objective(
        token_loss="sapo",
        weight=per_completion,
        arguments={
            "sapo_temperature_pos": Argument(1.0, POSITIVE),
            "sapo_temperature_neg": Argument(1.05, POSITIVE),
        },
        unused=("epsilon_high", "delta"),
    ),
    "vespo": Objective(
        token_loss="vespo",
        weight=per_token,
        arguments={
            "vespo_k_pos": Argument(2.0, POSITIVE),
            "vespo_lambda_pos": Argument(3.0, POSITIVE),
            "vespo_k_neg": Argument(3.0, POSITIVE),
            "vespo_lambda_neg": Argument(2.0, POSITIVE),
        },
        corrects=True,
        unused=("epsilon_high", "delta"),
        fixed=("importance_sampling_level",),
    ),
}


def check_advantage_args(name: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of the built-in estimator `name`. Raises RecipeError for a name or a value."""
    arguments = ADVANTAGES[name].arguments
    check_names(f"algorithm.advantage = {name!r}", args, arguments)
    return with_defaults("algorithm.advantage_args", arguments, args)


def least_group(name: str, args: Mapping[str, Any]) -> int:
    """Completions of a prompt that the estimator needs to compare any; 1 for a plug-in."""
    if name not in ADVANTAGES:
        return 1
    least = ADVANTAGES[name].least_group
    return least if isinstance(least, int) else least(**check_advantage_args(name, args))


def find_advantage(spec: str, args: Mapping[str, Any] | None = None) -> Callable[..., Any]:
    """The estimator of that name or plug-in address with its arguments set.

    It is called with rewards_P_G, and by name with what `given_to` it. Raises RecipeError or
    PluginError.
    """
    args = dict(args or {})
    if spec in ADVANTAGES:
        return partial(ADVANTAGES[spec].function, **check_advantage_args(spec, args))
    found = plugins.find("advantage", spec)
    parameters = _parameters(partial(found, None))
    if parameters is not None:
        own = {name: p for name, p in parameters.items() if name not in GIVEN}
        what = f"algorithm.advantage = {spec!r}"
        check_names(what, args, own)
        missing = [n for n, p in own.items() if p.default is p.empty and n not in args]
        if missing:
            needed = ", ".join(map(repr, missing))
            raise RecipeError(f"{what} needs {needed} in algorithm.advantage_args")
    return partial(found, **args)


def given_to(function: Callable[..., Any]) -> list[str]:
    """The names of `GIVEN` that an estimator has a parameter for."""
    return [name for name in GIVEN if name in (_parameters(function) or ())]


def bound_advantage(
    spec: str,
    args: Mapping[str, Any] | None = None,
    *,
    reward_weights: Mapping[str, float] | None = None,
    tokenizer: Any = None,
) -> Callable[[np.ndarray, Sequence[Group]], Any]:
    """`find_advantage` as the training loop calls it: (rewards_P_G, groups) -> advantages.

    reward_weights: name of each reward of the recipe -> its weight.
    """
    found = find_advantage(spec, args)
    wanted, guarded = given_to(found), plugins.guard("advantage", spec, found)
    kept = {"reward_weights": reward_weights or {}, "tokenizer": tokenizer}

    def call(rewards_P_G: np.ndarray, groups: Sequence[Group]) -> Any:
        given = {"groups": groups, **kept}
        return guarded(rewards_P_G, **{name: given[name] for name in wanted})

    return call


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter] | None:
    """What can be given by name; None for a function without a signature, or of no argument."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: p for name, p in parameters.items() if p.kind in by_name}


def settable(objective: Objective) -> list[str]:
    """The names that `algorithm.loss_args` may have for `objective`."""
    own = objective.arguments
    if not isinstance(objective.token_loss, str):  # called with (inputs, clip)
        own = _parameters(partial(objective.token_loss, None, None)) or {}
    return [name for name in (*SHARED, *own) if name not in objective.fixed]


def check_loss_args(name: str, objective: Objective, args: Mapping[str, Any]) -> None:
    """Refuse what `algorithm.loss_args` cannot set for `objective`. Raises RecipeError."""
    check_names(f"algorithm.loss_type = {name!r}", args, settable(objective))
    with_defaults("algorithm.loss_args", objective.arguments, args)
    for arg, kind in SHARED.items():
        kind.check(f"algorithm.loss_args.{arg}", args.get(arg, getattr(objective, arg)))


def check_settings(name: str, objective: Objective, algorithm: Any) -> None:
    """Refuse other settings of a recipe's `algorithm` that do not go with it. Raises RecipeError.

    For plug-ins too: one that begins with a built-in's entry keeps what that entry says.
    """
    loss = f"algorithm.loss_type = {name!r}"
    for setting in objective.unused:
        if (value := getattr(algorithm, setting)) is not None:
            raise RecipeError(f"{loss} does not use algorithm.{setting} = {value}; leave it out")
    if objective.caps_ratio and algorithm.epsilon_high is None:
        raise RecipeError(
            f"{loss} needs algorithm.epsilon_high, the largest ratio a token may count by "
            "(ScaleRL uses 5)"
        )
    if objective.corrects and algorithm.sampling_correction.startswith("sequence"):
        raise RecipeError(
            f"{loss} multiplies ratios over the completion itself: algorithm."
            f"sampling_correction = {algorithm.sampling_correction!r} would do so twice; "
            "valid: none, token_truncate, token_mask"
        )


def find_objective(
    loss_type: str | Objective, loss_args: Mapping[str, Any] | None = None
) -> Objective:
    """The objective of that name or plug-in address (or the one given), with `loss_args` set.

    A plug-in is an `Objective`, or a token loss alone, whose tokens then weigh as in `dapo`.
    Raises RecipeError or PluginError.
    """
    objective, name = loss_type, "your own"
    if isinstance(objective, str):
        objective, name = _objective(objective), objective
    args = dict(loss_args or {})
    check_loss_args(name, objective, args)
    shared = {arg: args.pop(arg) for arg in SHARED if arg in args}
    token_loss = objective.token_loss
    if isinstance(token_loss, str):
        token_loss = getattr(importlib.import_module(LOSSES), token_loss)
        args = with_defaults("algorithm.loss_args", objective.arguments, args)
    else:
        plugins.check_args("objective", name, partial(token_loss, None, None), args)
    if args:
        token_loss = partial(token_loss, **args)
    return replace(objective, token_loss=token_loss, arguments={}, **shared)


def _objective(loss_type: str) -> Objective:
    if not plugins.is_address(loss_type):
        if loss_type not in OBJECTIVES:
            raise RecipeError(unknown_name("algorithm.loss_type", loss_type, OBJECTIVES))
        return OBJECTIVES[loss_type]
    found = plugins.find("objective", loss_type, record=Objective)
    if not isinstance(found, Objective):
        return Objective(token_loss=plugins.guard("objective", loss_type, found))
    theirs = {name: getattr(found, name) for name in ("token_loss", "columns")}
    guarded = {
        name: plugins.guard("objective", loss_type, function)
        for name, function in theirs.items()
        if callable(function)
    }
    return replace(found, **guarded)
