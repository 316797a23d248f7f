"""Our own JSON Lines files, written and read so that any text survives.

A line ends at \\n and nowhere else. `str.splitlines` also cuts at U+2028, U+2029 and U+0085, which
models write and which JSON allows in strings. They are escaped here, so that other readers find
whole lines too, and so are lone surrogates, which UTF-8 cannot hold.
"""

from __future__ import annotations

import json
import re
from typing import Any

_ENCODE = json.JSONEncoder(ensure_ascii=False).encode
# Only strings of a JSON text can hold these, so an escape in their place is the same value.
_ESCAPED = re.compile("[\\x85\\u2028\\u2029\\ud800-\\udfff]")


def to_line(value: Any) -> str:
    """`value` as one line of JSON, its \\n included."""
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", _ENCODE(value)) + "\n"


def from_lines(text: str) -> list[Any]:
    """The values of lines that `to_line` wrote, or any JSON writer that ends lines by \\n."""
    return [json.loads(line) for line in split_lines(text)]


def split_lines(text: str) -> list[str]:
    """The lines of a text that are not blank, without their ends."""
    return [line for line in text.split("\n") if line.strip()]
