"""Named tensors through files that live in memory, from a learner to a server beside it.

The sender writes buckets of tensors to files of random name that only its own user may read, says
in plain JSON what lies where, and unlinks each file once its receiver has answered. Nothing is
pickled, and the receiver opens nothing but such files of its own user.
"""

from __future__ import annotations

import math
import mmap
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grpo.errors import WeightsError

BUCKET_BYTES = 256 << 20
_ALIGNMENT = 64  # bytes; more than any dtype needs
_NAME = re.compile(r"grpo-[0-9a-f]{32}")


def send_segments(
    named: Iterable[tuple[str, Tensor]], bucket_bytes: int = BUCKET_BYTES
) -> Iterator[dict[str, Any]]:
    """Write `named` in buckets of about `bucket_bytes`; yield the message that describes each.

    A tensor larger than a bucket gets one of its own. The file behind a message is gone when the
    next one is asked for. Raises WeightsError where there is no room for it.
    """
    bucket: list[tuple[str, Tensor]] = []
    size = 0
    for name, tensor in named:
        if bucket and size + tensor.nbytes > bucket_bytes:
            yield from _send(bucket)
            bucket, size = [], 0
        bucket.append((name, tensor))
        size += tensor.nbytes
    if bucket:
        yield from _send(bucket)


def _send(bucket: list[tuple[str, Tensor]]) -> Iterator[dict[str, Any]]:
    total = sum(tensor.nbytes + _ALIGNMENT for _, tensor in bucket)
    folder = _folder_with(total)
    path = folder / f"grpo-{secrets.token_hex(16)}"
    placed: list[dict[str, Any]] = []
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        # Written, not mapped: where memory runs out, a write is an error and a mapping a crash.
        with open(descriptor, "wb") as file:
            for name, tensor in bucket:
                file.write(b"\0" * (-file.tell() % _ALIGNMENT))
                placed.append(
                    {
                        "name": name,
                        "dtype": str(tensor.dtype).removeprefix("torch."),
                        "shape": list(tensor.shape),
                        "offset": file.tell(),
                    }
                )
                flat = tensor.detach().cpu().contiguous().reshape(-1)
                file.write(memoryview(flat.view(torch.uint8).numpy()))  # pyright: ignore[reportArgumentType]
            file.write(b"\0" * _ALIGNMENT)  # an empty file cannot be mapped
        yield {"segment": str(path), "tensors": placed}
    except OSError as error:
        raise WeightsError(
            f"{total >> 20} MiB of weights could not be written to {folder}: {error.strerror}; "
            "make room there"
        ) from error
    finally:
        path.unlink(missing_ok=True)


def read_segment(path: str, placed: Any) -> list[tuple[str, Tensor]]:
    """The tensors of one message, as views of the file; they outlive its unlinking.

    Raises WeightsError for a path that is not a segment of this user's alone, and for tensors that
    are described otherwise than `send_segments` does, or lie beyond its end.
    """
    file = Path(path) if isinstance(path, str) else Path()
    if file.parent not in _folders() or not _NAME.fullmatch(file.name):
        raise WeightsError(f"{path!r} is not the name of a weights segment")
    try:
        # Without O_NONBLOCK, a pipe that another user has laid there would hold us.
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise WeightsError(
            f"the weights segment {path!r} cannot be opened ({error.strerror}); "
            "server and learner must run on one machine, as one user, with one /dev/shm"
        ) from error
    with open(descriptor, "rb") as opened:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise WeightsError(f"the weights segment {path!r} is not of this user alone")
        if not stat.S_ISREG(found.st_mode) or not found.st_size:
            raise WeightsError(f"the weights segment {path!r} is not a file with something in it")
        # Copy-on-write, as torch wants memory that it may write.
        memory = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
    if not isinstance(placed, list | tuple):
        raise WeightsError("a weights segment comes with a list of its tensors")
    return [_view(memory, entry) for entry in placed]


def _view(memory: mmap.mmap, entry: Any) -> tuple[str, Tensor]:
    described = entry if isinstance(entry, Mapping) else {}
    name, shape, offset = (described.get(key) for key in ("name", "shape", "offset"))
    dtype = getattr(torch, str(described.get("dtype")), None)
    if (
        not isinstance(name, str)
        or not isinstance(dtype, torch.dtype)
        or not isinstance(shape, list | tuple)
        or not all(type(size) is int and size >= 0 for size in shape)
        or type(offset) is not int
        or offset % _ALIGNMENT
    ):
        raise WeightsError(f"{str(entry)[:200]} does not describe a tensor of a weights segment")
    count = math.prod(shape)
    if not 0 <= offset <= len(memory) - count * dtype.itemsize:
        raise WeightsError(f"tensor {name!r} does not lie within its segment")
    if not count:
        return name, torch.zeros(shape, dtype=dtype)
    return name, torch.frombuffer(memory, dtype=dtype, count=count, offset=offset).reshape(shape)


def _folders() -> list[Path]:
    """Where segments may lie: in memory if the system offers that, else among temporary files."""
    return [Path("/dev/shm"), Path(tempfile.gettempdir())]


def _folder_with(size: int) -> Path:
    """The first folder with room for `size` bytes. Containers often have a /dev/shm of 64 MiB."""
    for folder in _folders():
        if folder.is_dir() and shutil.disk_usage(folder).free > size + (16 << 20):
            return folder
    return _folders()[-1]
