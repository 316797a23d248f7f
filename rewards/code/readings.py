"""A second reading of stdio tests whose text is data: lists of lines, and arguments of a function.

Data sets that were flattened hold the lines of an input as a list (TACO, `"['1 2', '3 4']"`), and
the arguments of a function as JSON: all in one list (APPS, `[1, 2]`) or one on each line
(LiveCodeBench). Such tests are first run as they stand; a program is right if one reading as a
whole says so.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from typing import Any, cast

from grpo.outside.rows.contest_rows import SAME_VALUE, called

LONGEST = 1 << 20  # characters of one text
SOLE = "__sole__"  # the only function of a program, in the tests


def as_lines(cases: Sequence[Any]) -> list[dict[str, str]] | None:
    """Stdio tests with the lines that lists hold, None unless every text is such a list."""
    read = [(_lines(case["input"]), _lines(case["output"])) for case in cases]
    if any(end is None for pair in read for end in pair):
        return None
    return [{"input": str(given), "output": str(wanted)} for given, wanted in read]


def _lines(text: Any) -> str | None:
    if not isinstance(text, str) or len(text) > LONGEST or text.strip()[:1] != "[":
        return None
    try:
        lines: Any = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    if not isinstance(lines, list):
        return None
    parts = cast("list[Any]", lines)
    return "\n".join(parts) if all(type(line) is str for line in parts) else None


def as_calls(cases: Sequence[Any]) -> list[dict[str, Any]]:
    """Tests that call the only function of a program: none, one or two ways to read `cases`.

    Numbers alone are what any program of a contest reads: somewhere there has to be a list, a
    quoted text or a truth value.
    """
    if any(not isinstance(case["input"], str) for case in cases):
        return []
    texts = [str(case[end]) for case in cases for end in ("input", "output")]
    if any(len(text) > LONGEST for text in texts):
        return []
    try:
        wanted = [_value(str(case["output"])) for case in cases]
        lines = [
            [_value(line) for line in case["input"].split("\n") if line.strip()] for case in cases
        ]
    except ValueError:
        lines, wanted = [], []
    found: list[dict[str, Any]] = []
    if wanted and any(not isinstance(v, int | float) or v is True or v is False
                      for v in [*wanted, *(part for args in lines for part in args)]):  # fmt: skip
        if all(len(args) == 1 and isinstance(args[0], list) for args in lines):
            found.append(_tests([args[0] for args in lines], wanted, wrapped=True))
        found.append(_tests(lines, wanted, wrapped=False))
    return found


def _value(text: str) -> Any:
    """JSON, with True, False and None as Python writes them. Raises ValueError."""
    python = {"True": True, "False": False, "None": None}
    if text.strip() in python:
        return python[text.strip()]
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _tests(arguments: Sequence[Any], wanted: Sequence[Any], wrapped: bool) -> dict[str, Any]:
    parts = [called(SOLE, a, b, wrapped) for a, b in zip(arguments, wanted, strict=True)]
    return {"setup": SAME_VALUE, "entry": SOLE, "defines": None, "parts": parts}
