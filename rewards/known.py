"""Verifiers that have a sandbox, on a right and a wrong answer, end to end: for `grpo doctor`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from grpo.errors import RewardError
from grpo.rewards.code.reward import Code
from grpo.rewards.gym import ReasoningGym
from grpo.rewards.math.reward import Math
from grpo.rewards.verifier import VerifierReward
from grpo.types import Task


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """One task with an answer that is right and one that is wrong."""

    what: str
    right: str
    wrong: str
    answer: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict[str, Any])


_PROGRAM = "```python\nimport numpy as np\n{}\n```"
_ADD = "x = np.random.default_rng(0).integers(1, 2)\ndef f(n):\n    return n + int(x) + {}"
_PRINT = "print(int(input()) + int(np.random.default_rng(0).integers(1, 2)) + {})"
_LADDER = {"source_dataset": "word_ladder", "start_word": "COLD", "end_word": "WARM"}
# verifier -> its class, the package that it needs, what it is asked
KNOWN: dict[str, tuple[Callable[..., VerifierReward], str, tuple[Known, ...]]] = {
    "math": (
        Math,
        "math_verify",
        (
            Known(
                what="an interval against an inequality",
                answer="[2,\\infty)",
                right="\\boxed{x \\ge 2}",
                wrong="\\boxed{x > 2}",
            ),
        ),
    ),
    "code": (
        Code,
        "numpy",
        (
            Known(
                what="a function that imports numpy",
                columns={"tests": {"asserts": ["assert f(1) == 2"]}},
                right=_PROGRAM.format(_ADD.format(0)),
                wrong=_PROGRAM.format(_ADD.format(1)),
            ),
            Known(
                what="a program that reads and prints",
                columns={"tests": {"stdio": [{"input": "1\n", "output": "2\n"}]}},
                right=_PROGRAM.format(_PRINT.format(0)),
                wrong=_PROGRAM.format(_PRINT.format(1)),
            ),
        ),
    ),
    "reasoning_gym": (
        ReasoningGym,
        "reasoning_gym",
        (
            Known(
                what="a scorer that reads a file",
                columns={"metadata": _LADDER},
                answer="",
                right="<answer>COLD,CORD,CARD,WARD,WARM</answer>",
                wrong="<answer>COLD,WARM</answer>",
            ),
        ),
    ),
}


def misjudged(tier: str) -> list[str]:
    """What verifiers get wrong in a tier, a sentence each; packages that are absent are passed."""
    faults: list[str] = []
    for name, (make, package, known) in KNOWN.items():
        if importlib.util.find_spec(package) is None:
            continue
        try:
            reward = make(workers=1, sandbox=tier, timeout=60.0)
            try:
                faults += [f"{name}, {fault}" for case in known for fault in _faults(reward, case)]
            finally:
                reward.close()
        except RewardError as error:
            faults.append(f"{name}: {error}")
    return faults


def _faults(reward: VerifierReward, case: Known) -> list[str]:
    task = Task(uid=case.what, prompt="", answer=case.answer, columns=case.columns)
    faults: list[str] = []
    for kind, text, wanted in (("right", case.right, 1.0), ("wrong", case.wrong, 0.0)):
        score = reward.verify(text, task)
        if score.value != wanted:
            found = f"{score.value} ({score.status}: {score.detail})"
            faults.append(f"{case.what}: the {kind} answer scored {found}")
    return faults
