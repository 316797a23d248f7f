"""Rewards: a completion in, a score out.

`REWARDS` names every built-in; a factory takes the recipe's `args` and returns a reward function by
TRL's calling convention. Importing this package loads no torch and no sympy.

A reward is a file; `math/` and `code/` are folders, and `sandbox/` is where model output runs. What
they share: `verifier` (base classes), `extract` (where the answer is), `calling`,
`compose`, `deadline` and `verdicts` (how a set of them is asked). `golds` is `grpo check`, `known`
is `grpo doctor`, `score_file` is `grpo score`, `sentinel` watches for rewards that are being gamed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from grpo.rewards.accuracy import Accuracy
from grpo.rewards.code.reward import Code
from grpo.rewards.compose import RewardSet
from grpo.rewards.control import Random
from grpo.rewards.form import CosineLength, Format, Repetition, SoftOverlong, Tags
from grpo.rewards.gym import ReasoningGym
from grpo.rewards.judge import Judge
from grpo.rewards.language import LanguageConsistency
from grpo.rewards.math.reward import Math
from grpo.rewards.puzzles import Countdown, Knights
from grpo.rewards.reward_model import RewardModel
from grpo.rewards.routed import Gate, Routed
from grpo.rewards.score_file import score_file

REWARDS: dict[str, Callable[..., Any]] = {
    "accuracy": Accuracy,
    "code": Code,
    "countdown": Countdown,
    "format": Format,
    "gate": Gate,
    "judge": Judge,
    "knights": Knights,
    "language_consistency": LanguageConsistency,
    "length_cosine": CosineLength,
    "math": Math,
    "random": Random,
    "reasoning_gym": ReasoningGym,
    "repetition": Repetition,
    "reward_model": RewardModel,
    "routed": Routed,
    "soft_overlong": SoftOverlong,
    "tags": Tags,
}

__all__ = ["REWARDS", "RewardSet", "score_file"]
