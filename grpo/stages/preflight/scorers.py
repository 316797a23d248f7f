"""The rewards of a stage as its tasks meet them: found, made where they are ours, and callable."""

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
    """split -> the rewards that its tasks go to, as `grpo.stages.preflight.needed` takes them."""
    if isinstance(stage, PretrainStage | SFTStage):
        return {}
    mine = rewards(stage.rewards, f"{where}rewards")
    if isinstance(stage, RLStage):
        own = rewards(stage.eval.rewards, f"{where}eval.rewards")
        return {"train": mine, "heldout": own or mine}
    return {"heldout": mine} if isinstance(stage, EvalStage) else {"train": mine}


def rewards(specs: Sequence[RewardSpec], setting: str) -> list[Named]:
    """Each reward with the name that messages give it; a user's class as the class."""
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
