"""Arithmetic of integers with + - * / and parentheses, exactly.

The expression is parsed to an abstract syntax tree and evaluated with exact fractions. Only
integers and the four operators exist: no `**`, no `//`, no decimal point (graders that evaluate
the text accept "1.5" as the numbers 1 and 5, and hang on 9**9**9).
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

MAX_LENGTH = 512  # characters of an expression
FOUR: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: lambda a, b: a / b,
}
_ALLOWED = re.compile(r"[0-9+\-*/() \t\n]+")
# Unicode's signs (times, dot and asterisk operator, division, minus and en dash), LaTeX's names.
_SIGNS = str.maketrans("\u00d7\u00b7\u2217\u00f7\u2212\u2013", "***/--")
_NAMES = {"\\times": "*", "\\cdot": "*", "\\div": "/"}


def evaluate(expression: str) -> tuple[Fraction, list[int]]:
    """The exact value of an expression and the integers written in it, in order.

    Raises ValueError, with the reason, for anything but integers, + - * / and parentheses.
    """
    if len(expression) > MAX_LENGTH:
        raise ValueError("the expression is too long")
    expression = expression.translate(_SIGNS)
    for name, sign in _NAMES.items():
        expression = expression.replace(name, sign)
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
        case ast.BinOp(left=left, op=sign, right=right):
            a, b = _value(left, used), _value(right, used)
            if type(sign) not in FOUR:
                raise ValueError("only + - * / are allowed")
            return FOUR[type(sign)](a, b)
        case _:
            raise ValueError("only integers, + - * / and parentheses are allowed")
