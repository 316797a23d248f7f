"""Mathematics contests whose answers are numbers: AIME of a year, AMC.

These sets are for evaluation, so every row is held out unless `heldout_fraction` says otherwise.
Rows have `problem` or `question`, and `answer`; copies on the hub differ in the name and in whether
the answer is text or a number.
"""

from __future__ import annotations

from typing import Any

from grpo.data.hub import published
from grpo.data.jsonl import TableSource
from grpo.errors import DataError
from grpo.outside.rows.columns import Row, answer_text, checked_prompt, column

AIME = {  # year -> data set and split on the hub
    2024: ("HuggingFaceH4/aime_2024", "train"),
    2025: ("math-ai/aime25", "test"),
}


def aime(
    *, year: int = 2024, path: str | None = None, heldout_fraction: float = 1.0
) -> TableSource:
    """The 30 problems of AIME I and II of `year`, from the hub or from a JSONL file."""
    if year not in AIME:
        raise DataError(f"aime: year must be {' or '.join(map(str, AIME))}, not {year!r}")
    dataset, split = AIME[year]
    return published(
        "aime",
        _to_task,
        dataset=dataset,
        split=split,
        path=path,
        heldout_fraction=heldout_fraction,
    )


def amc(
    *, path: str | None = None, dataset: str = "math-ai/amc23", heldout_fraction: float = 1.0
) -> TableSource:
    """The 40 problems of AMC 12 of 2023 with a number as their answer."""
    return published(
        "amc", _to_task, dataset=dataset, split="test", path=path, heldout_fraction=heldout_fraction
    )


def _to_task(place: str, row: Row) -> tuple[Any, str, dict[str, Any]]:
    name = "problem" if "problem" in row else "question"
    problem = checked_prompt(place, name, column(place, row, name))
    answer = column(place, row, "answer")
    whole = isinstance(answer, float) and answer.is_integer()  # some copies say 27.0
    gold = str(int(answer)) if whole else answer_text(place, answer)
    others = {key: value for key, value in row.items() if key not in (name, "answer")}
    return problem, gold, others
