"""Checkpoints exist whole or not at all."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from grpo import checkpoint
from grpo.errors import RunError


def write(text: str):
    return lambda folder: (folder / "model.txt").write_text(text) and None


def test_the_newest_whole_checkpoint_wins(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None
    checkpoint.save(tmp_path, 1, write("one"), {"step": 1})
    checkpoint.save(tmp_path, 2, write("two"), {"step": 2})
    found = checkpoint.latest(tmp_path) or pytest.fail("no checkpoint")
    assert (found.folder / "model.txt").read_text() == "two"
    assert found.state == {"step": 2}


def test_a_save_that_fails_leaves_the_previous_one(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, write("one"), {"step": 1})

    def broken(folder: Path) -> None:
        (folder / "model.txt").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(tmp_path, 2, broken, {"step": 2})
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.state == {"step": 1}


def test_an_index_line_cut_by_a_kill_is_passed_over(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, write("one"), {"step": 1})
    with open(tmp_path / checkpoint.INDEX, "a") as index:
        index.write('{"step": 2, "pa')
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.state == {"step": 1}


def test_old_checkpoints_are_pruned_and_the_newest_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, write(str(step)), {"step": step}, keep=2)
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == ["step_000002", "step_000003"]


def test_rewind_keeps_the_tail_aside(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text("a\nb\nc\n")
    assert checkpoint.rewind(log, 2) == 4
    assert log.read_text() == "a\n"
    assert (tmp_path / "metrics.jsonl.replaced").read_text() == "b\nc\n"
    with pytest.raises(RunError, match="not the log"):
        checkpoint.rewind(log, 100)


def test_a_full_disk_is_an_os_error_whatever_the_writer_raises(tmp_path: Path) -> None:
    def fails(_folder: Path) -> None:
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    with pytest.raises(OSError, match="No space left") as caught:
        checkpoint.save(tmp_path, 1, fails, {"step": 1})
    assert caught.value.errno == errno.ENOSPC
    assert checkpoint.latest(tmp_path) is None
