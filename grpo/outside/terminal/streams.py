"""The one place where standard output and standard error are written.

`guarded` puts a `Door` in front of both: text from `print`, a warning, a library's log or a
traceback passes through `printable.shown`. Two things bypass the door: data, by `write_data`, and
the colors and cursor of our own tables, by `grpo.outside.terminal.console`. So do processes that
other packages start.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from grpo.errors.printable import json_printable, shown

_COLORS = re.compile(r"\x1b\[[0-9;]{0,32}m")


class Door:
    """A stream of text in front of `raw`, through which no control character passes.

    Colors, which libraries write, are left out. A carriage return at the beginning of `text` passes
    if the line is empty or began with one: it redraws a progress bar. A character that the encoding
    of `raw` lacks is escaped instead of raising.
    """

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        self._empty, self._progress = True, False  # of the current line
        if hasattr(raw, "reconfigure"):
            raw.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Write `text`, printable; its length."""
        if text.isascii() and text.isprintable() and len(text) < 4:
            self.raw.write(text)  # pieces of a line
            self._empty = self._empty and not text
            return len(text)
        redraws = text.startswith("\r") and (self._empty or self._progress)
        start = "\r" if redraws else ""
        rest = text.replace("\r\n", "\n") if "\r\n" in text else text
        self.raw.write(start + shown(_COLORS.sub("", rest.removeprefix(start))))
        self._empty = text.endswith("\n")
        self._progress = "\n" not in text and (redraws or self._progress)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each of `lines`."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


@contextmanager
def guarded() -> Iterator[None]:
    """Put standard output and error behind doors. After an error they stay, for its traceback."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = door(sys.stdout), door(sys.stderr)
    yield
    sys.stdout, sys.stderr = before


def door(stream: Any) -> Any:
    """`stream` behind a door, if it is not behind one already."""
    return stream if isinstance(stream, Door) else Door(stream)


def behind(stream: Any) -> Any:
    """The stream behind a door, for text that is printable already."""
    return stream.raw if isinstance(stream, Door) else stream


def write_data(text: str, *, flush: bool = False) -> None:
    """Write JSON to standard output: exact data, its control characters as escapes of JSON."""
    raw = behind(sys.stdout)
    raw.write(json_printable(text, getattr(raw, "encoding", None) or "utf-8"))
    if flush:
        raw.flush()
