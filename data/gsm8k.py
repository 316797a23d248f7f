"""GSM8K (arXiv 2110.14168): grade-school word problems whose solutions end in "#### 42"."""

from __future__ import annotations

from typing import Any

from grpo.data.hub import load_rows
from grpo.data.jsonl import Row, Rows, answer_text, checked_prompt, column, make_tasks, read_jsonl
from grpo.errors import DataError


def gsm8k(
    *,
    path: str | None = None,
    heldout_path: str | None = None,
    heldout_fraction: float = 0.1,
    dataset: str = "openai/gsm8k",
) -> Rows:
    """GSM8K from local JSONL files (`question`, `answer`), or from the hub when `path` is null.

    The hub's test split is held out; a local file without `heldout_path` is split by hash. The
    worked solution is forwarded as the column `solution`.
    """
    if path is None:
        if heldout_path is not None:
            raise DataError("gsm8k: heldout_path needs path")
        train, heldout = load_rows(dataset, "main", "train"), load_rows(dataset, "main", "test")
    else:
        train = read_jsonl(path)
        heldout = None if heldout_path is None else read_jsonl(heldout_path)
    return Rows(
        "gsm8k",
        make_tasks("gsm8k", path or dataset, train, _to_task),
        None if heldout is None else make_tasks("gsm8k", str(heldout_path), heldout, _to_task),
        heldout_fraction,
    )


def gold_answer(place: str, solution: str) -> str:
    """The final number after the last "####", without thousands separators."""
    _, mark, gold = solution.rpartition("####")
    gold = gold.strip().replace(",", "").removeprefix("$")
    if not mark or not gold:
        raise DataError(f"{place}: the answer has no final '#### number': {solution!r:.80}")
    return gold


def _to_task(place: str, row: Row) -> tuple[Any, str, dict[str, Any]]:
    question = checked_prompt(place, "question", column(place, row, "question"))
    solution = answer_text(place, column(place, row, "answer"))
    others = {key: value for key, value in row.items() if key not in ("question", "answer")}
    return question, gold_answer(place, solution), {**others, "solution": solution}
