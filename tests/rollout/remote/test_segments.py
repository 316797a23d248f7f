"""Weights through files in memory: every byte arrives, and nothing but such files is opened."""

from __future__ import annotations

import json
import os
import random
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo.errors import WeightsError
from grpo.model.content_hash import content_hash
from grpo.rollout.remote import segments
from grpo.rollout.remote.segments import read_segment, send_segments

WHOLE = "not a whole file of tensors"


@pytest.fixture
def place() -> Iterator[Path]:
    """A path that has the name of a segment."""
    path = Path(tempfile.gettempdir()) / f"grpo-{'2' * 32}"
    path.unlink(missing_ok=True)
    yield path
    path.unlink(missing_ok=True)


def lay(path: Path, content: bytes) -> None:
    path.touch(0o600)
    path.write_bytes(content)


def file_of(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(begin: int, end: int, dtype: Any = "F32", shape: Any = (1,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_segments_are_bucketed_exact_and_gone() -> None:
    torch.manual_seed(0)
    named = {
        "a": torch.arange(6.0).reshape(2, 3),
        "b": torch.ones(4, dtype=torch.bfloat16),
        "c": torch.randn(100, 3).to(torch.float16).t(),
        "d": torch.zeros(0, 4),
    }
    found: dict[str, torch.Tensor] = {}
    paths: list[str] = []
    for path in send_segments(named.items(), bucket_bytes=200):
        assert Path(path).stat().st_mode & 0o777 == 0o600
        paths.append(path)
        found.update(read_segment(path))
    assert len(paths) == 3
    assert content_hash(found.items()) == content_hash(named.items())
    assert not any(Path(path).exists() for path in paths)


def test_every_type_scalars_empty_and_tied_tensors() -> None:
    weight = torch.randn(6, 4)
    named = {
        "float64": torch.tensor(2.5, dtype=torch.float64),
        "bfloat16": torch.randn(3).to(torch.bfloat16),
        "float16": torch.randn(5).to(torch.float16),
        "int8": torch.tensor([-128, 127, 0], dtype=torch.int8),
        "uint8": torch.tensor([255], dtype=torch.uint8),
        "flag": torch.tensor(True),
        "none": torch.zeros(0),
        "embed": weight,
        "head": weight,  # tied
        "rows": weight[2:4],
        "nothing of it": weight[3:3],
        "next to each other": weight[:, :2].contiguous(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    (found,) = [read_segment(path) for path in send_segments(named.items())]
    assert found.keys() == named.keys()
    for name, tensor in named.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    found["embed"][0] = 7.0  # what arrived is its own memory
    assert not torch.equal(found["embed"], weight)
    assert torch.equal(found["head"], weight)


def test_no_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file that cannot be written is an error that says where, and leaves nothing."""
    weights = {"a": torch.zeros(2**20)}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(segments, "_folders", lambda: [tmp_path])
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        with pytest.raises(WeightsError, match=r"4 MiB of weights .* File too large.*make room"):
            next(send_segments(weights.items()))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_only_segments_are_opened(tmp_path: Path) -> None:
    name = f"grpo-{'0' * 32}"
    (tmp_path / name).write_bytes(b"x" * 64)
    link = Path(tempfile.gettempdir()) / f"grpo-{'1' * 32}"
    link.unlink(missing_ok=True)
    link.symlink_to(tmp_path / name)
    try:
        for path in ("/etc/passwd", str(tmp_path / name), f"/dev/shm/../dev/shm/{name}"):
            with pytest.raises(WeightsError, match="not the name of a weights segment"):
                read_segment(path)
        with pytest.raises(WeightsError, match="cannot be opened"):
            read_segment(str(link))
    finally:
        link.unlink()
    for path in send_segments({"a": torch.zeros(4)}.items()):
        Path(path).chmod(0o640)
        with pytest.raises(WeightsError, match="not of this user alone"):
            read_segment(path)


def test_what_lies_under_the_name_of_a_segment(place: Path) -> None:
    os.mkfifo(place, 0o600)  # opening it would wait for a writer
    with pytest.raises(WeightsError, match="not a file with something in it"):
        read_segment(str(place))
    place.unlink()
    place.touch(0o600)
    with pytest.raises(WeightsError, match="not a file with something in it"):
        read_segment(str(place))
    with pytest.raises(WeightsError, match="not the name of a weights segment"):
        read_segment(["/dev/shm"])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "content",
    [
        b"x",
        b"\0" * 8,
        b"\xff" * 64,  # a header of 2^64 - 1 bytes
        (2**40).to_bytes(8, "little") + b"{}",
        file_of(b'{"a": ')[:12],
        file_of([]),
        file_of({"a": 1}),
        file_of({"a": entry(0, 4)}),  # its bytes are not there
        file_of({"a": entry(0, 4)}, b"\0" * 8),  # more than it says
        file_of({"a": entry(4, 8)}, b"\0" * 8),  # a hole
        file_of({"a": entry(0, 4), "b": entry(2, 6)}, b"\0" * 6),  # they overlap
        file_of({"a": entry(4, 0)}, b"\0" * 4),
        file_of({"a": entry(-4, 0)}, b"\0" * 4),
        file_of({"a": entry(0, 4, shape=[99])}, b"\0" * 4),
        file_of({"a": entry(0, 4, shape=[2**32, 2**32])}, b"\0" * 4),
        file_of({"a": entry(0, 4, shape=[2**62, 4])}, b"\0" * 4),
        file_of({"a": entry(0, 4, shape=[-1])}, b"\0" * 4),
        file_of({"a": entry(0, 4, shape=4)}, b"\0" * 4),
        file_of({"a": entry(0, 4, shape=[1.0])}, b"\0" * 4),
        file_of({"a": entry(0, 4, shape=[True])}, b"\0" * 4),
        file_of({"a": entry(0, 4, shape=None)}, b"\0" * 4),
        file_of({"a": entry(0, 4) | {"data_offsets": ["0", "4"]}}, b"\0" * 4),
        file_of({"a": {"dtype": "F32", "shape": [1]}}, b"\0" * 4),
        file_of({"a": None}),
        file_of({"a": entry(0, 4, "float32")}, b"\0" * 4),
        file_of({"a": entry(0, 4, None)}, b"\0" * 4),
    ],
)
def test_a_malformed_file_is_refused(place: Path, content: bytes) -> None:
    lay(place, content)
    with pytest.raises(WeightsError, match=WHOLE):
        read_segment(str(place))


def test_another_writer_may_lay_tensors_anywhere(place: Path) -> None:
    """The format does not say that a float begins at a multiple of four bytes."""
    one = b"\0\0\x80\x3f"
    lay(place, file_of({"a": entry(0, 1, "U8"), "b": entry(1, 5)}, b"\7" + one))
    found = read_segment(str(place))
    assert (found["a"].item(), found["b"].item()) == (7, 1.0)
    assert content_hash(found.items()) == content_hash(
        [("a", torch.tensor([7], dtype=torch.uint8)), ("b", torch.ones(1))]
    )


def test_damaged_files_are_read_or_refused(place: Path) -> None:
    """Whatever byte of a file is damaged, wherever it ends: tensors or a sentence."""
    named = {"a": torch.ones(3), "b": torch.zeros(2, dtype=torch.int8)}
    (whole,) = [Path(path).read_bytes() for path in send_segments(named.items())]
    generator = random.Random(0)
    refused = 0
    for trial in range(400):
        damaged = bytearray(whole)
        for _ in range(generator.randint(1, 3)):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        content = bytes(damaged if trial % 2 else damaged[: generator.randrange(1, len(damaged))])
        lay(place, content)
        try:
            found = read_segment(str(place))
        except WeightsError as error:
            assert WHOLE in str(error)  # noqa: PT017
            refused += 1
        else:
            assert all(tensor.sum().ndim == 0 for tensor in found.values())  # all can be read
    assert 200 < refused < 400
