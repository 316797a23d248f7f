"""reasoning-gym's tasks, scored safely.

Nine of its scorers execute the answer they are given; those are written anew here. The others run
as they are, in the sandbox, one process an answer. Rows come from the source `reasoning_gym`, or
from anywhere with the columns `answer` and `metadata` (an object or its JSON text).

Formulas in Python's spelling are parsed to an abstract syntax tree and evaluated in complex
floating point, so nothing can loop or grow: names, functions and operators are those listed here.
"""

from __future__ import annotations

import ast
import cmath
import json
import random
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from grpo.rewards.extract import last_answer_block, last_box, split_thought
from grpo.rewards.math.exact import FOUR, evaluate
from grpo.rewards.sandbox.sandbox import Limits
from grpo.rewards.sandbox.workers import Pool, WorkerDied, WorkerFault, WorkerTimeout
from grpo.rewards.verifier import VerifierReward
from grpo.types import Score, Task

Meta = Mapping[str, Any]


def _reaches(answer: str, numbers: Sequence[int], target: Any) -> bool:
    wanted = _of_row(lambda: Fraction(str(target)))
    found, used = evaluate(answer)
    return found == wanted and sorted(used) == sorted(numbers)


def _of_row(read: Callable[[], Any]) -> Any:
    """A value read from the row. Raises UnusableGold if that fails: no answer could be right."""
    try:
        return read()
    except (ValueError, ArithmeticError) as error:
        raise UnusableGold(str(error)) from error


def _grid(text: str) -> list[list[str]]:
    return [line.split() for line in text.strip().splitlines() if line.strip()]


def _integers(grid: Sequence[Sequence[Any]]) -> list[list[int]]:
    return [[int(str(cell).strip("[],")) for cell in row] for row in grid]


def _same_grid(answer: str, wanted: Sequence[Sequence[Any]]) -> bool:
    return _of_row(lambda: _integers(wanted)) == _integers(_grid(answer))


def _queens(answer: str, meta: Meta) -> bool:
    board, given = _grid(answer), meta["puzzle"]
    size = len(given)
    if [len(row) for row in board] != [size] * size:
        return False
    queens = [(i, j) for i in range(size) for j in range(size) if board[i][j] == "Q"]
    kept = all(
        board[i][j] in ("Q", "_") and (given[i][j] != "Q" or board[i][j] == "Q")
        for i in range(size)
        for j in range(size)
    )
    lines = [{i for i, _ in queens}, {j for _, j in queens}]
    lines += [{i - j for i, j in queens}, {i + j for i, j in queens}]
    return kept and all(len(line) == len(queens) == size for line in lines)


# data set -> whether an answer is right; ValueError: it is not even of the right kind
SCORERS: dict[str, Callable[[str, Meta], bool]] = {
    "countdown": lambda a, m: _reaches(a, m["numbers"], m["target"]),
    "puzzle24": lambda a, m: _reaches(a, m["numbers"], 24),
    "n_queens": _queens,
    "spiral_matrix": lambda a, m: _same_grid(a, [m["solution"]]),
    "binary_matrix": lambda a, m: _same_grid(a, m["solution"]),
    "string_insertion": lambda a, m: a.strip().strip("'\"") == m["solution"],
    "polynomial_multiplication": lambda a, m: same_formula(
        a, m["polynomial_expr"], list(m["variables"])
    ),
    "simple_integration": lambda a, m: is_antiderivative(a, m["integrand"], m["variable"]),
    "intermediate_integration": lambda a, m: is_antiderivative(a, m["integrand"], m["variable"]),
}


class ReasoningGym(VerifierReward):
    """reasoning-gym's score of the answer, in [0, 1]; `strict` pays only full marks.

    timeout: seconds for one answer. workers and sandbox: as in `code`. Scores below full marks are
    what reasoning-gym gives for a partly right or even an empty answer.
    """

    name = "reasoning_gym"
    needs = ("metadata",)

    def __init__(
        self, strict: bool = True, timeout: float = 10.0, workers: int = 0, sandbox: str = "auto"
    ) -> None:
        self.strict = strict
        self.judges = strict  # part of the marks is neither right nor wrong
        self.timeout = timeout
        self.pool = Pool(
            "gym",
            ("grpo.rewards.gym_guest",),
            tier=sandbox,
            limits=Limits(cpu=int(timeout) + 1),
            workers=workers,
            recycle=1,  # an answer may have been executed: what it left must not meet the next
        )

    def verify(self, completion: str, task: Task) -> Score:
        """A number when the answer was judged; None for metadata that cannot be used."""
        try:
            meta = _metadata(task.columns["metadata"])
            name = str(meta["source_dataset"])
        except (ValueError, KeyError, TypeError) as error:
            return Score(value=None, status="unparseable_gold", detail=f"metadata: {error}")
        _, text = split_thought(completion)
        answer = None if text is None else last_answer_block(text) or last_box(text)
        if answer is None or not answer.strip():
            return Score(value=0.0, status="unparseable_answer", detail="no answer block")
        if len(answer) > 1 << 16:
            return Score(value=0.0, status="limit", detail="the answer is too long")
        if name in SCORERS:
            return _judge(SCORERS[name], answer.strip(), meta)
        return self._theirs(name, answer.strip(), {"answer": task.answer, "metadata": dict(meta)})

    def _theirs(self, name: str, answer: str, entry: dict[str, Any]) -> Score:
        request = {"dataset": name, "answer": answer, "entry": entry}
        try:
            found = self.pool.call(request, self.timeout)
        except WorkerTimeout as error:
            detail = f"no score within {self.timeout} s"
            if not error.stage:
                return Score(value=None, status="grader_error", detail=f"worker: {detail}")
            return Score(value=0.0, status="timeout", detail=detail)
        except WorkerFault as error:
            return Score(value=None, status="grader_error", detail=str(error)[:200])
        except WorkerDied as error:
            if not error.stage:
                return Score(value=None, status="grader_error", detail=f"worker: {error}")
            return Score(value=0.0, status="limit", detail="out of memory or crashed the scorer")
        if "unreadable" in found:
            detail = str(found["unreadable"])[:200]
            return Score(value=0.0, status="unparseable_answer", detail=detail)
        marks = float(found["score"])
        if marks >= 1.0:
            return Score(value=1.0, status="correct", detail=name)
        if self.strict or marks <= 0.0:
            return Score(value=0.0, status="wrong", detail=f"{name}: {marks:.3g}")
        return Score(value=marks, status="scored", detail=name)


def _metadata(raw: Any) -> Meta:
    found = json.loads(raw) if isinstance(raw, str) else raw
    if not isinstance(found, Mapping):
        raise TypeError("not an object")
    return found  # pyright: ignore[reportUnknownVariableType]


def _judge(scorer: Callable[[str, Meta], bool], answer: str, meta: Meta) -> Score:
    try:
        right = scorer(answer, meta)
    except (UnusableGold, KeyError, TypeError, IndexError) as error:
        return Score(value=None, status="unparseable_gold", detail=f"metadata: {error!r}"[:200])
    except ValueError as error:
        return Score(value=0.0, status="unparseable_answer", detail=str(error)[:200])
    status = "correct" if right else "wrong"
    return Score(value=float(right), status=status, detail=repr(answer[:80]))


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
