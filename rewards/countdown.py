"""Countdown: reach a target from given numbers with + - * / and parentheses.

The expression is parsed to an abstract syntax tree and evaluated with exact fractions. Only
integers and the four operators exist: no `**`, no `//`, no decimal point (graders that evaluate
the text accept "1.5" as the numbers 1 and 5, and hang on 9**9**9).
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Literal

from grpo.errors import PluginError
from grpo.rewards.exact import clean, number
from grpo.rewards.extract import final_answer
from grpo.rewards.verifier import VerifierReward
from grpo.types import Score, Task

MAX_LENGTH = 512  # characters of an expression
_ALLOWED = re.compile(r"[0-9+\-*/() \t\n]+")
# Unicode's signs (times, dot and asterisk operator, division, minus and en dash), LaTeX's names.
_SPELLINGS = {"\u00d7": "*", "\u00b7": "*", "\u2217": "*", "\u00f7": "/"} | {
    "\u2212": "-",
    "\u2013": "-",
    "\\times": "*",
    "\\cdot": "*",
    "\\div": "/",
}


def evaluate(expression: str) -> tuple[Fraction, list[int]]:
    """The exact value of an expression and the integers written in it, in order.

    Raises ValueError, with the reason, for anything but integers, + - * / and parentheses.
    """
    if len(expression) > MAX_LENGTH:
        raise ValueError("the expression is too long")
    for spelling, operator in _SPELLINGS.items():
        expression = expression.replace(spelling, operator)
    if not _ALLOWED.fullmatch(expression):
        raise ValueError("only integers, + - * / and parentheses are allowed")
    try:
        tree = ast.parse(" ".join(expression.split()), mode="eval")
        used: list[int] = []
        return _value(tree.body, used), used
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError("not an arithmetic expression") from error
    except ZeroDivisionError as error:
        raise ValueError("division by zero") from error


def _value(node: ast.expr, used: list[int]) -> Fraction:
    match node:
        case ast.Constant(value=int(value)):
            used.append(value)
            return Fraction(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, used)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand, used)
        case ast.BinOp(left=left, op=operator, right=right):
            a, b = _value(left, used), _value(right, used)
            match operator:
                case ast.Add():
                    return a + b
                case ast.Sub():
                    return a - b
                case ast.Mult():
                    return a * b
                case ast.Div():
                    return a / b
                case _:
                    raise ValueError("only + - * / are allowed")
        case _:
            raise ValueError("only integers, + - * / and parentheses are allowed")


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
