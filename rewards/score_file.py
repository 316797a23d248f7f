"""`grpo score`: any reward over any JSON-lines file, streamed in order.

A row is {"prompt", "completion", "answer" | "tests" | …}; `prompt` may be left out. Every other
key is a column of the reward, as in training.
"""

from __future__ import annotations

import inspect
import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, cast

from grpo.columns import is_missing
from grpo.errors import DataError
from grpo.foreign import guarded
from grpo.rewards import deadline
from grpo.rewards.calling import as_scores, finished, invoke, named
from grpo.rewards.graded import GradedReward
from grpo.rewards.verifier import VerifierReward, make_task, missing_columns, text_of
from grpo.types import Score, Task

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
    needed, so files may be longer than memory. `timeout`: seconds that one call may take. Raises
    DataError, with the line number, for bad JSON or a missing column, and RewardError where the
    reward fails.
    """
    if isinstance(reward, str):
        from grpo import rewards
        from grpo.plugins import find, load

        args = dict(args or {})
        factory = find("reward", reward, rewards.REWARDS)
        if reward in rewards.REWARDS and "workers" in inspect.signature(factory).parameters:
            args.setdefault("workers", workers)
        name, scorer = reward, load("reward", reward, rewards.REWARDS, args)
    else:
        name, scorer = getattr(reward, "__name__", type(reward).__name__), reward
    try:
        with (
            Path(path).open(encoding="utf-8-sig", newline="\n") as lines,
            ThreadPoolExecutor(workers) as threads,
        ):
            rows = _rows(lines, path, name, scorer)
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
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    except deadline.LateError:
        scorer = None  # its `close` might wait for what hangs
        raise
    finally:
        close = getattr(scorer, "close", None)
        if isinstance(reward, str) and callable(close):
            close()


def _rows(lines: Any, path: str | Path, name: str, scorer: Any) -> Iterator[Any]:
    needs: tuple[str, ...] = getattr(scorer, "needs", ())
    needs_ids = _needs_ids(scorer)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: a row must be a JSON object")
        record = cast("dict[str, Any]", row)
        if not isinstance(record.get("completion"), str | list):
            raise DataError(f"{path}, line {number}: column 'completion' (text) is missing")
        if not isinstance(record["completion"], str) and not all(
            isinstance(message, dict) for message in record["completion"]
        ):
            raise DataError(f"{path}, line {number}: a 'completion' list holds messages (objects)")
        missing = missing_columns(needs, _task(record, _columns(record)))
        if missing:
            raise DataError(
                f"{path}, line {number}: reward {name!r} needs column {missing[0]!r}; the row has "
                f"{', '.join(sorted(k for k, v in record.items() if not is_missing(v)))}"
            )
        if needs_ids and record.get("completion_ids") is None:  # none of them is a length of 0
            raise DataError(
                f"{path}, line {number}: reward {name!r} takes completion_ids and the row has "
                "none; add the column, or give the parameter the default None"
            )
        yield record


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


def _score_rows(
    name: str, scorer: Any, records: list[dict[str, Any]], timeout: float
) -> list[Score]:
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
