"""A progress bar shows itself on a terminal, and writes nothing to a file or a pipe."""

from __future__ import annotations

import io

import pytest

from grpo.outside.terminal.console import Console
from grpo.stages.bars import bar


@pytest.mark.parametrize("remaining", [False, True])
def test_a_bar_is_for_terminals_only(remaining: bool) -> None:
    shown: dict[bool, str] = {}
    for is_terminal in (False, True):
        file = io.StringIO()
        console = Console(file=file, force_terminal=is_terminal, width=80)
        with bar("held-out tasks", console, remaining=remaining) as progress:
            progress(3, 8)
        shown[is_terminal] = file.getvalue()
    assert shown[False] == ""
    assert "held-out tasks" in shown[True]
    assert "3/8" in shown[True]
