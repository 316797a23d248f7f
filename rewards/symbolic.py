"""Formulas in Python's spelling, evaluated as numbers: for answers whose own graders execute them.

An expression is parsed to an abstract syntax tree and evaluated in complex floating point, so
nothing can loop or grow: names, functions and operators are those listed here.
"""

from __future__ import annotations

import ast
import cmath
import random
from collections.abc import Callable, Mapping
from typing import Any

from grpo.rewards.math.exact import FOUR

MAX_LENGTH = 2048  # characters
POINTS, ENOUGH = 24, 8  # random points looked at, and how many of them have to agree
_SAME_NAME = "sin cos tan asin acos atan sinh cosh tanh exp log sqrt"
_FUNCTIONS: dict[str, Callable[[complex], complex]] = {
    **{name: getattr(cmath, name) for name in _SAME_NAME.split()},
    "ln": cmath.log,
    "sec": lambda z: 1 / cmath.cos(z),
    "csc": lambda z: 1 / cmath.sin(z),
    "cot": lambda z: 1 / cmath.tan(z),
}
_OPERATIONS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {**FOUR, ast.Pow: pow}
_CONSTANTS: dict[str, complex] = {"pi": cmath.pi, "E": cmath.e, "e": cmath.e}


def parse(expression: str) -> ast.expr:
    """The syntax tree of one expression. Raises ValueError for anything that is not one."""
    if len(expression) > MAX_LENGTH:
        raise ValueError("the expression is too long")
    if not expression.isascii() or any(c in expression for c in "\"'`#;:@[]{}\\"):
        raise ValueError("not a formula")
    try:
        return ast.parse(" ".join(expression.replace("^", "**").split()), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError("not a formula") from error


def value(node: ast.expr, names: Mapping[str, complex]) -> complex:
    """The value of a tree where names have these values; case is ignored for lone letters.

    Raises ValueError for what is not listed, and where there is no finite value.
    """
    try:
        found = _value(node, names)
    except (ArithmeticError, RecursionError) as error:
        raise ValueError("no finite value") from error
    if not cmath.isfinite(found):
        raise ValueError("no finite value")
    return found


def _value(node: ast.expr, names: Mapping[str, complex]) -> complex:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return complex(number)
        case ast.Name(id=name):
            for known in (names, _CONSTANTS):
                if name in known:
                    return known[name]
            if name.lower() in names:
                return names[name.lower()]
            raise ValueError(f"unknown name {name[:20]!r}")
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, names)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand, names)
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]):
            if name not in _FUNCTIONS:
                raise ValueError(f"unknown function {name[:20]!r}")
            return _FUNCTIONS[name](_value(argument, names))
        case ast.BinOp(left=left, op=sign, right=right):
            a, b = _value(left, names), _value(right, names)
            if type(sign) not in _OPERATIONS:
                raise ValueError("unknown operator")
            return _OPERATIONS[type(sign)](a, b)
        case _:
            raise ValueError("not a formula")


class UnusableGold(Exception):
    """The row's own formula cannot be evaluated here: no answer could be right."""


def _parse_gold(expression: str) -> ast.expr:
    try:
        return parse(expression)
    except ValueError as error:
        raise UnusableGold(f"{expression[:80]!r}: {error}") from error


def _agree(answer: Callable[[complex], complex], gold: Callable[[complex], complex]) -> bool:
    """Whether two functions agree at random complex points (where both are defined).

    Two different formulas of bounded size that agree to 7 digits at eight random points are equal
    but for an event nobody will see (Schwartz 1980, Zippel 1979, for the polynomials). Raises
    UnusableGold where the gold has a value at fewer points.
    """
    rng = random.Random(0)
    points = [complex(rng.uniform(0.3, 1.7), rng.uniform(0.1, 0.9)) for _ in range(POINTS)]
    wanted = {point: found for point in points if (found := _value_at(gold, point)) is not None}
    if len(wanted) < ENOUGH:
        raise UnusableGold("it has no value at most points")
    agreed = 0
    for point, b in wanted.items():
        a = _value_at(answer, point)
        if a is None:
            continue
        if abs(a - b) > 1e-5 * max(1.0, abs(a), abs(b)):
            return False
        agreed += 1
        if agreed == ENOUGH:
            return True
    return False


def _value_at(function: Callable[[complex], complex], point: complex) -> complex | None:
    try:
        return function(point)
    except ValueError:
        return None


def same_formula(answer: str, gold: str, variables: list[str]) -> bool:
    """Whether two formulas are equal.

    Raises ValueError if the answer is not a formula, UnusableGold if the gold is not.
    """
    theirs, mine = _parse_gold(gold), parse(answer)
    value(mine, _point(variables, 0.7 + 0.2j))
    return _agree(
        lambda z: value(mine, _point(variables, z)), lambda z: value(theirs, _point(variables, z))
    )


def is_antiderivative(answer: str, integrand: str, variable: str) -> bool:
    """Whether the answer's derivative is the integrand. Raises as `same_formula` does.

    The derivative is a contour mean over the eight roots of unity around a point (Cauchy), exact to
    rounding for functions that are analytic there. A constant C is any number.
    """
    theirs, mine = _parse_gold(integrand), parse(answer)

    def at(node: ast.expr, z: complex) -> complex:
        return value(node, {variable.lower(): z, variable: z, "C": 0.3 + 0j, "c": 0.3 + 0j})

    def slope(z: complex) -> complex:
        radius, count = 0.02, 8
        total = 0j
        for k in range(count):
            unit = cmath.exp(2j * cmath.pi * k / count)
            total += at(mine, z + radius * unit) / unit
        return total / (count * radius)

    at(mine, 0.7 + 0.2j)
    return _agree(slope, lambda z: at(theirs, z))


def _point(variables: list[str], z: complex) -> dict[str, complex]:
    """Different values for different variables, all determined by one."""
    return {name: z * (1 + 0.37 * k) + 0.11 * k for k, name in enumerate(sorted(variables))}
