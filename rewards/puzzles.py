"""Puzzles whose answer is checked by its rules: countdown, knights and knaves."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Literal, cast

from grpo.errors import PluginError
from grpo.rewards.extract import final_answer
from grpo.rewards.math.exact import clean, evaluate, number
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
    """1 if + - * / and parentheses make `target` of the given `numbers`, else 0.

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


MAX_LENGTH = 4096  # characters of an answer
_ROLE = re.compile(r"(\w+) is (?:a |an )?(knight|knave)\b", re.IGNORECASE)


def roles_of(raw: Any) -> dict[str, str] | None:
    """The `roles` column, an object or its JSON text, by lower-case name. None: unusable."""
    try:
        given = json.loads(raw) if isinstance(raw, str) else raw
    except (ValueError, RecursionError):
        return None
    if not isinstance(given, dict) or not given:
        return None
    roles = {str(n).lower(): str(r) for n, r in cast("dict[Any, Any]", given).items()}
    return roles if set(roles.values()) <= {"knight", "knave"} else None


class Knights(VerifierReward):
    """`correct` if every role is right, `wrong` if one is not, `no_answer` without an answer.

    Every person of the row has to be given one role, once: who writes both has not answered. There
    is no credit for part of the roles, since a guess gets half of them (Logic-RL, 2502.14768).
    Logic-RL pays 2, -1.5 and -2, beside 1 or -1 for the format.
    """

    name = "knights"
    needs = ("roles",)

    def __init__(self, correct: float = 1.0, wrong: float = 0.0, no_answer: float = 0.0) -> None:
        self.correct, self.wrong, self.no_answer = correct, wrong, no_answer

    def verify(self, completion: str, task: Task) -> Score:
        """correct, wrong, unparseable_answer or unparseable_gold (None)."""
        gold = roles_of(task.columns.get("roles"))
        if gold is None:
            return Score(value=None, status="unparseable_gold", detail="no usable roles")
        answer = final_answer(completion)
        if answer is None or len(answer) > MAX_LENGTH:
            return self._unanswered("no box or answer block")
        said = [(name.lower(), role.lower()) for name, role in _ROLE.findall(answer)]
        said = [(name, role) for name, role in said if name in gold]
        if sorted(name for name, _ in said) != sorted(gold):
            return self._unanswered(f"{len(said)} roles stated for {len(gold)} people")
        errors = sum(gold[name] != role for name, role in said)
        if errors:
            detail = f"{errors} of {len(gold)} roles are wrong"
            return Score(value=self.wrong, status="wrong", detail=detail)
        return Score(value=self.correct, status="correct")

    def _unanswered(self, why: str) -> Score:
        return Score(value=self.no_answer, status="unparseable_answer", detail=why)
