"""Find the rewards of a stage, make the built-in ones, and check that all can be called."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial

from grpo.config.schema import AnyStage, EvalStage, PretrainStage, RewardSpec, RLStage, SFTStage
from grpo.errors import at
from grpo.outside.code import plugins
from grpo.rewards import REWARDS
from grpo.stages.preflight.needed import Named, inner_of, parameters


def all_rewards(stage: AnyStage, where: str) -> dict[str, list[Named]]:
    """split -> the rewards that judge its tasks, as `grpo.stages.preflight.needed` takes them."""
    if isinstance(stage, PretrainStage | SFTStage):
        return {}
    mine = rewards(stage.rewards, f"{where}rewards")
    if isinstance(stage, RLStage):
        own = rewards(stage.eval.rewards, f"{where}eval.rewards")
        return {"train": mine, "heldout": own or mine}
    return {"heldout": mine} if isinstance(stage, EvalStage) else {"train": mine}


def rewards(specs: Sequence[RewardSpec], setting: str) -> list[Named]:
    """(name in messages, reward) of each reward. A user's class is not made, but given as it is."""
    found: list[Named] = []
    for index, spec in enumerate(specs):
        name = f"{setting}.{index} = {spec.name!r}"
        with at(f"{setting}.{index}"):
            if not plugins.is_address(spec.name):
                reward = plugins.load("reward", spec.name, REWARDS, spec.args)
            else:
                reward = plugins.find("reward", spec.name, REWARDS)
                made = inspect.isclass(reward)
                plugins.check_args("reward", spec.name, reward, spec.args, complete=made)
                reward = partial(reward, **spec.args) if spec.args and not made else reward
        if inner_of(reward) is None:
            parameters(name, reward)  # refuses what cannot be called
        found.append((name, reward))
    return found
