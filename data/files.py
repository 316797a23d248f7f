"""Files of rows in the formats that people have: JSON lines, JSON, CSV, TSV, Parquet and Arrow.

Each may be compressed (`.gz`, `.zst`). A folder or a pattern (`rows/*.parquet`) stands for its
files, in the order of their names, all of one format; a folder that `save_to_disk` wrote is read as
that library does.

JSON lines are read strictly (`grpo/outside/files/json_rows.py`). The cells of CSV and TSV are
text: "007" stays "007", and no column is guessed to hold numbers or dates. An empty cell is None,
and so is NaN, which tables have in empty cells.
"""

from __future__ import annotations

import csv
import glob
import gzip
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

from grpo.errors import DataError
from grpo.outside.files.json_rows import parse_row, row_lines
from grpo.outside.rows.columns import Row

Placed = tuple[str, Row]  # where a row was read ("rows.jsonl:3"), and its columns
PACKED = (".gz", ".zst")
SAVED = ("dataset_info.json", "dataset_dict.json")  # of a folder that save_to_disk wrote
LARGEST_CELL = 256 << 20  # characters


def read_rows(path: str | Path) -> list[Placed]:
    """The rows of a file, a folder or a pattern, each with its place for messages.

    Raises DataError for what is missing, empty, damaged or of no known format.
    """
    found = [row for file in files_at(path) for row in iterate(file)]
    if not found:
        raise DataError(f"data file {path} is empty")
    return found


def files_at(path: str | Path) -> list[Path]:
    """The files that a path stands for, all of one format. Raises DataError."""
    text, place = str(path), Path(path).expanduser()
    if place.is_dir():
        if any((place / name).is_file() for name in SAVED):
            return [place]
        inside = [file for file in sorted(place.rglob("*")) if file.is_file()]
        found = [file for file in inside if format_of(file)]
        if not found:
            raise DataError(f"data folder {path} holds no file of rows; valid: {_valid()}")
    elif place.exists():
        return [place]
    elif glob.has_magic(text):
        found = sorted(Path(one) for one in glob.glob(str(place), recursive=True))
        found = [file for file in found if file.is_file()]
        if not found:
            raise DataError(f"no file matches {path}")
    else:
        raise DataError(f"data file {path} does not exist")
    kinds = {format_of(file) for file in found}
    if len(kinds) > 1:
        each = ", ".join(sorted(kind or "others" for kind in kinds))
        raise DataError(f"{path} has files of several formats ({each}); name those of one: *.jsonl")
    return found


def iterate(file: Path) -> Iterator[Placed]:
    """The rows of one file, one after the other. Raises DataError."""
    if file.is_dir():
        yield from _saved(file)
        return
    yield from READERS[format_of(file) or ".jsonl"](file)


def format_of(file: Path) -> str:
    """The ending that names the format, ".jsonl" say; "" where none does."""
    name = file.name.lower()
    for ending in PACKED:
        name = name.removesuffix(ending)
    ending = Path(name).suffix
    return ending if ending in READERS else ""


def _valid() -> str:
    return f"{', '.join(READERS)}, each also with {' or '.join(PACKED)}"


def opened(file: Path) -> IO[bytes]:
    """The bytes of a file, unpacked. Raises DataError and OSError."""
    match file.suffix.lower():
        case ".gz":
            return cast("IO[bytes]", gzip.open(file, "rb"))
        case ".zst":
            import pyarrow  # which datasets brings

            with pyarrow.input_stream(str(file), compression="zstd") as stream:
                return io.BytesIO(stream.read())  # its own has no lines
        case _:
            return file.open("rb")


def as_object(place: str, value: Any) -> Row:
    """`value` if it is an object with columns. Raises DataError."""
    if not isinstance(value, dict):
        shown = "a list" if isinstance(value, list) else json.dumps(value)[:40]
        raise DataError(f"{place} must be a JSON object with columns, not {shown}")
    return cast(Row, value)


def _json_lines(file: Path) -> Iterator[Placed]:
    try:
        with opened(file) as stream:
            for number, line in row_lines(file, stream):
                place = f"{file}:{number}"
                try:
                    value = parse_row(line)
                except ValueError as error:  # also a number of thousands of digits
                    raise DataError(f"{place} is not JSON: {error}") from error
                yield place, as_object(place, value)
    except (OSError, EOFError) as error:
        raise DataError(f"data file {file} cannot be read: {error}") from error


