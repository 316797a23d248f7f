"""GSM8K (arXiv 2110.14168): grade-school word problems whose solutions end in "#### 42"."""

from __future__ import annotations

from typing import Any

from grpo.data.hub import published
from grpo.data.jsonl import TableSource
from grpo.errors import DataError
from grpo.outside.rows.columns import Row, answer_text, checked_prompt, column


def gsm8k(
    *,
    path: str | None = None,
    heldout_path: str | None = None,
    heldout_fraction: float = 0.1,
    dataset: str = "openai/gsm8k",
) -> TableSource:
    """GSM8K from local JSONL files (`question`, `answer`), or from the hub when `path` is null.

    The hub's test split is held out; a local file without `heldout_path` is split by hash. The
    worked solution is forwarded as the column `solution`.
    """
    return published(
        "gsm8k",
        _to_task,
        dataset=dataset,
        name="main",
        heldout_split="test",
        path=path,
        heldout_path=heldout_path,
        heldout_fraction=heldout_fraction,
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
