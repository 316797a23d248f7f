"""The content hash of a set of weights: the second half of a `Version`.

Learner and engines compute it from the same named tensors. Equal hashes mean equal bytes, except
for collisions, whose probability `grpo/kernels/fingerprint.py` states.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_DIGEST_BYTES = 8


def content_hash(named: Iterable[tuple[str, Tensor]]) -> str:
    """16 hex digits for names, dtypes, shapes and bytes of the tensors, in whatever order.

    Bytes are hashed on the tensor's device. 16 bytes per tensor come to the host, in one copy. The
    same bytes give the same hash on every device.
    """
    from grpo.kernels.fingerprint import fingerprints

    heads: list[str] = []

    def bodies() -> Iterator[Tensor]:
        for name, tensor in named:
            heads.append(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|")
            yield tensor

    found = fingerprints(bodies())
    lines = sorted(f"{head}{a:016x}{b:016x}" for head, (a, b) in zip(heads, found, strict=True))
    digests = b"".join(hashlib.sha256(line.encode()).digest() for line in lines)
    return hashlib.blake2b(digests, digest_size=_DIGEST_BYTES).hexdigest()
