"""Weights through files that live in memory, from a learner to a server beside it.

The sender writes buckets of tensors to files in the safetensors format. A file has a random name
and only the sender's own user may read it; it is unlinked once its receiver has answered. Nothing
is pickled, and the receiver opens nothing but such files of its own user.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from grpo.errors import WeightsError
from grpo.rollout.buckets import in_buckets

BUCKET_BYTES = 256 << 20
_NAME = re.compile(r"grpo-[0-9a-f]{32}")


def send_segments(
    named: Iterable[tuple[str, Tensor]], bucket_bytes: int = BUCKET_BYTES
) -> Iterator[str]:
    """Write `named` in buckets of about `bucket_bytes`; yield the path of each.

    A tensor larger than a bucket gets one of its own. A file is gone when the next one is asked
    for. Raises WeightsError where there is no room for it.
    """
    for bucket in in_buckets(named, bucket_bytes):
        total = sum(tensor.nbytes for tensor in bucket.values())
        folder = _folder_with(total)
        path = folder / f"grpo-{secrets.token_hex(16)}"
        try:
            _write(bucket, path)
            yield str(path)
        except (OSError, SafetensorError) as error:
            raise WeightsError(
                f"{total >> 20} MiB of weights could not be written to {folder}: {error}; "
                "make room there"
            ) from error
        finally:
            path.unlink(missing_ok=True)


def _write(bucket: dict[str, Tensor], path: Path) -> None:
    """Write a file that is its user's alone, whatever the umask.

    safetensors puts a file of such rights in the place of ours, or writes into it (before 0.8).
    It writes and does not map: where memory runs out, a write is an error and a mapping a crash.
    """
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    save_file(bucket, path)


def read_segment(path: str) -> dict[str, Tensor]:
    """The tensors of a file, as views of it; they outlive its unlinking.

    Raises WeightsError for a path that is not a segment of this user's alone, and for a file that
    is not a whole one in the safetensors format.
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
    with open(descriptor, "rb"):
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise WeightsError(f"the weights segment {path!r} is not of this user alone")
        if not stat.S_ISREG(found.st_mode) or not found.st_size:
            raise WeightsError(f"the weights segment {path!r} is not a file with something in it")
        try:
            return load_file(f"/dev/fd/{descriptor}")  # the file that was looked at, and no other
        except (SafetensorError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise WeightsError(
                f"the weights segment {path!r} is not a whole file of tensors: {error}"
            ) from error


def _folders() -> list[Path]:
    """Where segments may lie: in memory if the system offers that, else among temporary files."""
    return [Path("/dev/shm"), Path(tempfile.gettempdir())]


def _folder_with(size: int) -> Path:
    """The first folder with room for `size` bytes. Containers often have a /dev/shm of 64 MiB."""
    for folder in _folders():
        if folder.is_dir() and shutil.disk_usage(folder).free > size + (16 << 20):
            return folder
    return _folders()[-1]
