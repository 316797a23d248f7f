"""Rows that are in memory already: lists of dicts, data sets, data frames, generators."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from grpo.data.files import Placed, as_row
from grpo.data.source import is_heldout
from grpo.data.table import ROWS, TableSource, column_mapper, make_tasks
from grpo.errors import DataError

MOST = 1_000_000  # rows that are taken of what has no length
FORMS = "a list of dicts, a data set, a data frame, a dict of columns, a generator, or a path"


def rows_given(dataset: Any, what: str) -> list[Placed]:
    """The rows of a data set in memory as plain Python, each with its place ("row 3 of dataset").

    dataset: a list or tuple of dicts or of texts (prompts), datasets.Dataset, IterableDataset,
    pandas or polars DataFrame, pyarrow Table, dict of columns, torch Dataset, generator, or a
    function that gives one. Rows are copies; NaN is None. what: its name in messages. Raises
    DataError for anything else, for a row that is no dict, and for no rows.
    """
    rows: list[Placed] = []
    for number, row in enumerate(_rows(dataset, what), 1):
        place = f"row {number} of {what}"
        if isinstance(row, str):
            row = {"prompt": row}
        if not isinstance(row, Mapping):
            raise DataError(
                f"{place} is of type {type(row).__name__} ({row!r:.60}), and a row is a dict with "
                "a prompt: {'prompt': 'What is 2 + 2?', 'answer': '4'}"
            )
        named = cast("Mapping[Any, Any]", row)
        rows.append((place, as_row({str(key): plain(value) for key, value in named.items()})))
    if not rows:
        once = "; a generator gives its rows only once" if isinstance(dataset, Iterator) else ""
        raise DataError(f"{what} has no rows{once}")
    return rows


def table_of(
    rows: Sequence[Placed],
    *,
    prompt: str = "prompt",
    answer: str | None = "answer",
    heldout_rows: Sequence[Placed] | None = None,
    heldout_fraction: float = 0.1,
    name: str = "dataset",
) -> TableSource:
    """Tasks of rows, as of a file with the same rows.

    Where `heldout_rows` are not given, `heldout_fraction` of the prompts are held out, but at least
    one if the fraction is above 0. Raises DataError for rows that are no tasks.
    """
    to_task = column_mapper(prompt, answer)
    train = make_tasks(ROWS, name, rows, to_task)
    if heldout_rows is not None:
        heldout = make_tasks(ROWS, f"eval_{name}", heldout_rows, to_task)
        return TableSource(name, train, heldout, heldout_fraction, answer)
    clusters = list(dict.fromkeys(task.cluster for task in train))
    some = any(is_heldout(cluster, heldout_fraction) for cluster in clusters)
    if some or heldout_fraction == 0 or len(clusters) < 2:
        return TableSource(name, train, None, heldout_fraction, answer)
    last = [task for task in train if task.cluster == clusters[-1]]
    return TableSource(name, train, last, heldout_fraction, answer)


def plain(value: Any) -> Any:
    """A value as plain Python: numpy's numbers and arrays, tensors, time stamps of pandas; a copy.

    NaN, NaT and pandas' NA, which tables have in empty cells, are None.
    """
    if value is None or isinstance(value, str | bool | int | bytes):
        return value
    if isinstance(value, float):
        return None if value != value else value
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in cast("Sequence[Any]", value)]
    kind = cast("type[Any]", type(value))
    if kind.__name__ in ("NAType", "NaTType"):
        return None
    if kind.__module__.partition(".")[0] in ("numpy", "torch") and hasattr(value, "tolist"):
        return plain(value.tolist())
    return value


def _rows(given: Any, what: str) -> Iterator[Any]:
    is_function = callable(given) and not hasattr(given, "__getitem__")
    dataset: Any = given() if is_function else given
    if _is(dataset, "datasets", "DatasetDict", "IterableDatasetDict"):
        splits = ", ".join(map(repr, dataset))
        first = next(iter(dataset))
        raise DataError(f"{what} has the splits {splits}; give one of them: {what}[{first!r}]")
    if _is(dataset, "pandas", "DataFrame"):
        yield from dataset.to_dict("records")
    elif _is(dataset, "polars", "DataFrame"):
        yield from dataset.to_dicts()
    elif _is(dataset, "pyarrow", "Table"):
        yield from dataset.to_pylist()
    elif _is(dataset, "pandas", "Series") or _is(dataset, "polars", "Series", "LazyFrame"):
        raise DataError(f"{what} is a {type(dataset).__name__}; give the data frame: {FORMS}")
    elif isinstance(dataset, Mapping):
        yield from _columns(cast("Mapping[str, Any]", dataset), what)
    elif isinstance(dataset, str | bytes) or dataset is None:
        raise DataError(f"{what} = {dataset!r:.60}; give {FORMS}")
    elif hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        yield from (dataset[index] for index in range(len(dataset)))  # a torch Dataset has no more
    elif isinstance(dataset, Iterable):
        yield from _endless(iter(cast("Iterable[Any]", dataset)), what)
    else:
        raise DataError(f"{what} is of type {type(dataset).__name__}; give {FORMS}")


def _columns(dataset: Mapping[str, Any], what: str) -> Iterator[dict[str, Any]]:
    """The rows of a dict of columns. Raises DataError for columns that are none."""
    lists = {name: value for name, value in dataset.items() if isinstance(value, list | tuple)}
    if not lists or len(lists) < len(dataset):
        hint = f"[{what}]" if not lists else "lists of one length"
        raise DataError(
            f"{what} is one dict ({', '.join(map(str, dataset))}); give {hint}: {FORMS}"
        )
    lengths = {name: len(value) for name, value in lists.items()}
    if len(set(lengths.values())) > 1:
        each = ", ".join(f"{name} has {count}" for name, count in lengths.items())
        raise DataError(f"the columns of {what} differ in length: {each}")
    for values in zip(*lists.values(), strict=True):
        yield dict(zip(lists, values, strict=True))


def _endless(rows: Iterator[Any], what: str) -> Iterator[Any]:
    """The rows of what has no length. Raises DataError where it does not end."""
    yield from itertools.islice(rows, MOST)
    for _ in rows:
        raise DataError(
            f"{what} gives more than {MOST:,} rows, and rows are read before training, so that a "
            "run can be resumed; take a part of it (dataset.take(10_000)), or write a source that "
            "makes the task of any index: docs/data.md"
        )


def _is(value: Any, package: str, *names: str) -> bool:
    """Whether a value is of a class of a package, which is not imported to find out."""
    if package not in sys.modules:
        return False
    return any(
        kind.__name__ in names and kind.__module__.partition(".")[0] == package
        for kind in type(value).__mro__
    )
