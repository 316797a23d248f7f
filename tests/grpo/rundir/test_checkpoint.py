"""Checkpoints exist whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import threading
from pathlib import Path
from typing import Any

import pytest

from grpo.errors import RunError
from grpo.outside.files import hashes, manifest
from grpo.rundir import checkpoint


def save(run: Path, step: int, write: Any, state: dict[str, Any], keep: int | None = None) -> None:
    with checkpoint.Saver(run, keep) as saver:
        saver.save(step, write, state)


def write(text: str):
    return lambda folder: (folder / "model.txt").write_text(text) and None


def test_the_newest_whole_checkpoint_wins(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None
    save(tmp_path, 1, write("one"), {"step": 1})
    save(tmp_path, 2, write("two"), {"step": 2})
    found = checkpoint.latest(tmp_path) or pytest.fail("no checkpoint")
    assert (found.folder / "model.txt").read_text() == "two"
    assert found.state == {"step": 2}


def test_a_save_that_fails_leaves_the_previous_one(tmp_path: Path) -> None:
    save(tmp_path, 1, write("one"), {"step": 1})

    def broken(folder: Path) -> None:
        (folder / "model.txt").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save(tmp_path, 2, broken, {"step": 2})
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.state == {"step": 1}


def test_an_index_line_cut_by_a_kill_is_passed_over(tmp_path: Path) -> None:
    save(tmp_path, 1, write("one"), {"step": 1})
    with open(tmp_path / checkpoint.INDEX, "a") as index:
        index.write('{"step": 2, "pa')
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.state == {"step": 1}


def test_old_checkpoints_are_pruned_and_the_newest_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, write(str(step)), {"step": step}, keep=2)
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
        save(tmp_path, 1, fails, {"step": 1})
    assert caught.value.errno == errno.ENOSPC
    assert checkpoint.latest(tmp_path) is None


def test_a_checkpoint_exists_when_it_is_hashed_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller goes on beside it, and hears what went wrong at the next one."""
    go_on, seal = threading.Event(), manifest.seal

    def slow(*arguments: Any, **facts: Any) -> None:
        assert go_on.wait(30)
        seal(*arguments, **facts)

    monkeypatch.setattr(manifest, "seal", slow)
    with checkpoint.Saver(tmp_path, keep=1) as saver:
        saver.save(1, write("one"), {"step": 1})
        assert checkpoint.latest(tmp_path) is None
        go_on.set()
        saver.wait()
        assert checkpoint.latest(tmp_path) is not None
        monkeypatch.setattr(manifest, "seal", lambda *_, **__: 1 / 0)
        saver.save(2, write("two"), {"step": 2})
        with pytest.raises(ZeroDivisionError):
            saver.save(3, write("three"), {"step": 3})
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.state == {"step": 1}


def test_a_file_of_several_pieces_is_known_by_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: sha256 of the pieces' sha256, and that of the file alone where it is one piece."""
    monkeypatch.setattr(hashes, "PIECE", 4)
    (tmp_path / "long").write_bytes(b"abcdefghi")
    (tmp_path / "short").write_bytes(b"abcd")
    (tmp_path / "none").write_bytes(b"")
    found = hashes.known(tmp_path, [tmp_path / name for name in ("long", "short", "none")])
    pieces = [hashlib.sha256(piece).digest() for piece in (b"abcd", b"efgh", b"i")]
    assert found == {
        "long": [9, hashlib.sha256(b"".join(pieces)).hexdigest()],
        "short": [4, hashlib.sha256(b"abcd").hexdigest()],
        "none": [0, hashlib.sha256(b"").hexdigest()],
    }
    assert hashes.start_of(tmp_path / "long", 4) == found["short"]
    for place in range(9):
        changed = bytearray(b"abcdefghi")
        changed[place] ^= 128
        (tmp_path / "long").write_bytes(changed)
        with pytest.raises(manifest.Damage, match="long has other content"):
            manifest.check(tmp_path, found)
