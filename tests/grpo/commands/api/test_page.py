"""The blocks of docs/python.md run, in order, in one folder."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[4] / "docs" / "python.md"


def test_the_blocks_of_the_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 6
    for number, block in enumerate(blocks, 1):
        file = tmp_path / f"block_{number}.py"
        file.write_text(block)
        runpy.run_path(str(file))
    assert (tmp_path / "reward.png").is_file()
    assert (tmp_path / "both.png").is_file()
    printed = capsys.readouterr().out
    assert "Run 'short': finished; short: mean" in printed
    assert re.search(r"accuracy +lambda", printed)
