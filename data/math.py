"""Competition mathematics in the rows of MATH and MATH-500: problem, solution, answer."""

from __future__ import annotations

from typing import Any

from grpo.data.hub import published
from grpo.data.jsonl import TableSource
from grpo.errors import DataError
from grpo.outside.rows.columns import Row, answer_text, checked_prompt, column, is_missing


def math(
    *,
    path: str | None = None,
    heldout_path: str | None = None,
    heldout_fraction: float = 0.1,
    dataset: str = "HuggingFaceH4/MATH-500",
    split: str = "test",
    instruction: str = "",
) -> TableSource:
    """MATH-style rows from local JSONL files, or from `dataset` on the hub when `path` is null.

    `instruction` is put after every problem on a line of its own (say "Put the final answer in
    \\boxed{}."). A row without `answer` takes it from the last \\boxed{…} of its solution.
    """

    def to_task(place: str, row: Row) -> tuple[Any, str, dict[str, Any]]:
        problem = checked_prompt(place, "problem", column(place, row, "problem"))
        if not isinstance(problem, str):
            raise DataError(f"{place}: column 'problem' must be text")
        given = row.get("answer")
        if is_missing(given):
            gold = last_boxed(str(column(place, row, "solution")))
            if gold is None:
                raise DataError(f"{place} has no column 'answer', and its solution has no \\boxed")
        else:
            gold = answer_text(place, given)
        others = {key: value for key, value in row.items() if key not in ("problem", "answer")}
        return f"{problem}\n{instruction}" if instruction else problem, gold, others

    return published(
        "math",
        to_task,
        dataset=dataset,
        split=split,
        path=path,
        heldout_path=heldout_path,
        heldout_fraction=heldout_fraction,
    )


def last_boxed(solution: str) -> str | None:
    """Content of the last balanced \\boxed{…} or \\fbox{…}, None if there is none."""
    start = max(solution.rfind("\\boxed{"), solution.rfind("\\fbox{"))
    if start < 0:
        return None
    begin = solution.index("{", start)
    depth = 0
    for end in range(begin, len(solution)):
        depth += {"{": 1, "}": -1}.get(solution[end], 0)
        if depth == 0:
            return solution[begin + 1 : end]
    return None
