r"""Accuracy: is the final answer the gold one? Exact, without a computer algebra system.

DeepSeek-R1-Zero's accuracy reward for tasks whose answer is a word or a number. For LaTeX answers
use `math`, which adds a confined symbolic comparison behind the same extraction.
"""

from __future__ import annotations

from typing import Literal

from grpo.errors import PluginError
from grpo.rewards.extract import final_answer
from grpo.rewards.math.exact import same
from grpo.rewards.verifier import VerifierReward
from grpo.types import Score, Task


class Accuracy(VerifierReward):
    r"""1 if the last `\boxed{}` (else `<answer>`) after the thought equals `answer`, else 0.

    extraction: "strict", or "lenient" to accept the last number in the text where neither is there.
    """

    name = "accuracy"

    def __init__(self, extraction: Literal["strict", "lenient"] = "strict") -> None:
        if extraction not in ("strict", "lenient"):
            raise PluginError(f"accuracy: extraction {extraction!r} is not strict or lenient")
        self.lenient = extraction == "lenient"

    def verify(self, completion: str, task: Task) -> Score:
        """correct, wrong, unparseable_answer (0) or unparseable_gold (None)."""
        gold = task.answer
        if gold is None or not gold.strip():
            return Score(value=None, status="unparseable_gold", detail="the gold answer is empty")
        answer = final_answer(completion, lenient=self.lenient)
        if answer is None:
            return Score(value=0.0, status="unparseable_answer", detail="no box or answer block")
        right = same(answer, gold)
        detail = f"{answer[:80]!r} {'==' if right else '!='} {gold[:80]!r}"
        return Score(value=float(right), status="correct" if right else "wrong", detail=detail)
