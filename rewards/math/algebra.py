"""Whether two SymPy expressions are equal, and what an equation is the value of (confined side)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import sympy  # pyright: ignore[reportMissingTypeStubs]
from math_verify import verify  # pyright: ignore[reportMissingTypeStubs]

from grpo.rewards.math.formula import is_name

_sp: Any = sympy  # untyped
_SLOW = (_sp.Derivative, _sp.Integral, _sp.Limit, _sp.Product, _sp.Sum, _sp.UnevaluatedExpr)


def below_one(found: Any) -> bool:
    """Whether an expression is a number of size below 1."""
    try:
        return bool(abs(found.evalf()) < 1)
    except (TypeError, AttributeError):
        return False


def value(found: Any, other: Any, trusted: bool = False) -> Any:
    """The value that an equation gives its name (7 = x, x = 1 + 1 = 2) if `other` is no equation.

    None if it names nothing and is not true of numbers: 2x = 5 does not give 5. A gold (`trusted`)
    is taken to be true. What is no equation is returned as it is.
    """
    sides = _sides(found)
    if not sides or _sides(other):
        return found
    named = [side for side in sides if is_name(side)]
    values = [side for side in sides if not is_name(side)]
    if len(named) == len(sides):
        return sides[-1]
    if not named and any(side.free_symbols for side in values):
        return None
    if not trusted and any(not _agree(a, b) for a, b in pairwise(values)):
        return None
    return values[-1]


def _sides(found: Any) -> list[Any]:
    """The sides of an equation or of a chain of them, none of anything else."""
    links = found._unsorted_args if isinstance(found, _sp.And) else (found,)
    if not all(isinstance(link, _sp.Eq) for link in links):
        return []
    return [links[0].lhs, *(link.rhs for link in links)]


def _agree(a: Any, b: Any) -> bool:
    try:
        return bool(_sp.simplify(a - b).equals(0))
    except TypeError:
        return a == b


def _apart(a: Any, b: Any) -> bool:
    """Whether two expressions differ at a point, which is sooner seen than by simplifying."""
    if not isinstance(a, _sp.Expr) or not isinstance(b, _sp.Expr) or a.has(*_SLOW) or b.has(*_SLOW):
        return False
    names = sorted(a.free_symbols | b.free_symbols, key=str)
    point = {name: _sp.Float(0.7123 + 0.3719 * k) for k, name in enumerate(names)}
    try:
        found = [complex(side.xreplace(point).evalf(15)) for side in (a, b)]
    except (TypeError, ValueError, ArithmeticError, AttributeError):
        return False
    gap = abs(found[0] - found[1])
    return gap > 1e-5 and gap > 1e-9 * max(map(abs, found))  # false for what is not a number


def equal(gold: Any, answer: Any) -> bool:
    """Whether two expressions, sets or relations are equal. Raises what SymPy raises."""
    if isinstance(gold, _sp.Symbol) and isinstance(answer, _sp.Symbol):
        return gold.name == answer.name  # math-verify knows no case
    if isinstance(gold, _sp.Symbol) or isinstance(answer, _sp.Symbol):
        return bool(gold == answer)
    if _apart(gold, answer):
        return False
    # -2 <= x <= 7 is [-2, 7], whichever of the two the gold is
    return bool(verify(gold, answer, timeout_seconds=None, allow_set_relation_comp=True))  # pyright: ignore
