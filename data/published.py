"""Published data sets: any of the Hugging Face hub, and by name those of mathematics and programs.

AIME, AMC and HumanEval are for evaluation: every row is held out unless `heldout_fraction` says
otherwise. A program's tests travel in the column `tests`, the published solution in
`canonical_solution`, so that `grpo check` can try the verifier on it
(`grpo/outside/rows/code_rows.py`). Where the data set names no entry point, `tests["defines"]`
lists what that solution defines: the program's names in the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from grpo.data.files import as_row, read_rows
from grpo.data.table import TableSource, ToTask, column_mapper, make_tasks
from grpo.errors import DataError
from grpo.model.hub import find_repo, offline, without_scripts
from grpo.outside.rows import code_rows
from grpo.outside.rows.columns import Row, answer_text, checked_prompt, column, is_missing


def hub(
    *,
    path: str,
    name: str | None = None,
    split: str = "train",
    heldout_split: str | None = None,
    prompt: str = "prompt",
    answer: str | None = "answer",
    heldout_fraction: float = 0.1,
    revision: str | None = None,
    limit: int | None = None,
) -> TableSource:
    """Tasks of the data set `path` (configuration `name`); `prompt` and `answer` name columns.

    Without `heldout_split`, the hash of the prompt holds out `heldout_fraction` of `split`. With
    `limit` only the first rows of a split are read, and no more of the data set is downloaded
    (streaming); the order of those rows is then shuffled as any other.
    """
    to_task = column_mapper(prompt, answer)
    rows = load_rows(path, name, split, revision, limit)
    train = make_tasks("hub", f"{path}[{split}]", rows, to_task)
    heldout = None
    if heldout_split is not None:
        rows = load_rows(path, name, heldout_split, revision, limit)
        heldout = make_tasks("hub", f"{path}[{heldout_split}]", rows, to_task)
    return TableSource("hub", train, heldout, heldout_fraction, answer)


@dataclass(frozen=True, kw_only=True)
class OnHub:
    """A published data set: its id on the hub, its configuration `name` and its splits."""

    dataset: str
    name: str | None = None
    split: str = "train"
    heldout_split: str | None = None


def published(
    source: str,
    to_task: ToTask,
    at: OnHub,
    heldout_fraction: float,
    path: str | None,
    heldout_path: str | None = None,
) -> TableSource:
    """Tasks of a published data set, under the name `source`: from the hub, or from a file.

    With `path`, its rows are read there; else the split of `at` is. Held out are the rows of
    `heldout_path` or of the held-out split; where there is neither, `heldout_fraction` of the rows.
    """
    if path is not None:
        origin, rows = path, read_rows(path)
        heldout = None if heldout_path is None else read_rows(heldout_path)
    elif heldout_path is not None:
        raise DataError(f"{source}: heldout_path needs path")
    else:
        origin, rows = at.dataset, load_rows(at.dataset, at.name, at.split)
        held = at.heldout_split
        heldout = None if held is None else load_rows(at.dataset, at.name, held)
    train = make_tasks(source, origin, rows, to_task)
    tasks = None
    if heldout is not None:
        tasks = make_tasks(source, heldout_path or at.dataset, heldout, to_task)
    return TableSource(source, train, tasks, heldout_fraction)


def load_rows(
    path: str,
    name: str | None,
    split: str,
    revision: str | None = None,
    limit: int | None = None,
) -> list[tuple[str, Row]]:
    """Rows of one split, the first `limit` of them, each with its place. Raises DataError."""
    said = f"data set {path!r} (name={name!r}, split={split!r}) cannot be loaded"
    cached = False
    if not Path(path).exists():
        try:
            found = find_repo(path, "dataset", revision)
        except LookupError as error:
            raise DataError(f"{said}: there is no such folder, {error}") from None
        revision, cached = found.revision, bool(found.unreachable)
    import datasets  # seconds to import, and only this source needs it

    try:
        with offline(cached):
            table: Any = datasets.load_dataset(
                path,
                name,
                split=split,
                revision=revision,
                **({} if limit is None else {"streaming": True}),
                **without_scripts(),
            )
            if limit is not None:
                table = list(table.take(limit))
    except Exception as error:  # the library raises whatever its readers and its network raise
        raise DataError(f"{said}: {type(error).__name__}: {error}") from error
    return [(f"{path}[{split}] row {i}", as_row(dict(row))) for i, row in enumerate(table)]


AIME = {  # year -> data set and split on the hub
    2024: ("HuggingFaceH4/aime_2024", "train"),
    2025: ("math-ai/aime25", "test"),
}
Parts = tuple[Any, str, dict[str, Any]]  # prompt, answer and the other columns


def gsm8k(
    *,
    path: str | None = None,
    heldout_path: str | None = None,
    heldout_fraction: float = 0.1,
    dataset: str = "openai/gsm8k",
) -> TableSource:
    """GSM8K (arXiv 2110.14168): grade-school word problems whose solutions end in "#### 42".

    Rows come from local files (`question`, `answer`), or from the hub where `path` is null.
    The hub's test split is held out; a local file without `heldout_path` is split by hash. Rewards
    receive the worked solution as the column `solution`.
    """
    at = OnHub(dataset=dataset, name="main", heldout_split="test")
    return published("gsm8k", _gsm8k_parts, at, heldout_fraction, path, heldout_path)


def math(
    *,
    path: str | None = None,
    heldout_path: str | None = None,
    heldout_fraction: float = 0.1,
    dataset: str = "HuggingFaceH4/MATH-500",
    split: str = "test",
    instruction: str = "",
) -> TableSource:
    """Rows of MATH and MATH-500 (`problem`, `solution`, `answer`), from JSONL files or the hub.

    `instruction` follows every problem on a line of its own (say "Put the final answer in
    \\boxed{}."). A row without `answer` takes it from the last \\boxed{…} of its solution.
    """

    def parts(place: str, row: Row) -> Parts:
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
        prompt = f"{problem}\n{instruction}" if instruction else problem
        return prompt, gold, _without(row, "problem", "answer")

    at = OnHub(dataset=dataset, split=split)
    return published("math", parts, at, heldout_fraction, path, heldout_path)


def aime(
    *, year: int = 2024, path: str | None = None, heldout_fraction: float = 1.0
) -> TableSource:
    """The 30 problems of AIME I and II of `year`, from the hub or from a JSONL file."""
    if year not in AIME:
        raise DataError(f"aime: year must be {' or '.join(map(str, AIME))}, not {year!r}")
    dataset, split = AIME[year]
    at = OnHub(dataset=dataset, split=split)
    return published("aime", _contest, at, heldout_fraction, path)


def amc(
    *, path: str | None = None, dataset: str = "math-ai/amc23", heldout_fraction: float = 1.0
) -> TableSource:
    """The 40 problems of AMC 12 of 2023 with a number as their answer."""
    at = OnHub(dataset=dataset, split="test")
    return published("amc", _contest, at, heldout_fraction, path)


def gold_answer(place: str, solution: str) -> str:
    """The final number after the last "####", without thousands separators."""
    _, mark, gold = solution.rpartition("####")
    gold = gold.strip().replace(",", "").removeprefix("$")
    if not mark or not gold:
        raise DataError(f"{place}: the answer has no final '#### number': {solution!r:.80}")
    return gold


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


def _gsm8k_parts(place: str, row: Row) -> Parts:
    question = checked_prompt(place, "question", column(place, row, "question"))
    solution = answer_text(place, column(place, row, "answer"))
    others = {**_without(row, "question", "answer"), "solution": solution}
    return question, gold_answer(place, solution), others


def _contest(place: str, row: Row) -> Parts:
    """Copies on the hub differ in the prompt's name, and in whether answers are text or numbers."""
    name = "problem" if "problem" in row else "question"
    problem = checked_prompt(place, name, column(place, row, name))
    answer = column(place, row, "answer")
    whole = isinstance(answer, float) and answer.is_integer()  # some copies say 27.0
    gold = str(int(answer)) if whole else answer_text(place, answer)
    return problem, gold, _without(row, name, "answer")


def _without(row: Row, *names: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in names}


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
