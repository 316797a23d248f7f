"""Two 64-bit numbers that tell the bytes of a tensor from others, computed where the tensor lies.

The bytes are read as 32-bit signed integers w (little-endian, the last filled up with zeros), in
blocks of `BLOCK`. Each of the two sums, modulo 2^64, is

    sum over blocks b of  M[b] * (sum over places j of  c[j] * w[b, j])

with constant odd factors c (32 bits) and M (64 bits), others for each sum: multilinear hashing
(Lemire and Kaser 2014, 1202.4961) with the factors of a long text made of two short tables. Since
addition modulo 2^64 has no order, kernel, GPU and numpy agree to the bit (not run on a GPU).

What it notices. A change within 32 bits: always, as an odd factor times something other than 0
is not 0. Two such numbers exchanged within a block: always, unless their factors are equal in both
sums. Any other change: but for a share of at most 2^-31 of the possible factors for each sum where
it lies in one block, and 2^-26 where it does not; so 2^-52 for both at worst, and 2^-64 for the
hash made of them where the change is random. This is for accidents (a tensor that did not arrive, a
cast, a wrong shard, a flipped bit). The factors are public: who wants two contents of one
fingerprint can make them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from grpo.kernels.door import Kernels, Source, at, at_array, made

SOURCE = Source(Path(__file__).with_name("fingerprint.cpp"), fingerprint="PNPPP")
BLOCK = 2048  # lanes; as in fingerprint.cpp
ON_DEVICE = 2**11  # blocks that a GPU multiplies at once: 16 MiB, whose products are 32
_ON_HOST = 32  # the same of numpy: products that stay in a processor's cache
_WORD = 2**64 - 1


def fingerprints(tensors: Iterable[Tensor]) -> list[tuple[int, int]]:
    """Two numbers from 0 to 2^64 - 1 for the bytes of each tensor; strides do not matter.

    Each is computed on the device of its tensor; all are then copied to the host at once. Nothing
    of a tensor is kept, so that they may be made one after another.
    """
    found = [_sums(_flat(tensor.detach())) for tensor in tensors]
    if len({one.device for one in found}) > 1:
        found = [one.cpu() for one in found]
    pairs = torch.stack(found).tolist() if found else []
    return [(first & _WORD, second & _WORD) for first, second in pairs]


def _flat(tensor: Tensor) -> Tensor:
    flat = tensor.contiguous()
    return flat.as_strided((flat.numel(),), (1,))  # also where a single element has another stride


def _sums(flat: Tensor) -> Tensor:
    if flat.device.type not in ("cpu", "mps"):
        return by_torch(flat)
    flat = flat.cpu()  # of mps: it has the host's memory
    compiled = SOURCE.load()
    return by_numpy(flat) if compiled is None else by_kernel(compiled, flat)


def by_torch(flat: Tensor) -> Tensor:
    """int64 [2] on the device of a contiguous tensor [N]: its sums, in bounded memory."""
    lanes = _lanes(flat)
    factors, multipliers = _on(lanes.device, _rounded(len(lanes)))
    total = torch.zeros(2, dtype=torch.int64, device=lanes.device)
    whole = len(lanes) // BLOCK
    rest = lanes[whole * BLOCK :]
    blocks = lanes[: whole * BLOCK].view(whole, BLOCK)
    for first in range(0, whole, ON_DEVICE):
        part = blocks[first : first + ON_DEVICE]
        # 32 bits times 64: the product is made without a wider copy of the tensor
        sums = torch.stack([(part * one).sum(1) for one in factors], 1)
        total += (sums * multipliers[first : first + len(part)]).sum(0)
    if len(rest):
        total += (factors[:, : len(rest)] * rest).sum(1) * multipliers[whole]
    return total


def by_numpy(flat: Tensor) -> Tensor:
    """The same of a tensor on the CPU."""
    lanes = _lanes(flat).numpy()
    factors, multipliers = _tables(_rounded(len(lanes)))
    wide = factors.astype(np.int64)
    total = np.zeros(2, np.int64)
    for first in range(0, -(-len(lanes) // BLOCK), _ON_HOST):
        part = lanes[first * BLOCK : (first + _ON_HOST) * BLOCK].astype(np.int64)
        whole = len(part) // BLOCK
        blocks, rest = part[: whole * BLOCK].reshape(whole, BLOCK), part[whole * BLOCK :]
        sums = np.stack([(blocks * one).sum(1) for one in wide], 1)
        total += (sums * multipliers[first : first + whole]).sum(0)
        if len(rest):
            total += (wide[:, : len(rest)] * rest).sum(1) * multipliers[first + whole]
    return torch.from_numpy(total)


def by_kernel(compiled: Kernels, flat: Tensor) -> Tensor:
    """The same by `fingerprint.cpp`. Raises ValueError for what lies elsewhere or in strides."""
    length = flat.numel() * flat.element_size()
    raw = at("bytes", flat.view(torch.uint8), torch.uint8, (length,))
    factors, multipliers = _tables(_rounded(-(-length // 4)))
    tables = (
        at_array("factors", factors, np.int32, *factors.shape),
        at_array("multipliers", multipliers, np.int64, *multipliers.shape),
    )
    found, to = made(torch.int64, 2)
    compiled("fingerprint", raw, length, *tables, to)
    return found


def _lanes(flat: Tensor) -> Tensor:
    """int32 [ceil(bytes / 4)]: the same memory, or a copy where that is not laid out for it."""
    raw = flat.view(torch.uint8)
    missing = -len(raw) % 4
    if missing:
        raw = torch.cat([raw, raw.new_zeros(missing)])
    elif raw.storage_offset() % 4:
        raw = raw.clone()
    return raw.view(torch.int32)


def _rounded(lanes: int) -> int:
    """A power of two of blocks that hold `lanes`: of few sizes, so that few tables are kept."""
    return 1 << (-(-lanes // BLOCK)).bit_length()


@functools.cache
def _tables(blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """The constants: c, int32 [2, BLOCK], and M, int64 [blocks, 2]; larger tables begin so too."""
    factors = _mixed(np.arange(2 * BLOCK, dtype=np.uint64)) >> np.uint64(32)
    multipliers = _mixed(np.arange(2 * blocks, dtype=np.uint64) + np.uint64(2**32))
    odd = (factors | np.uint64(1)).astype(np.uint32).view(np.int32).reshape(2, BLOCK)
    return odd, (multipliers | np.uint64(1)).view(np.int64).reshape(blocks, 2)


@functools.cache
def _on(device: torch.device, blocks: int) -> tuple[Tensor, Tensor]:
    """The constants on a device, c in 64 bits."""
    factors, multipliers = map(torch.from_numpy, _tables(blocks))
    return factors.to(device).long(), multipliers.to(device)


def _mixed(counters: np.ndarray) -> np.ndarray:
    """uint64: SplitMix64 (Steele, Lea and Flood 2014) of counters; arithmetic modulo 2^64."""
    x = (counters + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