def _json(file: Path) -> Iterator[Placed]:
    """An array of rows, an object with one such array in it, or lines of rows."""
    text = _text(file)
    if not text.lstrip().startswith(("[", "{")):
        raise DataError(f"{file} is not JSON: it begins with {text.lstrip()[:20]!r}")
    try:
        found = parse_row(text)
    except ValueError as error:
        if text.lstrip().startswith("{") and "\n" in text.strip():
            yield from _json_lines(file)  # many people name such files .json
            return
        raise DataError(f"{file} is not JSON: {error}") from error
    if isinstance(found, dict):
        values = cast("dict[str, Any]", found)
        lists = [name for name, value in values.items() if _is_rows(value)]
        if not lists or "prompt" in values:
            yield f"{file}:1", cast(Row, values)  # one line of rows
            return
        if len(lists) > 1:
            raise DataError(
                f"{file} is one JSON object with several lists of rows ({', '.join(lists)}); give "
                "the list itself, or one row a line (.jsonl)"
            )
        found = values[lists[0]]
    for number, value in enumerate(cast("list[Any]", found), 1):
        place = f"{file} row {number}"
        yield place, as_object(place, value)


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def _text(file: Path) -> str:
    try:
        with opened(file) as stream:
            return stream.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text: {error}") from error
    except (OSError, EOFError) as error:
        raise DataError(f"data file {file} cannot be read: {error}") from error


def _separated(delimiter: str) -> Callable[[Path], Iterator[Placed]]:
    def read(file: Path) -> Iterator[Placed]:
        csv.field_size_limit(LARGEST_CELL)
        lines = csv.reader(io.StringIO(_text(file), newline=""), delimiter=delimiter, strict=True)
        names: Sequence[str] = ()
        try:
            for cells in lines:
                if not cells:  # a blank line
                    continue
                if not names:
                    names = _header(file, cells)
                    continue
                place = f"{file}:{lines.line_num}"
                if len(cells) != len(names):
                    raise DataError(
                        f"{place} has {len(cells)} cells, and the header {len(names)} columns "
                        f"({', '.join(names)}); quote cells that hold a {delimiter!r}"
                    )
                yield place, {n: cell or None for n, cell in zip(names, cells, strict=True)}
        except csv.Error as error:
            raise DataError(f"{file}:{lines.line_num} is not {file.suffix[1:]}: {error}") from error

    return read


def _header(file: Path, cells: Sequence[str]) -> Sequence[str]:
    names = [cell.strip() for cell in cells]
    twice = [name for index, name in enumerate(names) if name in names[:index] or not name]
    if twice:
        what = f"the column {twice[0]!r} twice" if twice[0] else "a column without a name"
        raise DataError(f"{file}:1 has {what}; the first line names the columns, each once")
    return names


def _parquet(file: Path) -> Iterator[Placed]:
    from pyarrow import parquet

    yield from _table(file, lambda source: parquet.read_table(source))


def _arrow(file: Path) -> Iterator[Placed]:
    from pyarrow import ipc

    def read(source: Any) -> Any:
        start = source.read(6)
        source.seek(0)
        kind = ipc.open_file if start == b"ARROW1" else ipc.open_stream
        return kind(source).read_all()

    yield from _table(file, read)


def _table(file: Path, read: Callable[[Any], Any]) -> Iterator[Placed]:
    """The rows of a pyarrow table; `read` makes it of an open file."""
    try:
        with opened(file) as stream:
            # Tables are read from their ends, which a packed stream cannot.
            source = io.BytesIO(stream.read()) if file.suffix.lower() in PACKED else stream
            rows = read(source).to_pylist()
    except Exception as error:  # pyarrow raises whatever its readers raise
        said = f"{type(error).__name__}: {error}"
        raise DataError(f"data file {file} is damaged, or no such file: {said:.200}") from error
    for number, row in enumerate(rows, 1):
        yield f"{file} row {number}", as_row(without_nan(row))


def _saved(folder: Path) -> Iterator[Placed]:
    """The rows of a folder that `save_to_disk` wrote, of its split train where it has several."""
    import datasets  # seconds to import

    try:
        table: Any = datasets.load_from_disk(str(folder))
    except Exception as error:  # the library raises whatever its readers raise
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"data folder {str(folder)!r} cannot be loaded: {reason}") from error
    if isinstance(table, datasets.DatasetDict):
        if "train" not in table:
            have = ", ".join(map(str, table))
            raise DataError(f"data folder {str(folder)!r} has no split train, only {have}")
        table = table["train"]
    for number, row in enumerate(table, 1):
        yield f"{folder}:{number}", as_row(without_nan(dict(row)))


def without_nan(row: Row) -> Row:
    """A row of a table with None for NaN, which stands in its empty cells."""
    return {name: None if value != value else value for name, value in row.items()}


def as_row(row: Row) -> Row:
    """A row of a table without the None that tables add to messages and tools.

    All structures of a column have the same keys, so an argument of one tool is None in all others.
    """
    nested = {
        key: _without_none(value)
        for key, value in row.items()
        if key in ("tools", "chat_template_kwargs") or _holds_messages(value)
    }
    return {**row, **nested}


def _holds_messages(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(m, dict) and "role" in m for m in value)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


READERS: dict[str, Callable[[Path], Iterator[Placed]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".feather": _arrow,
}
