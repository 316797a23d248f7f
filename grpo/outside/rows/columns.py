"""Columns of a row from outside; a DataError says which row and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal, InvalidOperation
from numbers import Real
from typing import Any

from grpo.errors import DataError, did_you_mean
from grpo.types import Message

Row = Mapping[str, Any]


def column(place: str, row: Row, name: str) -> Any:
    """`row[name]`, or a DataError that names the columns there are and the closest ones."""
    if name not in row:
        raise DataError(f"{place} has no column {name!r}.{near(name, row)}")
    return row[name]


def near(name: str, columns: Iterable[str]) -> str:
    """The columns there are, after the closest ones to `name`: " Did you mean …? Columns: …."."""
    have = sorted(columns)
    hint = did_you_mean(name, have, n=2, cutoff=0.5)
    return f"{hint} Columns: {', '.join(have) or 'none'}."


def message_text(message: Mapping[str, Any]) -> str:
    """What a message says: its content, "" where it has none (an assistant that calls a tool)."""
    return str(message.get("content") or "")


def _checked_message(where: str, message: Any) -> Message | None:
    """A message with its content as text; None if `message` is not one. Raises DataError."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        return None
    content: Any = message.get("content")
    if isinstance(content, list):
        content = _joined(where, content)
    if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
        return None
    # Tables write None where other rows have a key.
    others = {key: value for key, value in message.items() if value is not None}
    return {"role": message["role"], "content": content} | others | {"content": content}


def _joined(where: str, parts: list[Any]) -> str:
    """The text of content that is a list of one part. Raises DataError."""
    kinds = [str(part.get("type", "text")) if isinstance(part, dict) else "text" for part in parts]
    other = next((kind for kind in kinds if kind != "text"), None)
    if other is not None:
        raise DataError(f"{where} has a part of type {other!r}; models here read text only")
    if len(parts) != 1:
        raise DataError(
            f"{where} is in {len(parts)} parts, which chat templates join each in a way of their "
            "own; give it as one text"
        )
    part = parts[0]
    return str(part.get("text") or "") if isinstance(part, dict) else str(part)


def checked_prompt(place: str, name: str, value: Any) -> str | list[Message]:
    """`value` if it is text, or a list of messages, and not empty. Raises DataError.

    Messages keep their other keys: tool_calls, reasoning_content, name.
    """
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, list) and value:
        found = [
            _checked_message(f"{place}: the content of message {i} of column {name!r}", message)
            for i, message in enumerate(value, 1)
        ]
        messages = [message for message in found if message is not None]
        says = any(message_text(m).strip() or m.get("tool_calls") for m in messages)
        if len(messages) == len(value) and says:
            return messages
    raise DataError(
        f"{place}: column {name!r} must be non-empty text or a list of messages with role and "
        f"content, not {value!r:.80}"
    )


def answer_text(place: str, value: Any) -> str:
    """A gold answer as text: a number is written out, and any other type is refused.

    So is a missing one: null, blank text, NaN (what a table has in an empty cell) or a number too
    large for a float, which JSON readers turn into infinity.
    """
    text = gold_text(value) if isinstance(value, str | Real | Decimal) else None
    if text is None or not text.strip() or isinstance(value, bool):
        shown = f"{value!r:.80}"
        raise DataError(
            f"{place}: the answer must be text or a number, not {shown}{_advice(value)}"
        )
    return text


def gold_text(value: Any) -> str | None:
    """A gold answer of any type as text; None where it is missing: None, NaN or infinite.

    Numbers are written in positional notation, as people write them: 1e-05 becomes 0.00001.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, Real | Decimal):
        return str(value)
    shown = str(value)  # the shortest text that is the number, also of numpy's types
    try:
        exact = Decimal(shown)
    except InvalidOperation:
        return shown  # a fraction, 1/3
    return f"{exact:f}" if exact.is_finite() else None


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: None, or the NaN or infinity that stands for it."""
    return value is None or (isinstance(value, Real | Decimal) and gold_text(value) is None)


def _advice(value: Any) -> str:
    if isinstance(value, bool):
        return f"; as text it would be {str(value)!r}"
    if isinstance(value, Real | Decimal):
        said = "is no number" if value != value else "is not finite"
        return f", which {said}; give the row an answer, or leave the row out"
    if value is None or (isinstance(value, str) and not value.strip()):
        return (
            "; give the row an answer, leave the row out or, where no reward reads answers, set "
            "data.args.answer = null"
        )
    return ""
