"""The content hash of a set of weights: the second half of a `Version`.

Learner and engines compute it from the same named tensors, so equal hashes mean equal bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_DIGEST_BYTES = 8
_SMALL = 2**20  # bytes that are hashed in less time than it takes to hand them to a thread


def _digest(item: tuple[str, Tensor]) -> bytes:
    """Digest of one tensor's name, dtype, shape and bytes."""
    import torch

    name, tensor = item
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    digest = hashlib.sha256(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
    # A view of raw bytes: numpy has no bfloat16, and no copy is made.
    digest.update(flat.view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]
    return digest.digest()


def content_hash(named: Iterable[tuple[str, Tensor]], workers: int = 2) -> str:
    """16 hex digits that identify the content of `named`, whatever the order of the tensors.

    Tensors are hashed (SHA-256) by `workers` threads; `hashlib` releases the interpreter lock.
    """
    digests: list[bytes] = []
    pending: list[Future[bytes]] = []
    with ThreadPoolExecutor(max_workers=workers) as pool:
        for item in named:
            if item[1].numel() * item[1].element_size() <= _SMALL:
                digests.append(_digest(item))
            else:
                pending.append(pool.submit(_digest, item))
    digests = sorted(digests + [future.result() for future in pending])
    return hashlib.blake2b(b"".join(digests), digest_size=_DIGEST_BYTES).hexdigest()
