"""Files of rows that someone else wrote, one JSON value a line: read line by line, strictly.

A line ends at \\n and nowhere else. A key that comes twice in an object is refused (plain readers
keep the last value), and so are bytes that are not UTF-8. NaN and infinity, which tables write into
empty cells, are read; the code that needs a value there says that it is missing.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path
from typing import IO, Any

from grpo.errors import DataError

LONGEST = 256 << 20  # bytes of a line; a file without line ends would fill the memory


def row_lines(path: str | Path, opened: IO[bytes] | None = None) -> Generator[tuple[int, str]]:
    """(number, text) of each line of a file or pipe that is not blank.

    opened: its bytes, where they are not those on the disk.

    Raises DataError, with the line, for what is not UTF-8 or too long, and OSError.
    """
    with opened or Path(path).open("rb") as file:
        number = 0
        while line := file.readline(LONGEST):
            number += 1
            if len(line) == LONGEST:
                raise DataError(f"{path}:{number} has more than {LONGEST >> 20} MiB in one line")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{path}:{number} is not UTF-8 text: {error}") from error
            if text.strip():
                yield number, text


def parse_row(text: str) -> Any:
    """The value of a line. Raises ValueError, also for depth and for a key that comes twice."""
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError as error:
        raise ValueError(str(error)) from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        key = next(key for key in keys if keys.count(key) > 1)
        values = " and ".join(f"{value!r:.40}" for k, value in pairs if k == key)
        raise ValueError(f"the key {key!r} stands there more than once, with {values}")
    return found
