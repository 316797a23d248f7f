"""The one door between arrays of the host and tensors of a device.

A copy from ordinary memory to a GPU blocks: the driver first moves the data to pinned memory of its
own, and the program waits for that. A copy from pinned memory is queued, and the program goes on.
So everything that a pass needs is put into one pinned buffer and sent in one copy. Results come
back in one copy too, since each copy back waits for everything that was started before it.

The buffer is freed while the copy may still run. That is safe: it comes from torch's caching host
allocator. A non-blocking copy records an event with the block (`record_event` in
`aten/src/ATen/native/cuda/Copy.cu`), and `CachingHostAllocator.h` does not reuse the block before
that event.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Bytes between the beginnings of arrays, at least: the widest load of a GPU's thread.
ALIGNMENT = 16


def pins(device: torch.device) -> bool:
    """Whether copies to `device` leave from pinned memory, so that nobody waits for them."""
    return device.type == "cuda"


def waits(device: torch.device) -> bool:
    """Whether reading a number off `device` is a wait for all that was started before."""
    return device.type != "cpu"


def to_device(device: torch.device, **arrays: np.ndarray) -> dict[str, Tensor]:
    """The arrays as tensors on `device`, of the same names, shapes, types and bytes.

    On a CPU they share memory with the arrays. Elsewhere all are views of one buffer, sent in one
    copy; where `pins` says so, the program does not wait for it. The views are one tensor for
    autograd: after a write to one, it refuses to go back through any of them.
    """
    if device.type == "cpu" or not arrays:
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
    places, end = dict[str, slice](), 0
    for name, array in arrays.items():
        places[name] = slice(end, end + array.nbytes)
        end += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    pinned = pins(device)
    staging = torch.empty(end, dtype=torch.uint8, device="cpu", pin_memory=pinned)
    host = staging.numpy()
    for name, array in arrays.items():
        host[places[name]].view(array.dtype).reshape(array.shape)[...] = array
    there = staging.to(device, non_blocking=pinned)
    return {
        name: there[places[name]].view(_torch_type(array.dtype)).view(array.shape)
        for name, array in arrays.items()
    }


def to_host(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    """The tensors, all on one device, as arrays of the same shapes, types and bytes.

    On a CPU they share memory with the tensors. Elsewhere all come in one copy, for which the
    program waits: nothing that was started before is still running. Raises TypeError for types
    that NumPy lacks, such as bfloat16.
    """
    tensors = tuple(tensor.detach() for tensor in tensors)
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return tuple(tensor.numpy() for tensor in tensors)
    types = [_numpy_type(tensor.dtype) for tensor in tensors]
    # Side by side, the widest elements first: each part begins at a multiple of its element.
    order = sorted(range(len(tensors)), key=lambda i: -types[i].itemsize)
    flat = [tensors[i].reshape(-1).view(torch.uint8) for i in order]
    here = torch.cat(flat).cpu().numpy()
    found: dict[int, np.ndarray] = {}
    start = 0
    for i in order:
        stop = start + tensors[i].numel() * types[i].itemsize
        found[i] = here[start:stop].view(types[i]).reshape(tensors[i].shape)
        start = stop
    return tuple(found[i] for i in range(len(tensors)))


def wait_for(device: torch.device) -> None:
    """Wait for everything that was started on `device`. On a CPU there is nothing to wait for."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _torch_type(dtype: np.dtype) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype


def _numpy_type(dtype: torch.dtype) -> np.dtype:
    return torch.empty(0, dtype=dtype, device="cpu").numpy().dtype
