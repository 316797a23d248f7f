"""Plug-ins of a stage: found, their arguments checked, and called with what they can take.

Rewards, curricula and sources of ours are made here, as the stage will make them. What a user's
class would do when it is made is left to the stage, but for sources, whose tasks are looked at.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from grpo.config import schema
from grpo.errors import PluginError, RecipeError, at
from grpo.method.table import check_settings, find_advantage, find_objective, given_to
from grpo.outside.code import plugins
from grpo.outside.web.address import Address
from grpo.stages.preflight.needed import Named, inner_of, parameters
from grpo.types import TaskSource

METHODS = {
    "engine": ("submit", "poll", "cancel", "load_weights", "close"),
    "source": ("size", "task"),
    "curriculum": ("skips", "learn", "metrics", "state", "restore"),
    "callback": ("__call__",),
}


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """What was read of a stage: its tasks (None: not here), and sets of rows by their setting."""

    source: TaskSource | None = None
    rows: Mapping[str, Sequence[Any]] = field(default_factory=dict[str, Sequence[Any]])


def check_plugins(stage: schema.AnyStage, where: str) -> None:
    """Refuse plug-ins that cannot be found, or called as they will be. Raises PluginError."""
    if isinstance(stage, schema.SFTStage):
        return
    source, args = stage.data.source, stage.data.args
    _check("source", f"{where}data.source", source, args)
    if isinstance(stage, schema.PretrainStage):
        return
    all_rewards(stage, where)
    if isinstance(stage, schema.EvalStage):
        _check("engine", f"{where}engine", stage.engine, {"spec": None})
        return
    engine = {**stage.rollout.engine_args, "spec": None}
    if not (isinstance(stage, schema.DistillStage) and stage.teacher.is_endpoint):
        _check("engine", f"{where}rollout.engine", stage.rollout.engine, engine)
        _check_engine_args(stage.rollout.engine, stage.rollout.engine_args, f"{where}rollout")
    if isinstance(stage, schema.RLStage):
        _check_method(stage, where)


def _check_method(stage: schema.RLStage, where: str) -> None:
    """Advantage, objective, curriculum and callbacks of an rl stage."""

    algorithm = stage.algorithm
    with at(f"{where}algorithm.advantage"):
        advantage = find_advantage(algorithm.advantage, algorithm.advantage_args)
        given = partial(advantage, **dict.fromkeys(given_to(advantage)))
        _takes("advantage", algorithm.advantage, given, ("rewards_P_G",))
    if plugins.is_address(algorithm.loss_type):
        with at(f"{where}algorithm.loss_type"):
            found = find_objective(algorithm.loss_type, algorithm.loss_args)
            check_settings(algorithm.loss_type, found, algorithm)
            _takes("objective", algorithm.loss_type, found.token_loss, ("inputs", "clip"))
            if found.columns is not None:
                _takes("columns of objective", algorithm.loss_type, found.columns, ("groups",))
    for index, rule in enumerate(stage.curriculum):
        with at(f"{where}curriculum.{index}"):
            made = plugins.load("curriculum", rule.name, rule.args)
            _has("curriculum", rule.name, made)
    for index, callback in enumerate(stage.callbacks):
        with at(f"{where}callbacks.{index}"):
            found = _bound("callback", callback)
            if inspect.isclass(found):
                _has("callback", callback.name, found)
            else:
                _takes("callback", callback.name, found, ("step",))


def all_rewards(stage: schema.AnyStage, where: str) -> dict[str, list[Named]]:
    """split -> the rewards that judge its tasks, as `grpo.stages.preflight.needed` takes them."""
    if isinstance(stage, schema.PretrainStage | schema.SFTStage):
        return {}
    mine = named_rewards(stage.rewards, f"{where}rewards")
    if isinstance(stage, schema.RLStage):
        own = named_rewards(stage.eval.rewards, f"{where}eval.rewards")
        judged = {} if stage.eval.is_off else {"heldout": own or mine}
        return {"train": mine, **judged}
    return {"heldout": mine} if isinstance(stage, schema.EvalStage) else {"train": mine}


def named_rewards(specs: Sequence[schema.RewardSpec], setting: str) -> list[Named]:
    """(name in messages, reward) of each reward. A user's class is not made, but given as it is."""
    found: list[Named] = []
    for index, spec in enumerate(specs):
        name = f"{setting}.{index} = {spec.name!r}"
        with at(f"{setting}.{index}"):
            if plugins.is_address(spec.name):
                reward = _bound("reward", spec)
            else:
                reward = plugins.load("reward", spec.name, spec.args)
        if inner_of(reward) is None:
            parameters(name, reward)  # refuses what cannot be called
        found.append((name, reward))
    return found


def _bound(kind: str, plugin: schema.Plugin) -> Any:
    """As `plugins.load` of a user's function, and a class not yet made; arguments are checked."""
    found = plugins.find(kind, plugin.name)
    made = inspect.isclass(found)
    plugins.check_args(kind, plugin.name, found, plugin.args, complete=made)
    return found if made or not plugin.args else partial(found, **plugin.args)


def _check(kind: str, setting: str, spec: str, args: Mapping[str, Any]) -> None:
    """A plug-in that is made with `args`, and as a class has the methods of its kind."""
    with at(setting):
        found = plugins.find(kind, spec)
        plugins.check_args(kind, spec, found, args)
        if inspect.isclass(found):
            _has(kind, spec, found)


def _check_engine_args(engine: str, args: Mapping[str, Any], where: str) -> None:
    """Refuse what an engine of ours would refuse when it is made. Raises RecipeError."""
    rows = args.get("max_rows", 1)
    if engine == "torch" and (type(rows) is not int or rows < 1):
        raise RecipeError(f"{where}.engine_args.max_rows = {rows!r}: it is a whole number above 0")
    if engine in ("server", "endpoint") and "url" in args:
        Address(url=str(args["url"]))  # not called


def _has(kind: str, spec: str, found: Any) -> None:
    lacking = [
        name
        for name in METHODS[kind]
        if not callable(getattr(found, name, None))
        or (name == "__call__" and not any(name in vars(base) for base in found.__mro__))
    ]
    if lacking:
        raise PluginError(f"{kind} {spec!r} has no {' and no '.join(lacking)}.")


def _takes(kind: str, spec: str, function: Any, places: Sequence[str]) -> None:
    """Refuse a function that cannot be called with as many arguments by their places."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*places)
    except TypeError as error:
        raise PluginError(
            f"{kind} {spec!r} cannot be called with ({', '.join(places)}): {error}."
        ) from error
