"""Tasks: where prompts and their gold answers come from.

`SOURCES` names every built-in source. `source` draws tasks in a seeded order and keeps train and
held-out apart; `prompts` and `conversation` make what the model reads. Which tasks are
asked as a run goes on: `grpo/training/curriculum.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from grpo.data.arithmetic import Arithmetic
from grpo.data.countdown import Countdown
from grpo.data.gym import ReasoningGym
from grpo.data.knights import Knights
from grpo.data.mixture import Mixture
from grpo.data.multiplication import Multiplication
from grpo.data.parity import Bilingual, Parity
from grpo.data.prompts import PromptTemplate
from grpo.data.published import aime, amc, gsm8k, hub, humaneval, leetcode, math, mbpp
from grpo.data.source import TaskOrder
from grpo.data.table import file
from grpo.types import TaskSource

SOURCES: dict[str, Callable[..., TaskSource]] = {
    "parity": Parity,
    "bilingual": Bilingual,
    "multiplication": Multiplication,
    "countdown": Countdown,
    "arithmetic": Arithmetic,
    "knights": Knights,
    "gsm8k": gsm8k,
    "math": math,
    "aime": aime,
    "amc": amc,
    "humaneval": humaneval,
    "mbpp": mbpp,
    "leetcode": leetcode,
    "reasoning_gym": ReasoningGym,
    "file": file,
    "mixture": Mixture,
    "hub": hub,
}

__all__ = ["SOURCES", "PromptTemplate", "TaskOrder"]
