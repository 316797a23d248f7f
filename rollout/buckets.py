"""Weights in buckets, as they travel to engines elsewhere in the safetensors format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def in_buckets(named: Iterable[tuple[str, Tensor]], size: int) -> Iterator[dict[str, Tensor]]:
    """`named` in order, in dicts of about `size` bytes; a larger tensor has a bucket to itself.

    The tensors are contiguous and on the CPU. Those of a bucket share no memory, as safetensors
    refuses that: where two do, such as tied weights, the later one is copied.
    """
    bucket: dict[str, Tensor] = {}
    filled = 0
    for name, tensor in named:
        tensor = tensor.detach().to("cpu").contiguous()
        if bucket and filled + tensor.nbytes > size:
            yield bucket
            bucket, filled = {}, 0
        shared = any(_overlap(tensor, other) for other in bucket.values())
        bucket[name] = tensor.clone() if shared else tensor
        filled += tensor.nbytes
    if bucket:
        yield bucket


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two contiguous tensors have bytes in common, or one lies empty within the other."""
    first, second = one.data_ptr(), other.data_ptr()
    return first < second + other.nbytes and second < first + one.nbytes
