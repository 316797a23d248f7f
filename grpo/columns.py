"""Columns of a row that someone else wrote, read with a DataError that says where and what."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from grpo.errors import DataError
from grpo.types import Message

Row = Mapping[str, Any]


def column(place: str, row: Row, name: str) -> Any:
    """`row[name]`, or a DataError that names the columns there are and the closest ones."""
    if name not in row:
        close = difflib.get_close_matches(name, list(row), n=2, cutoff=0.5)
        hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        have = ", ".join(sorted(row)) or "none"
        raise DataError(f"{place} has no column {name!r}.{hint} Columns: {have}.")
    return row[name]


def checked_prompt(place: str, name: str, value: Any) -> str | list[Message]:
    """The prompt itself if it is non-empty text or a list of role/content messages."""
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, list) and value:
        messages = [
            {"role": m["role"], "content": m["content"]}
            for m in value
            if isinstance(m, dict)
            and isinstance(m.get("role"), str)
            and isinstance(m.get("content"), str)
        ]
        if len(messages) == len(value):
            return messages
    raise DataError(
        f"{place}: column {name!r} must be non-empty text or a list of messages with role and "
        f"content, not {value!r:.80}"
    )


def answer_text(place: str, value: Any) -> str:
    """Gold answers as text: numbers are written out, anything else but text is refused."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"{place}: the answer must be text or a number, not {value!r:.80}")
    return str(value)
