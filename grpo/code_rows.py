"""Rows of published code data sets, as the `prompt` and `tests` columns of the `code` reward.

Pure functions of one row, `place` for messages; the sources in `data/programs.py` are made of them.
They also prepare files for `data.source: jsonl` and for scoring:
    rows = [humaneval(json.loads(line)) for line in open("HumanEval.jsonl")]
The canonical solution, where there is one, is kept in `canonical_solution` for `grpo check`. What
it defines is kept in the tests as `defines` (a class as "class Node"), where the row has no entry
point of its own: it tells which names of the tests are the program's.
"""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Mapping
from typing import Any

from grpo.columns import Row, checked_prompt, column
from grpo.errors import DataError

LEETCODE_INSTRUCTION = "Answer with the whole class in a ```python block."


def humaneval(row: Row, place: str = "the row") -> dict[str, Any]:
    """openai_humaneval: prompt, entry_point, test, canonical_solution."""
    prompt, check, entry = (column(place, row, name) for name in ("prompt", "test", "entry_point"))
    asked = f"Complete this function. Answer with the whole function.\n\n```python\n{prompt}```"
    solution = row.get("canonical_solution")
    return _made(
        asked,
        {"setup": prompt, "check": check, "entry_point": entry},
        f"{prompt}{solution}" if solution else None,
    )


def mbpp(row: Row, place: str = "the row") -> dict[str, Any]:
    """google-research-datasets/mbpp, full or sanitized: text or prompt, test_list, code."""
    text = row.get("text") or column(place, row, "prompt")  # sanitized rows call it prompt
    asserts = [str(test) for test in column(place, row, "test_list")]
    imports: list[str] = row.get("test_imports") or []
    setup = "\n".join([*imports, str(row.get("test_setup_code") or "")]).strip()
    asked = "\n".join([f"{text}\nThe function must pass:", *asserts])
    return _made(asked, {"setup": setup, "asserts": asserts}, row.get("code"), defined=True)


def leetcode(
    row: Row, place: str = "the row", *, instruction: str = LEETCODE_INSTRUCTION
) -> dict[str, Any]:
    """newfacade/LeetCodeDataset: problem_description, starter_code, test, entry_point, completion.

    `prompt` holds the imports that a solution may rely on. Rows of this style that have no
    problem_description are asked by their `query`.
    """
    name = "query" if "query" in row and "problem_description" not in row else "problem_description"
    problem = checked_prompt(place, name, column(place, row, name))
    test, entry = column(place, row, "test"), column(place, row, "entry_point")
    starter = str(row.get("starter_code") or "").strip()
    shown = f"\n\n```python\n{starter}\n```" if starter else ""
    tests = {"setup": str(row.get("prompt") or ""), "functional": f"{test}\n\ncheck({entry})"}
    return _made(f"{problem}{shown}\n{instruction}", tests, row.get("completion"), defined=True)


def codeforces(row: Row) -> dict[str, Any]:
    """open-r1/codeforces and alike: description, input_format, output_format, tests.

    Tests are `official_tests`, else `examples` or `public_tests` (a list of {"input", "output"}, or
    one object with both lists), or `input_output` as in APPS and TACO ({"inputs", "outputs"}, with
    `fn_name` where a function is called instead of a program run). Several lines may be given as a
    list. Problems that accept several outputs need a checker of their own and are refused.
    """
    if row.get("generated_checker"):
        raise DataError("this problem accepts several outputs: its checker is not supported")
    parts = [row.get(name) for name in ("description", "input_format", "output_format", "note")]
    prompt = "\n\n".join(str(part) for part in parts if part) or str(row.get("question", ""))
    for name in ("official_tests", "examples", "public_tests", "input_output"):
        if row.get(name):
            return _made(prompt, _contest_tests(name, row), None)
    raise DataError("a Codeforces-style row needs official_tests, examples or input_output")


def _contest_tests(name: str, row: Row) -> dict[str, Any]:
    """The tests in the column `name`. Raises DataError where they have none of the known shapes."""
    given = row[name]
    try:
        given = json.loads(given) if isinstance(given, str) else given
        if isinstance(given, Mapping):
            inputs, outputs = (given.get(end, given.get(f"{end}s")) for end in ("input", "output"))
            pairs = list(zip(inputs, outputs, strict=True))
        else:
            pairs = [(case["input"], case["output"]) for case in given]
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{name} must be a list of objects with input and output, or one object with a list "
            f"of each, equally long; it is {str(row[name])[:60]!r}"
        ) from error
    function = given.get("fn_name") if isinstance(given, Mapping) else None
    if not function:
        return {"stdio": [{"input": _lines(a), "output": _lines(b)} for a, b in pairs]}
    if "class Solution" in str(row.get("starter_code") or ""):
        return {"asserts": [_called(f"Solution().{function}", a, b) for a, b in pairs]}
    return {
        "asserts": [_called(function, a, b) for a, b in pairs],
        "entry_point": function,
    }


def _lines(text: Any) -> str:
    return "\n".join(map(str, text)) if isinstance(text, list) else str(text)


def _called(function: str, arguments: Any, wanted: Any) -> str:
    # APPS gives some results in a list of their own
    either = isinstance(wanted, list) and len(wanted) == 1
    result = f"in ({wanted!r}, {wanted[0]!r})" if either else f"== {wanted!r}"
    return f"assert {function}(*{arguments!r}) {result}"


def defined_names(source: str) -> list[str]:
    """The functions, classes and variables that Python text defines at its top, imports left out.

    [] if it does not parse.
    """
    return [name.removeprefix("class ") for name in definitions(source)]


def definitions(source: str) -> list[str]:
    """`defined_names`, with a class as "class Name": the value of `defines` in a `tests` column."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of backslashes in somebody else's text
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    found: set[str] = set()
    for statement in tree.body:
        match statement:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                found.add(name)
            case ast.ClassDef(name=name):
                found.add(f"class {name}")
            case ast.Assign() | ast.AnnAssign():
                names = (node for node in ast.walk(statement) if isinstance(node, ast.Name))
                found |= {node.id for node in names if isinstance(node.ctx, ast.Store)}
            case _:
                pass
    return sorted(found)


def _made(
    prompt: str, tests: dict[str, Any], solution: Any, defined: bool = False
) -> dict[str, Any]:
    if defined and (defines := definitions(str(solution or ""))):
        tests = tests | {"defines": defines}
    made: dict[str, Any] = {"prompt": prompt, "tests": tests}
    return made | ({"canonical_solution": str(solution)} if solution else {})
