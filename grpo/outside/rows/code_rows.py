"""Rows of published code data sets, as the `prompt` and `tests` columns of the `code` reward.

Pure functions of one row; messages name it by `place`. The sources in `data/published.py` use them.
They also prepare files for `data.source: file` and for scoring:
    rows = [humaneval(json.loads(line)) for line in open("HumanEval.jsonl")]
The published solution is kept in `canonical_solution` for `grpo check`. If the row names no entry
point, the names that the solution defines are kept in the tests as `defines` (a class as "class
Node"): these names in the tests are the program's.
"""

from __future__ import annotations

import ast
import warnings
from typing import Any

from grpo.errors import DataError
from grpo.outside.rows.columns import Row, checked_prompt, column
from grpo.outside.rows.contest_rows import contest_tests

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
    """mbpp, full or sanitized, or evalplus/mbppplus: text or prompt, test_list, code, (test)."""
    text = row.get("text") or column(place, row, "prompt")  # sanitized rows call it prompt
    asserts = [str(test) for test in column(place, row, "test_list")]
    imports: list[str] = row.get("test_imports") or []
    setup = "\n".join([*imports, str(row.get("test_setup_code") or "")]).strip()
    asked = "\n".join([f"{text}\nThe function must pass:", *asserts])
    if more := row.get("test"):  # MBPP+ (arXiv 2305.01210) has many more of them in one text
        return _made(asked, {"setup": setup, "functional": str(more)}, row.get("code"), True)
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


def kodcode(row: Row, place: str = "the row") -> dict[str, Any]:
    """KodCode (arXiv 2503.02951): question, solution, and `test`, functions for pytest.

    They are called one after another. What the tests import from the solution is the program's.
    Raises DataError for tests that only pytest can run: with fixtures, parametrized, in classes.
    """
    question = checked_prompt(place, "question", column(place, row, "question"))
    solution = str(row.get("solution") or "")
    test, imported = _pytest_calls(str(column(place, row, "test")), place)
    tests = {"functional": test, "defines": sorted({*definitions(solution)} or imported)}
    return _made(question, tests, solution)


def _pytest_calls(source: str, place: str) -> tuple[str, set[str]]:
    """Tests with a call of each of their functions, and what they import from the solution."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DataError(f"{place}: test is not Python ({error})") from error
    body: list[ast.stmt] = []
    imported: set[str] = set()
    calls: list[str] = []
    for statement in tree.body:
        match statement:
            case ast.ImportFrom(module="solution", names=names):
                imported |= {alias.name for alias in names}
                renamed = [(a.asname, a.name) for a in names if a.asname]
                body += [ast.parse(f"{new} = {old}").body[0] for new, old in renamed]
                continue
            case ast.FunctionDef(name=name) if name.startswith("test"):
                arguments = statement.args
                if arguments.posonlyargs or arguments.args or statement.decorator_list:
                    raise DataError(
                        f"{place}: test has {name} with arguments or decorators, which only pytest "
                        "can run; leave the row out"
                    )
                calls.append(f"{name}()")
            case ast.ClassDef(name=name) if name.startswith("Test"):
                raise DataError(f"{place}: test has a class {name}, which only pytest can run")
        body.append(statement)
    if not calls:
        raise DataError(f"{place}: test has no function whose name starts with test")
    text = ast.unparse(ast.Module(body=body, type_ignores=[]))
    return "\n".join([text, *calls]), imported


def codeforces(row: Row, place: str = "the row") -> dict[str, Any]:
    """A row of a contest's problems: Codeforces, APPS, TACO, CodeContests, LiveCodeBench, ….

    `contest_rows` says by which columns a format is told and how its tests are read. The prompt is
    the row's text, with its starter code. Raises DataError.
    """
    tests = contest_tests(row, place)
    parts = [row.get(name) for name in ("description", "input_format", "output_format", "note")]
    names = ("question", "question_content", "problem", "prompt")
    prompt: Any = "\n\n".join(str(part) for part in parts if part) or next(
        (row[name] for name in names if row.get(name)), ""
    )
    starter = str(row.get("starter_code") or "").strip()
    if starter and isinstance(prompt, str):
        prompt = f"{prompt}\n\n```python\n{starter}\n```"
    return _made(prompt, tests, None)


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
    return sorted(found)


def _made(
    prompt: Any, tests: dict[str, Any], solution: Any, defined: bool = False
) -> dict[str, Any]:
    if defined and (defines := definitions(str(solution or ""))):
        tests = tests | {"defines": defines}
    made: dict[str, Any] = {"prompt": prompt, "tests": tests}
    return made | ({"canonical_solution": str(solution)} if solution else {})
