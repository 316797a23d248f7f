"""What comes back from a server: JSON of bounded depth, or one of two exceptions.

A server may be broken, or not be the one it was taken for, so no part of an answer is believed
before it was checked: `part` returns a value only if it has the expected type.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

_LARGEST = 1 << 63  # below which a number is taken for a float
DEEPEST = 64  # lists and objects of an answer within one another
_OTHERS = bytes(set(range(256)) - set(b'"[]{}'))

T = TypeVar("T")


class Unreachable(Exception):
    """No answer came that can be used; `late` if none came before the deadline."""

    def __init__(self, reason: str, *, late: bool = False) -> None:
        super().__init__(reason)
        self.late = late


class Refused(Exception):
    """The server answered with status `status` and text `reason`."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"status {status}: {reason}")
        self.status = status


def read(status: int, content: bytes, location: str = "") -> Any:
    """The JSON of an answer, None for an empty one. Raises Unreachable and Refused.

    location: where the server sends its callers on. Nobody follows: the key would go along.
    """
    if 300 <= status < 400:
        where = f" to {location[:200]!r}" if location else ""
        raise Refused(status, f"it sends calls on{where}, which is not followed: name that address")
    try:
        decoded = _decoded(content)
    except (ValueError, RecursionError) as error:
        if status < 300:
            start = content[:80].decode(errors="replace")
            raise Unreachable(f"an answer that is not JSON: {start!r}") from error
        decoded = content[:2000].decode(errors="replace")
    if not 200 <= status < 300:
        raise Refused(status, _reason(decoded))
    return decoded


def part(answer: Any, *path: str | int, kind: type[T]) -> T:
    """The value at `path` in an answer, if it is of type `kind`. Raises Unreachable.

    `part({"data": [{"id": "m"}]}, "data", 0, "id", kind=str)` is "m". A bool is not a number. An
    int is a float as well; infinity, which is how 1e999 is read, is not.
    """
    found: Any = answer
    for step in path:
        if isinstance(found, dict):
            found = found.get(step)
        elif isinstance(found, list) and isinstance(step, int) and step < len(found):
            found = found[step]
        else:
            found = None
    if kind is float:
        number = type(found) in (int, float) and abs(found) < _LARGEST
        found = float(found) if number else None
    if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
        where = ".".join(map(str, path)) or "top"
        shown = " ".join(repr(answer).split())[:80]
        raise Unreachable(f"an answer without a {kind.__name__} at {where}: {shown}")
    return found


def _decoded(content: bytes) -> Any:
    if not content.strip():
        return None
    if _is_deep(content):
        raise ValueError(f"more than {DEEPEST} lists and objects within one another")
    return json.loads(content.decode(), parse_constant=_no_number)


def _is_deep(content: bytes) -> bool:
    """Whether brackets stand deeper than `DEEPEST`; twice as deep for some that are mixed."""
    if content.count(b"[") + content.count(b"{") <= DEEPEST:
        return False
    if b"\\" in content:  # pairs first, so that the quote behind one ends its string
        content = content.replace(rb"\\", b"").replace(rb"\"", b"")
    # Two quotes side by side begin and end nothing that matters; what is left are few strings.
    kept = content.translate(None, _OTHERS).replace(b'""', b"")
    if b'"' in kept:
        kept = b"".join(kept.split(b'"')[::2])
    for _ in range(DEEPEST):
        if not kept:
            return False
        kept = kept.replace(b"[]", b"").replace(b"{}", b"")
    return bool(kept)


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _reason(decoded: Any) -> str:
    """What the server says went wrong, in one line."""
    if isinstance(decoded, dict):
        error = decoded.get("error", decoded.get("detail", decoded))
        decoded = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(decoded).split())[:500]
