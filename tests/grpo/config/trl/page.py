"""The tables of docs/trl.md, from the tables of the code.

python -m tests.grpo.config.trl.page     from the repository's root, after a field has changed
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from grpo.config.trl.field import Field
from grpo.config.trl.grpo_fields import FIELDS
from grpo.config.trl.script import SCRIPT_FIELDS
from tests import tables

PAGE = Path(__file__).parents[4] / "docs" / "trl.md"
PROGRAM = "tests/grpo/config/trl/page.py"


def main() -> None:
    """Put the tables between their markers."""
    tables.put(PAGE, PROGRAM, made())


def split() -> tuple[str, str, str]:
    """The page before the tables, the tables as they stand there, and the page after them."""
    return tables.split(PAGE, PROGRAM)


def made() -> str:
    """The tables, each under its heading."""
    return "\n\n".join(
        [
            _honored("### Honored", FIELDS),
            _others("### Refused unless at its default", FIELDS, "refused", "what to do"),
            _others("### Changes no number", FIELDS, "ignored", "why"),
            _honored("### `trl grpo`: honored", SCRIPT_FIELDS),
            _others("### `trl grpo`: refused", SCRIPT_FIELDS, "refused", "what to do"),
            _others("### `trl grpo`: changes no number", SCRIPT_FIELDS, "ignored", "why"),
        ]
    )


def _honored(heading: str, fields: Mapping[str, Field]) -> str:
    rows = [
        f"| `{name}` | {_code(field.default)} | {_settings(field)} | {field.why or 'the same'} |"
        for name, field in fields.items()
        if field.fate == "honored"
    ]
    return _table(heading, ("field", "TRL's default", "becomes", "how"), rows)


def _others(heading: str, fields: Mapping[str, Field], fate: str, why: str) -> str:
    """Fields with one reason share a row."""
    reasons: dict[str, list[str]] = {}
    for name, field in fields.items():
        if field.fate == fate:
            default = f" ({_code(field.default)})" if fate == "refused" else ""
            reasons.setdefault(field.why, []).append(f"`{name}`{default}")
    rows = [f"| {', '.join(names)} | {reason} |" for reason, names in reasons.items()]
    return _table(heading, ("field", why), rows)


def _table(heading: str, heads: tuple[str, ...], rows: list[str]) -> str:
    line = "|" + "---|" * len(heads)
    return "\n".join([heading, "", f"| {' | '.join(heads)} |", line, *rows])


def _settings(field: Field) -> str:
    return ", ".join(f"`{name.strip()}`" for name in field.setting.split(","))


def _code(value: object) -> str:
    return f"`{value!r}`"


if __name__ == "__main__":
    main()
