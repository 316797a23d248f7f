"""`grpo score`: any reward over any JSON-lines file, streamed in order.

A row is {"prompt", "completion", "answer" | "tests" | …}; `prompt` may be left out. Every other
key is a column of the reward, as in training.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, cast

from grpo.errors import DataError
from grpo.outside.code.foreign import guarded
from grpo.outside.files.json_rows import parse_row, row_lines
from grpo.outside.rows.columns import is_missing
from grpo.rewards import deadline
from grpo.rewards.calling import as_scores, close_all, finished, invoke, named
from grpo.rewards.verifier import GradedReward, VerifierReward, make_task, missing_columns, text_of
from grpo.types import Score, Task

Row = dict[str, Any] | Score  # columns, or what a row comes to that cannot be scored

CHUNK = 32  # rows handed to one thread at a time
_NOT_COLUMNS = ("prompt", "completion", "completion_ids")


def score_file(
    reward: str | Callable[..., Any],
    path: str | Path,
    workers: int = 1,
    args: dict[str, Any] | None = None,
    timeout: float = deadline.SECONDS,
) -> Iterator[dict[str, Any]]:
    """One {"value", "status", "detail", "parts"} per row of the file, in order, as they finish.

    `reward` is a reward object or a plug-in name with its `args`. Rows are read as they are
    needed, so files may be longer than memory. `timeout`: seconds that one call may take. A cell
    that is empty (null, NaN) or holds what is no text leaves its row without a value. Raises
    DataError, with the line number, for bad JSON and for a column that is missing or empty in
    every row, and RewardError where the reward fails.
    """
    try:
        with closing(row_lines(path)) as lines:
            yield from score_rows(reward, _parsed(lines, path), workers, args, timeout)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}") from error


def score_rows(
    reward: str | Callable[..., Any],
    placed: Iterable[tuple[str, Any]],
    workers: int = 1,
    args: dict[str, Any] | None = None,
    timeout: float = deadline.SECONDS,
) -> Iterator[dict[str, Any]]:
    """`score_file` for rows that are read already, each with its place for messages."""
    if isinstance(reward, str):
        from grpo import rewards
        from grpo.outside.code.plugins import find, load

        args = dict(args or {})
        factory = find("reward", reward)
        if reward in rewards.REWARDS and "workers" in inspect.signature(factory).parameters:
            args.setdefault("workers", workers)
        name, scorer = reward, load("reward", reward, args)
    else:
        name, scorer = getattr(reward, "__name__", type(reward).__name__), reward
    try:
        with ThreadPoolExecutor(workers) as threads:
            rows = _rows(placed, name, scorer)
            waiting: deque[Future[list[Score]]] = deque()
            try:
                while chunk := list(islice(rows, CHUNK)):
                    waiting.append(threads.submit(_score_rows, name, scorer, chunk, timeout))
                    while len(waiting) > 2 * workers or waiting[0].done():
                        yield from map(_as_row, waiting.popleft().result())
                        if not waiting:
                            break
                while waiting:
                    yield from map(_as_row, waiting.popleft().result())
            finally:
                for future in waiting:
                    future.cancel()
    except deadline.LateError:
        scorer = None  # its `close` might wait for what hangs
        raise
    finally:
        if isinstance(reward, str):
            close_all(scorer)


def _parsed(lines: Iterator[tuple[int, str]], path: str | Path) -> Iterator[tuple[str, Any]]:
    """The value of each line, with its place. Raises DataError."""
    for number, line in lines:
        try:
            yield f"{path}, line {number}", parse_row(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error})") from error


def _rows(placed: Iterable[tuple[str, Any]], name: str, scorer: Any) -> Iterator[Row]:
    """Rows that can be scored, and the outcome of those that cannot. Raises DataError."""
    needs: tuple[str, ...] = getattr(scorer, "needs", ())
    needs_ids = _needs_ids(scorer)
    first, whole = "", False  # what the first row lacks; whether any row lacks nothing
    for place, row in placed:
        if not isinstance(row, dict):
            raise DataError(f"{place}: a row must be a JSON object")
        record = cast("dict[str, Any]", row)
        _check_texts(place, record)
        missing = missing_columns(needs, _task(record, _columns(record)))
        if missing:
            says = (
                f"{place}: reward {name!r} needs column {missing[0]!r}; the row has "
                f"{', '.join(sorted(k for k, v in record.items() if not is_missing(v)))}"
            )
            if not any(column in record for column in missing[0].split("|")):
                raise DataError(says)
            first = first or says
        if needs_ids and record.get("completion_ids") is None:  # none of them is a length of 0
            raise DataError(
                f"{place}: reward {name!r} takes completion_ids and the row has "
                "none; add the column, or give the parameter the default None"
            )
        outcome = _outcome(record, missing, needs)
        whole = whole or outcome is None
        yield record if outcome is None else outcome
    if first and not whole:
        raise DataError(first)


def _check_texts(place: str, record: dict[str, Any]) -> None:
    """Raise DataError for a prompt or completion that is neither text nor messages nor null."""
    if "completion" not in record:
        raise DataError(f"{place}: column 'completion' (text) is missing")
    for column in ("completion", "prompt"):
        said = record.get(column)
        if said is not None and not isinstance(said, str | list):
            raise DataError(f"{place}: column {column!r} is text or messages, not {said!r:.40}")
        messages = cast("list[Any]", said) if isinstance(said, list) else []
        if not all(isinstance(message, dict) for message in messages):
            raise DataError(f"{place}: a {column!r} list holds messages (objects)")


def _outcome(record: dict[str, Any], missing: list[str], needs: tuple[str, ...]) -> Score | None:
    """What a row comes to that cannot be scored; None for one that can be."""
    if missing:
        return Score(value=None, status="not_applicable", detail=f"{missing[0]} is empty")
    if record["completion"] is None:
        return Score(value=None, status="not_applicable", detail="completion is empty")
    for column in ("answer", "solution"):
        gold = record.get(column)
        if isinstance(gold, list | dict) and any(column in need.split("|") for need in needs):
            kind = "list" if isinstance(gold, list) else "object"
            detail = f"{column} is a JSON {kind}, not text or a number"
            return Score(value=None, status="unparseable_gold", detail=detail)
        if not is_missing(gold):
            return None
    return None


def _needs_ids(scorer: Any) -> bool:
    """Whether a reward cannot be called without `completion_ids`."""
    try:
        parameters = inspect.signature(scorer).parameters
    except (TypeError, ValueError):  # a class with `verify` alone, or one written in C
        return False
    ids = parameters.get("completion_ids")
    return ids is not None and ids.default is inspect.Parameter.empty


def _task(record: dict[str, Any], columns: dict[str, Any]) -> Task:
    return make_task(record.get("prompt") or "", columns)


def _score_rows(name: str, scorer: Any, rows: list[Row], timeout: float) -> list[Score]:
    """One score a row, in order; those that are scores already stay."""
    found = iter(_scored(name, scorer, [r for r in rows if not isinstance(r, Score)], timeout))
    return [row if isinstance(row, Score) else next(found) for row in rows]


def _scored(name: str, scorer: Any, records: list[dict[str, Any]], timeout: float) -> list[Score]:
    if isinstance(scorer, VerifierReward) and not isinstance(scorer, GradedReward):
        return deadline.within(name, timeout, lambda: _verified(name, scorer, records))
    scores: list[Score] = []
    for record in records:
        keywords: dict[str, Any] = {key: [value] for key, value in _columns(record).items()}
        keywords["prompts"] = [record.get("prompt") or ""]
        keywords["completions"] = [record["completion"]]
        if record.get("completion_ids") is not None:
            keywords["completion_ids"] = [record["completion_ids"]]

        def call(keywords: dict[str, Any] = keywords) -> list[Score]:
            return finished(name, invoke(name, scorer, keywords), 1)

        scores.extend(deadline.within(name, timeout, call))
    return scores


def _verified(name: str, scorer: VerifierReward, records: list[dict[str, Any]]) -> list[Score]:
    tasks = [_task(record, _columns(record)) for record in records]
    with guarded(f"reward {name!r}", lambda error: named(name, error)):
        found = scorer.verify_all([text_of(record["completion"]) for record in records], tasks)
    return as_scores(name, found, len(records))


def _columns(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in _NOT_COLUMNS}


def _as_row(score: Score) -> dict[str, Any]:
    row: dict[str, Any] = {"value": score.value, "status": score.status, "detail": score.detail}
    return row | ({"parts": dict(score.parts)} if score.parts else {})
