"""The one way to call a kernel: its functions and their types, and what every address passes.

C++ believes what it is told: numbers of another type, or fewer of them, are read and written beyond
their end, which damages memory that is noticed much later. A look at type, shape and layout takes
a few tenths of a microsecond.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grpo.kernels import native

# Functions in C++ end in the name of the type of their numbers.
SUFFIXES = {torch.float32: "f32", torch.bfloat16: "bf16"}
_TYPES = {"P": ctypes.c_void_p, "N": ctypes.c_int64, "F": ctypes.c_float}


class Source:
    """A C++ file and its functions.

    `takes` has a letter for each argument of a function: P is an address, N an int64 and F a
    float32. The number of threads, int64, comes last and is left out. A function that exists once
    for each type of numbers is given without its suffix. `defines` are macros, "NAME=value".
    """

    def __init__(self, file: Path, *defines: str, **takes: str) -> None:
        self.file, self._defines, self._takes = file, defines, takes
        self._library: ctypes.CDLL | None = None
        self._kernels: dict[torch.dtype, Kernels] = {}

    def load(self, dtype: torch.dtype = torch.float32) -> Kernels | None:
        """The functions for numbers of `dtype`; None where torch has to do their work.

        The type does not matter where no function depends on it.
        """
        if dtype not in SUFFIXES:
            return None
        library = native.library(self.file, *self._defines)
        if library is None:
            return None
        if library is not self._library:
            self._kernels = {t: Kernels(library, s, self._takes) for t, s in SUFFIXES.items()}
            self._library = library
        return self._kernels[dtype]

    def tiles(self) -> Kernels | None:
        """The functions for bfloat16 on the processor's matrix tiles; None where it has none."""
        found = self.load(torch.bfloat16)
        return found if found is not None and found.has_tiles else None


class Kernels:
    """The functions of a compiled file for one type of numbers, called by name.

    `has_tiles`: whether they work with the processor's matrix tiles, and it has them.
    """

    def __init__(self, library: ctypes.CDLL, suffix: str, takes: Mapping[str, str]) -> None:
        self._functions: dict[str, Callable[..., None]] = {}
        for name, letters in takes.items():
            typed = getattr(library, f"{name}_{suffix}", None)
            function = typed or getattr(library, name, None)  # None: made for matrix tiles only
            if function is not None:
                function.argtypes = [*(_TYPES[letter] for letter in letters), ctypes.c_int64]
                function.restype = None
                self._functions[name] = function
        narrow = suffix == SUFFIXES[torch.bfloat16]  # what tiles multiply
        self.has_tiles = narrow and hasattr(library, "has_tiles") and bool(library.has_tiles())

    def __call__(self, name: str, *arguments: int | float | None) -> None:
        """Run a function on torch's number of threads. This file's functions give addresses."""
        self._functions[name](*arguments, torch.get_num_threads())


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


def at_rows(what: str, tensor: Tensor, dtype: torch.dtype, shape: Sequence[int]) -> tuple[int, int]:
    """The address of a tensor whose rows may lie apart, and how many numbers apart they begin.

    Raises ValueError unless it is on the CPU, of this type and shape, and each row is contiguous.
    """
    lies = tensor.is_cpu and tensor.stride()[1:] == _strides(tuple(shape[1:]))
    if lies and tensor.dtype is dtype and tensor.shape == shape:
        return tensor.data_ptr(), tensor.stride(0)
    raise ValueError(
        f"a compiled kernel was given {what} as {tensor.dtype} {tuple(tensor.shape)} on "
        f"{tensor.device}, strides {tensor.stride()}; it takes {dtype} {tuple(shape)} with "
        "contiguous rows, on the CPU"
    )


@functools.cache
def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Those of a contiguous tensor."""
    return tuple(math.prod(shape[place:]) for place in range(1, len(shape) + 1))


def at_array(what: str, array: np.ndarray, dtype: Any, *shape: int) -> int:
    """The same as `at` for a numpy array."""
    if array.dtype == dtype and array.shape == shape and array.flags.c_contiguous:
        return array.ctypes.data
    raise ValueError(
        f"a compiled kernel was given {what} as {array.dtype} {array.shape}, strides "
        f"{array.strides}; it takes {np.dtype(dtype)} {shape}, contiguous"
    )


def made(dtype: torch.dtype, *shape: int) -> tuple[Tensor, int]:
    """A tensor for a kernel to fill, and its address."""
    tensor = torch.empty(shape, dtype=dtype, device="cpu")
    return tensor, tensor.data_ptr()


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
