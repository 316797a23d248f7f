"""The files that pages of docs/ show, written where a test can run them."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = DOCS / "examples"
# A block whose first line names its file: ```python pass_rate.py
_FILE = re.compile(r"^```\w+ (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def write_files(page: str, folder: Path, pages: Path = PAGES) -> dict[str, Path]:
    """Write every named block of `<pages>/<page>.md` into `folder`; the paths by name."""
    text = (pages / f"{page}.md").read_text(encoding="utf-8")
    written: dict[str, Path] = {}
    for name, content in _FILE.findall(text):
        written[name] = folder / name
        written[name].write_text(content, encoding="utf-8")
    assert written, f"{pages / page}.md shows no file"
    return written
