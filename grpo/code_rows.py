"""Rows of published code data sets, as this project's `prompt` and `tests` columns.

Pure functions of one row, for `data.source: jsonl`/`hub` preparations and for scoring files:
    rows = [humaneval(json.loads(line)) for line in open("HumanEval.jsonl")]
The canonical solution, where there is one, is kept in `canonical_solution` for `grpo check`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from grpo.errors import DataError

Row = Mapping[str, Any]


def humaneval(row: Row) -> dict[str, Any]:
    """openai_humaneval: prompt, entry_point, test, canonical_solution."""
    _need("HumanEval", row, "prompt", "test", "entry_point")
    prompt = str(row["prompt"])
    tests = {"setup": prompt, "check": row["test"], "entry_point": row["entry_point"]}
    return _made(
        f"Complete this function. Answer with the whole function.\n\n```python\n{prompt}```",
        tests,
        prompt + str(row["canonical_solution"]) if row.get("canonical_solution") else None,
    )


def mbpp(row: Row) -> dict[str, Any]:
    """google-research-datasets/mbpp, full or sanitized: text or prompt, test_list, code."""
    _need("MBPP", row, "test_list")
    text = row.get("text") or row.get("prompt")
    imports: list[str] = row.get("test_imports") or []
    setup = "\n".join([*imports, str(row.get("test_setup_code") or "")]).strip()
    asserts = [str(test) for test in row["test_list"]]
    shown = "\n".join(asserts)
    tests = {"setup": setup, "asserts": asserts}
    return _made(f"{text}\nThe function must pass:\n{shown}", tests, row.get("code"))


def leetcode(row: Row) -> dict[str, Any]:
    """newfacade/LeetCodeDataset: query or problem_description, test, entry_point, completion."""
    _need("LeetCode", row, "test", "entry_point")
    prompt = row.get("query") or row.get("problem_description") or row.get("prompt")
    tests = {"functional": f"{row['test']}\n\ncheck({row['entry_point']})"}
    return _made(str(prompt), tests, row.get("completion"))


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


def _need(kind: str, row: Row, *names: str) -> None:
    for name in names:
        if row.get(name) is None:
            raise DataError(f"a {kind} row needs {name!r}; this one has {', '.join(sorted(row))}")


def _made(prompt: str, tests: dict[str, Any], solution: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"prompt": prompt, "tests": tests}
    return made | ({"canonical_solution": str(solution)} if solution else {})
