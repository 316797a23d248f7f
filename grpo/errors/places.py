"""Which line of the user's code an error is about, as people find it again.

A cell of a notebook is named as the page shows it, `In[5], line 3`. The file name under which
IPython compiles it says nothing to anybody.
"""

from __future__ import annotations

import linecache
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from functools import cache
from types import FrameType
from typing import Any

import grpo

_OURS = os.path.dirname(os.path.abspath(str(grpo.__file__))) + os.sep
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_NOWHERE = ("<frozen", "<string>")  # Python's own, and code that dataclasses and the like generate
_TIMED = ("<timed exec>", "<timed eval>")  # what IPython's `%time` compiles, without its source


@cache
def is_users(file: str) -> bool:
    """Whether a source file is the user's own: not ours, not Python's, not installed."""
    return not (file.startswith(_OURS) or _is_pythons(file) or _is_installed(file))


def place_of(error: BaseException) -> str:
    """ " at FILE:LINE" where the user's code raised `error`; "" if none of it is the user's.

    For a plug-in from an installed package, its outermost line.
    """
    if isinstance(error, SyntaxError) and os.path.isabs(error.filename or ""):
        # no frame is of a file that cannot be read
        return f" at {named(error.filename or '', error.lineno or 0)}"
    return _place([(frame.f_code.co_filename, line) for frame, line in _frames(error)])


def place_in(frame: FrameType | None) -> str:
    """The same for code that is still running in `frame`."""
    found = [(f.f_code.co_filename, line) for f, line in traceback.walk_stack(frame)]
    return _place(found[::-1])


def lines_of(error: BaseException, before: BaseException | None = None) -> list[tuple[str, str]]:
    """(place, source) of the user's lines that led to `error` and to what it was raised from.

    The line that was called last stands last, and each line once. before: an error that the user
    was handling already; what led to that one is left out.
    """
    found: dict[str, tuple[str, str]] = {}
    magic: dict[str, tuple[str, str]] = {}  # the call of IPython's that `%%time` stands for
    for one in _chain(error, before):
        for frame, line in _frames(one):
            code = frame.f_code
            if is_users(code.co_filename):
                place = named(code.co_filename, line)
                inside = "" if code.co_name.startswith("<") else f", in {code.co_name}"
                source = _source(code.co_filename, line)
                kept = magic if "get_ipython().run_" in source else found
                kept.setdefault(place, (place + inside, source))
    return list((found or magic).values())


def named(file: str, line: int) -> str:
    """FILE:LINE, and for a cell of a notebook "In[5], line 3"."""
    cell, at = _on_page(file, line)
    return f"In[{cell}], line {at}" if cell else f"{file}:{line}"


def _source(file: str, line: int) -> str:
    cell, at = _on_page(file, line)
    kept = linecache.getline(file, line) or "".join(_raw()[cell].splitlines()[at - 1 : at])
    return kept.strip()


def _on_page(file: str, line: int) -> tuple[int, int]:
    """(number, line) of the newest cell that was compiled under the name `file`; 0 for a real file.

    The body of a cell magic is compiled alone, so its lines count from the second one of the cell.
    """
    shell = _shell()
    if shell is None or os.path.exists(file):
        return 0, line
    source = "".join(linecache.getlines(file)).strip()
    cells: list[Any] = list(shell.user_ns.get("In", []))
    for number in reversed(range(len(cells))):
        if source and str(cells[number]).strip() == source:
            return number, line
    for number, raw in reversed(list(enumerate(_raw()))):
        first, _, body = raw.partition("\n")
        if first.startswith("%%") and (body.strip() == source if source else file in _TIMED):
            return number, line + 1
        at = [i for i, text in enumerate(raw.splitlines()) if "%time " in text]
        if at and file in _TIMED:
            return number, line + at[-1]
    return 0, line


def _shell() -> Any:
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython is not None else None


def _raw() -> list[str]:
    """The cells as they were typed, by number."""
    return list(getattr(getattr(_shell(), "history_manager", None), "input_hist_raw", [""]))


def _chain(error: BaseException, before: BaseException | None) -> Iterator[BaseException]:
    """The error and what it was raised from, however that was hidden."""
    seen: set[int] = {id(before)}
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    return traceback.walk_tb(error.__traceback__)


def _is_installed(file: str) -> bool:
    return any(part in file for part in _INSTALLED)


@cache
def _is_pythons(file: str) -> bool:
    library = [sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib")]
    return file.startswith(_NOWHERE) or (
        file.startswith(tuple(library)) and not _is_installed(file)
    )


def _place(frames: list[tuple[str, int]]) -> str:
    """ " at FILE:LINE" of the innermost frame in a user's file, else of the outermost in a package.

    "" if all of them are ours or Python's.
    """
    users = [frame for frame in frames if is_users(frame[0])]
    others = [f for f in frames if _is_installed(f[0]) and not f[0].startswith(_OURS)]
    found = users[-1:] or others[:1]
    return f" at {named(*found[0])}" if found else ""
