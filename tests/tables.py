"""Tables of a page that a program writes, between two markers that name the program."""

from __future__ import annotations

from pathlib import Path

END = "<!-- made by it: end -->"


def put(page: Path, program: str, tables: str) -> None:
    """Put the tables between their markers."""
    before, _, after = split(page, program)
    page.write_text(f"{before}{_start(program)}\n{tables}\n{END}{after}", encoding="utf-8")


def split(page: Path, program: str) -> tuple[str, str, str]:
    """The page before the tables, the tables as they stand there, and the page after them."""
    before, _, rest = page.read_text(encoding="utf-8").partition(_start(program))
    tables, _, after = rest.partition(END)
    return before, tables.strip("\n"), after


def _start(program: str) -> str:
    return f"<!-- made by {program}: start -->"
