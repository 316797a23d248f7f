"""What every address passes on its way to a kernel.

C++ believes what it is told: numbers of another type, or fewer of them, are read and written beyond
their end, which damages memory that is noticed much later. A look at type, shape and layout takes
a few tenths of a microsecond.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Functions in C++ end in the name of the type of their numbers.
SUFFIXES = {torch.float32: "f32", torch.bfloat16: "bf16"}


def at(what: str, tensor: Tensor, dtype: torch.dtype, shape: Sequence[int]) -> int:
    """The address of a tensor. Raises ValueError unless it is as the kernel takes it to be.

    That is contiguous, on the CPU, and of this type and shape.
    """
    if tensor.dtype is dtype and tensor.shape == shape and tensor.is_contiguous() and tensor.is_cpu:
        return tensor.data_ptr()
    layout = "contiguous" if tensor.is_contiguous() else f"strides {tensor.stride()}"
    raise ValueError(
        f"a compiled kernel was given {what} as {tensor.dtype} {tuple(tensor.shape)} on "
        f"{tensor.device}, {layout}; it takes {dtype} {tuple(shape)}, contiguous, on the CPU"
    )


def at_array(what: str, array: np.ndarray, dtype: Any, length: int) -> int:
    """The same of a numpy array with one dimension."""
    if array.dtype == dtype and array.shape == (length,) and array.flags.c_contiguous:
        return array.ctypes.data
    raise ValueError(
        f"a compiled kernel was given {what} as {array.dtype} {array.shape}, strides "
        f"{array.strides}; it takes {np.dtype(dtype)} ({length},), contiguous"
    )


def within(what: str, numbers: Any, high: int) -> None:
    """Raise ValueError unless all numbers of a tensor or int64 array are from 0 to below `high`.

    They say where a kernel reads or writes.
    """
    if not len(numbers):
        return
    if isinstance(numbers, np.ndarray) and numbers.dtype == np.int64:
        if int(numbers.view(np.uint64).max()) < high:  # one pass: what is negative is large
            return
    elif int(numbers.min()) >= 0 and int(numbers.max()) < high:
        return
    raise ValueError(
        f"a compiled kernel was given {what} from {int(numbers.min())} to {int(numbers.max())}; "
        f"valid: 0 to {high - 1}"
    )
