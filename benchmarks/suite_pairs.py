r"""The pairs in math-verify's test files, read as syntax: nothing of theirs is imported or run.

Three shapes are known. Rows of `pytest.mark.parametrize` with a gold, a prediction and what is
expected; calls of `compare_strings("gold", "prediction")` inside a test; and, in the tests of mixed
numbers, `gold = parse("…")` beside `prediction = parse("…")`, or predictions with a list of values
that they must not equal. What a test says of `parse` alone is no pair.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

EXPECTED = ("expected", "result")
UNEQUAL = ("finite_candidates", "inserted_operation_value")
# options of math-verify under which `math` decides, too; a lower precision rounds an exact gold
OPTIONS = {"strict": True, "allow_set_relation_comp": True}
PRECISION = 5
_VALUE = re.compile(r"[0-9]")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One pair, e.g. Pair(place="test_all.py:57", gold="-5", prediction="-5", expected=True)."""

    place: str
    gold: str
    prediction: str
    expected: bool

    @property
    def file(self) -> str:
        return self.place.partition(":")[0]


def pairs_of(folder: Path) -> tuple[list[Pair], dict[str, str]]:
    """The pairs of a folder's `test_*.py` in order, and why the pair at a place is left out."""
    pairs: list[Pair] = []
    left_out: dict[str, str] = {}
    for path in sorted(folder.glob("test_*.py")):
        for pair, options in _of_file(path):
            if _needs_option(options):
                left_out[pair.place] = "needs an option"
            elif _is_layout(pair):
                left_out[pair.place] = "the same value, refused for its line breaks"
            else:
                pairs.append(pair)
    return pairs, left_out


def _is_layout(pair: Pair) -> bool:
    said = [_VALUE.findall(text) for text in (pair.gold, pair.prediction)]
    return not pair.expected and "\n" in pair.prediction and said[0] == said[1]


def _needs_option(options: Mapping[str, object]) -> bool:
    precision = options.get("precision", PRECISION)
    rounds = isinstance(precision, int) and precision < PRECISION
    return rounds or any(options.get(name, value) != value for name, value in OPTIONS.items())


def _of_file(path: Path) -> Iterator[tuple[Pair, dict[str, object]]]:
    for test in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(test, ast.FunctionDef) and test.name.startswith("test_"):
            for names, rows in _parametrized(test):
                for row in rows:
                    yield from _of_row(path.name, names, row)
            yield from _of_body(path.name, test)


def _parametrized(test: ast.FunctionDef) -> Iterator[tuple[list[str], list[ast.expr]]]:
    for call in test.decorator_list:
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.parametrize":
            names = ast.literal_eval(call.args[0])
            names = names.split(",") if isinstance(names, str) else names
            if isinstance(call.args[1], ast.List):
                yield [name.strip() for name in names], call.args[1].elts


def _of_row(
    file: str, names: Sequence[str], row: ast.expr
) -> Iterator[tuple[Pair, dict[str, object]]]:
    values = row.args if isinstance(row, ast.Call) else getattr(row, "elts", [row])
    cells = dict(zip(names, map(_value, values), strict=True))
    place = f"{file}:{row.lineno}"
    if "gold" in cells:
        expected = next(bool(cells[name]) for name in EXPECTED if name in cells)
        gold, prediction = str(cells["gold"]), str(cells["pred"])
        yield Pair(place=place, gold=gold, prediction=prediction, expected=expected), cells
    for name in UNEQUAL:
        golds = cells.get(name, ())
        for gold in golds if isinstance(golds, tuple) else (golds,):
            prediction = str(cells["prediction"])
            yield Pair(place=place, gold=str(gold), prediction=prediction, expected=False), {}


def _of_body(file: str, test: ast.FunctionDef) -> Iterator[tuple[Pair, dict[str, object]]]:
    named: dict[str, object] = {}
    for node in ast.walk(test):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            value = node.value
            if isinstance(value, ast.Call) and ast.unparse(value.func) == "parse":
                value = value.args[0]
            named[node.targets[0].id] = _value(value)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "compare_strings":
            gold, prediction = map(_value, node.args[:2])
            options = {word.arg or "": _value(word.value) for word in node.keywords}
            if isinstance(gold, str) and isinstance(prediction, str):
                place = f"{file}:{node.lineno}"
                pair = Pair(place=place, gold=gold, prediction=prediction, expected=True)
                yield pair, options
    gold, prediction = named.get("gold"), named.get("prediction")
    if isinstance(gold, str) and isinstance(prediction, str):
        expected = bool(named["expected"])
        place = f"{file}:{test.lineno}"
        yield Pair(place=place, gold=gold, prediction=prediction, expected=expected), {}


def _value(node: ast.expr) -> object:
    """A literal's value; of an f-string only square roots are worked out. None: no literal."""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_part, node.values))
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _part(node: ast.expr) -> str:
    if isinstance(node, ast.FormattedValue) and isinstance(node.value, ast.Call):
        if ast.unparse(node.value.func) == "math.sqrt":
            form = _value(node.format_spec) if node.format_spec else ""
            return format(math.sqrt(ast.literal_eval(node.value.args[0])), str(form))
        raise ValueError(f"line {node.lineno}: {ast.unparse(node)} is not read")
    return str(_value(node))
