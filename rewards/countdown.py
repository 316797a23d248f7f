"""Countdown: reach a target from given numbers with + - * / and parentheses."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Literal

from grpo.errors import PluginError
from grpo.rewards.extract import final_answer
from grpo.rewards.math.exact import clean, number
from grpo.rewards.math.four_operations import evaluate
from grpo.rewards.verifier import VerifierReward
from grpo.types import Score, Task


def puzzle(columns: Mapping[str, Any]) -> tuple[list[int], Fraction] | None:
    """(numbers, target) of a row; TinyZero's name `nums` is accepted. None: unusable."""
    numbers: Any = columns.get("numbers", columns.get("nums"))
    try:
        numbers = json.loads(numbers) if isinstance(numbers, str) else numbers
        given = [Fraction(str(n)) for n in numbers or ()]
        if any(n.denominator != 1 for n in given):
            return None
        return [int(n) for n in given], Fraction(str(columns["target"]))
    except (KeyError, TypeError, ValueError, ZeroDivisionError, RecursionError):
        return None


def _states(text: str, target: Fraction) -> bool:
    """Whether what stands behind an equals sign is the target: 6, 6.0, 5/2 or 3 + 3."""
    found = number(text.strip())
    if found is None:
        try:
            found, _ = evaluate(text)
        except ValueError:
            return False
    return found == target


class Countdown(VerifierReward):
    """1 if the expression reaches `target` with the given `numbers`, else 0.

    use: "exactly" (each number exactly once) or "at_most" (each at most once).
    """

    name = "countdown"
    needs = ("numbers|nums", "target")

    def __init__(self, use: Literal["exactly", "at_most"] = "exactly") -> None:
        if use not in ("exactly", "at_most"):
            raise PluginError(f"countdown: use {use!r} is not exactly or at_most")
        self.exactly = use == "exactly"

    def verify(self, completion: str, task: Task) -> Score:
        """correct, wrong, unparseable_answer (0) or unparseable_gold (None)."""
        given = puzzle(task.columns)
        if given is None or not given[0]:
            return Score(value=None, status="unparseable_gold", detail="no usable numbers, target")
        numbers, target = given
        answer = final_answer(completion)
        if answer is None:
            return Score(value=0.0, status="unparseable_answer", detail="no box or answer block")
        expression, *stated = clean(answer.strip("$ ")).split("=")
        try:
            value, used = evaluate(expression)
        except ValueError as error:
            return Score(value=0.0, status="unparseable_answer", detail=str(error))
        for right in stated[:8]:
            if not _states(right, target):
                return Score(value=0.0, status="wrong", detail=f"states = {right.strip()[:40]!r}")
        have, want = Counter(used), Counter(numbers)
        if (have != want) if self.exactly else not (have <= want):
            return Score(value=0.0, status="wrong", detail=f"uses {used}, given {numbers}")
        hit = value == target
        detail = f"{expression.strip()[:80]} = {value}, target {target}"
        return Score(value=float(hit), status="correct" if hit else "wrong", detail=detail)
