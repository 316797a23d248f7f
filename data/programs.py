"""Python problems with tests for the `code` reward: HumanEval, MBPP and LeetCodeDataset.

Tests travel in the column `tests`, the published solution in `canonical_solution`, so that
`grpo check` can try the verifier on it (`grpo/outside/rows/code_rows.py`). Where the data set names
no entry point, `tests["defines"]` lists what that solution defines: the program's names in the
tests.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from grpo.data.hub import OnHub, published
from grpo.data.jsonl import TableSource
from grpo.outside.rows import code_rows
from grpo.outside.rows.columns import Row


def humaneval(
    *,
    path: str | None = None,
    dataset: str = "openai/openai_humaneval",
    heldout_fraction: float = 1.0,
) -> TableSource:
    """The 164 problems of HumanEval (arXiv 2107.03374), from the hub or from a JSONL file.

    They are for evaluation: every row is held out unless `heldout_fraction` says otherwise.
    """
    to_task = partial(_task, code_rows.humaneval, "task_id")
    at = OnHub(dataset=dataset, split="test")
    return published("humaneval", to_task, at, heldout_fraction, path)


def mbpp(
    *,
    path: str | None = None,
    heldout_path: str | None = None,
    dataset: str = "google-research-datasets/mbpp",
    heldout_fraction: float = 0.1,
) -> TableSource:
    """MBPP (arXiv 2108.07732), full or sanitized; the hub's test split of 500 is held out."""
    to_task = partial(_task, code_rows.mbpp, "task_id")
    at = OnHub(dataset=dataset, heldout_split="test")
    return published("mbpp", to_task, at, heldout_fraction, path, heldout_path)


def leetcode(
    *,
    path: str | None = None,
    heldout_path: str | None = None,
    heldout_fraction: float = 0.1,
    dataset: str = "newfacade/LeetCodeDataset",
    instruction: str = code_rows.LEETCODE_INSTRUCTION,
) -> TableSource:
    """LeetCodeDataset (arXiv 2504.14655): problems with a hundred tests each.

    The hub's test split, problems published after July 2024, is held out. The starter code is
    shown; the imports that a solution may rely on are the tests' `setup`.
    """
    convert = partial(code_rows.leetcode, instruction=instruction)
    to_task = partial(_task, convert, "difficulty")
    at = OnHub(dataset=dataset, heldout_split="test")
    return published("leetcode", to_task, at, heldout_fraction, path, heldout_path)


def _task(
    convert: Callable[[Row, str], dict[str, Any]], kept: str, place: str, row: Row
) -> tuple[str, None, dict[str, Any]]:
    """What `convert` makes of a row, with the column `kept` beside it."""
    columns = convert(row, place)
    prompt: str = columns.pop("prompt")
    return prompt, None, {kept: row.get(kept), **columns}
