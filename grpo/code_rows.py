"""Rows of published code data sets, as the `prompt` and `tests` columns of the `code` reward.

Pure functions of one row, `place` for messages; the sources in `data/programs.py` are made of them.
They also prepare files for `data.source: jsonl` and for scoring:
    rows = [humaneval(json.loads(line)) for line in open("HumanEval.jsonl")]
The canonical solution, where there is one, is kept in `canonical_solution` for `grpo check`.
"""

from __future__ import annotations

import ast
import json
import warnings
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
    return _made(asked, {"setup": setup, "asserts": asserts}, row.get("code"))


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
    return _made(f"{problem}{shown}\n{instruction}", tests, row.get("completion"))


def codeforces(row: Row) -> dict[str, Any]:
    """open-r1/codeforces and alike: description, input_format, output_format, tests.

    Tests are `official_tests`, else `examples`, or input_output as in APPS ({"inputs", "outputs"}).
    Problems that accept several outputs need a checker of their own and are refused.
    """
    if row.get("generated_checker"):
        raise DataError("this problem accepts several outputs: its checker is not supported")
    cases = row.get("official_tests") or row.get("examples") or row.get("public_tests")
    if not cases and row.get("input_output"):
        both = row["input_output"]
        both = json.loads(both) if isinstance(both, str) else both
        pairs = zip(both["inputs"], both["outputs"], strict=True)
        cases = [{"input": given, "output": wanted} for given, wanted in pairs]
    if not cases:
        raise DataError("a Codeforces-style row needs official_tests, examples or input_output")
    parts = [row.get(name) for name in ("description", "input_format", "output_format", "note")]
    prompt = "\n\n".join(str(part) for part in parts if part) or str(row.get("question", ""))
    stdio = [{"input": str(case["input"]), "output": str(case["output"])} for case in cases]
    return _made(prompt, {"stdio": stdio}, None)


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


def _made(prompt: str, tests: dict[str, Any], solution: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"prompt": prompt, "tests": tests}
    return made | ({"canonical_solution": str(solution)} if solution else {})
