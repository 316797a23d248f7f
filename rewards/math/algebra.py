"""Whether two SymPy expressions, or two regions of the number line, are equal (confined side)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import sympy  # pyright: ignore[reportMissingTypeStubs]
from math_verify import verify  # pyright: ignore[reportMissingTypeStubs]

from grpo.rewards.math.formula import is_name
from grpo.rewards.math.intervals import Region, Tree

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


Read = Callable[[str], Any]
_RELATIONS = {"<": _sp.Lt, ">": _sp.Gt, "le": _sp.Le, "ge": _sp.Ge, "ne": _sp.Ne, "=": _sp.Eq}
_FLIPPED = {"<": ">", ">": "<", "le": "ge", "ge": "le", "ne": "ne", "=": "="}


class NoRegion(Exception):
    """A tree that is no set of real numbers: an endpoint is not one, or there are two variables."""


def as_set(region: Region, read: Read) -> Any:
    """The set of a region; `read` gives the expression of an endpoint. Raises NoRegion."""
    names: set[str] = set(region.names)
    found = _set(region.tree, read, names)
    if len(names) > 1:
        raise NoRegion
    return found


def same_set(answer: Any, gold: Any, same: Callable[[Any, Any], bool]) -> bool:
    """Whether two sets are equal; `same` compares endpoints where SymPy's order does not decide."""
    if answer == gold:
        return True
    mine, theirs = _pieces(answer), _pieces(gold)
    if len(mine) == len(theirs) and all(map(_same_piece, mine, theirs, [same] * len(mine))):
        return True
    if answer.free_symbols or gold.free_symbols:
        return False
    return answer.symmetric_difference(gold) == _sp.EmptySet


def _pieces(found: Any) -> list[Any]:
    parts = list(found.args) if isinstance(found, _sp.Union) else [found]
    return sorted(parts, key=_start)


def _start(piece: Any) -> float:
    low = piece.start if isinstance(piece, _sp.Interval) else next(iter(piece.args), _sp.oo)
    try:
        return float(low)
    except (TypeError, ValueError):
        return float("inf")


def _same_piece(mine: Any, theirs: Any, same: Callable[[Any, Any], bool]) -> bool:
    if not (isinstance(mine, _sp.Interval) and isinstance(theirs, _sp.Interval)):
        return mine == theirs
    if (mine.left_open, mine.right_open) != (theirs.left_open, theirs.right_open):
        return False
    ends = ((mine.start, theirs.start), (mine.end, theirs.end))
    return all(a == b or same(a, b) for a, b in ends)


def _set(tree: Tree, read: Read, names: set[str]) -> Any:
    match tree:
        case ("reals",):
            return _sp.S.Reals
        case ("empty",):
            return _sp.EmptySet
        case ("points", parts):
            return _sp.FiniteSet(*(_endpoint(part, read) for part in parts))
        case ("interval", low, high, left, right):
            return _sp.Interval(_endpoint(low, read), _endpoint(high, read), left, right)
        case ("or", parts):
            return _sp.Union(*(_set(part, read, names) for part in parts))
        case ("and", parts):
            return _both([_set(part, read, names) for part in parts])
        case ("list", parts):
            found = [_set(part, read, names) for part in parts]
            both = _both(found)
            return _sp.Union(*found) if both == _sp.EmptySet else both
        case ("minus", whole, part):
            return _set(whole, read, names) - _set(part, read, names)
        case ("relation", left, operator, right, name):
            return _relation(left, operator, right, name, read, names)
        case _:
            raise NoRegion


def _both(parts: list[Any]) -> Any:
    """What all sets have in common; a < x < b without knowing whether a is below b."""
    if len(parts) == 2 and all(isinstance(part, _sp.Interval) for part in parts):
        upper, lower = sorted(parts, key=lambda part: part.end == _sp.oo)
        if upper.start == -_sp.oo and lower.end == _sp.oo and lower.start != -_sp.oo:
            return _sp.Interval(lower.start, upper.end, lower.left_open, upper.right_open)
    return _sp.Intersection(*parts)


def _endpoint(text: str, read: Read) -> Any:
    found = read(text)
    if found is None or not hasattr(found, "doit"):
        raise NoRegion
    found = found.doit()
    if found.is_extended_real is False or getattr(found, "is_Relational", False):
        raise NoRegion
    return found


def _relation(left: str, operator: str, right: str, name: str, read: Read, names: set[str]) -> Any:
    if name == right:
        left, operator, right = right, _FLIPPED[operator], left
    if name == left:
        end = _endpoint(right, read)
        if name not in {symbol.name for symbol in end.free_symbols}:
            return _ray(operator, end)
    a, b = _endpoint(left, read), _endpoint(right, read)
    variables = a.free_symbols | b.free_symbols
    names |= {symbol.name for symbol in variables}
    if len(variables) != 1:
        raise NoRegion
    real = _sp.Symbol(next(iter(variables)).name, real=True)
    swap = dict.fromkeys(variables, real)
    return _RELATIONS[operator](a.xreplace(swap), b.xreplace(swap)).as_set()


def _ray(operator: str, end: Any) -> Any:
    match operator:
        case "<" | "le":
            return _sp.Interval(-_sp.oo, end, True, operator == "<")
        case ">" | "ge":
            return _sp.Interval(end, _sp.oo, operator == ">", True)
        case "ne":
            return _sp.Union(_sp.Interval.open(-_sp.oo, end), _sp.Interval.open(end, _sp.oo))
        case _:
            return _sp.FiniteSet(end)
