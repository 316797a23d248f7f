"""`head.cpp` for torch tensors; None where `grpo/learner/head.py` has to do the work itself."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from grpo.kernels.door import SUFFIXES, at, within
from grpo.kernels.native import bound

SOURCE = Path(__file__).with_name("head.cpp")
_P, _N, _F, _I = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
_TAKE = {
    "normalize": [_P, _P, _P, _N, _N, _F, _I],
    "pull_back": [*[_P] * 6, _N, _N, _F, _I],
}
_FUNCTIONS = {f"{name}_{t}": take for t in SUFFIXES.values() for name, take in _TAKE.items()}


def normalize(product_n_V: Tensor, targets_n: Tensor, factor: float) -> Tensor | None:
    """float32 [4, n] of the softmax of factor * product: see the file in C++.

    Log of the sum of exp, the targets' log-probs, mean and variance of -log p.
    """
    kernels = _kernels(product_n_V)
    if kernels is None:
        return None
    rows, vocab = product_n_V.shape
    targets_n = targets_n.contiguous()
    found = torch.empty((4, rows), dtype=torch.float32, device="cpu")
    function = getattr(kernels, f"normalize_{SUFFIXES[product_n_V.dtype]}")
    function(
        *(product_n_V.data_ptr(), _targets(targets_n, rows, vocab), found.data_ptr()),
        *(rows, vocab, factor, torch.get_num_threads()),
    )
    return found


def pull_back_(
    product_n_V: Tensor, targets_n: Tensor, rows_4_n: Tensor, factor: float
) -> Tensor | None:
    """The product becomes its own gradient, in place, and is returned.

    rows_4_n: log of the sum of exp, entropy, and the gradients by log-prob and entropy.
    """
    kernels = _kernels(product_n_V)
    if kernels is None:
        return None
    function = getattr(kernels, f"pull_back_{SUFFIXES[product_n_V.dtype]}")
    rows, vocab = product_n_V.shape
    targets_n = targets_n.contiguous()
    parts = [row.float().contiguous() for row in rows_4_n]
    if len(parts) != 4:
        raise ValueError(f"four numbers a row are needed, not {len(parts)}")
    function(
        *(product_n_V.data_ptr(), _targets(targets_n, rows, vocab)),
        *(at("a row's numbers", part, torch.float32, (rows,)) for part in parts),
        *(rows, vocab, factor, torch.get_num_threads()),
    )
    return product_n_V


def _kernels(product: Tensor) -> ctypes.CDLL | None:
    known = product.is_cpu and product.dtype in SUFFIXES and product.is_contiguous()
    return bound(SOURCE, _FUNCTIONS) if known else None


def _targets(targets: Tensor, rows: int, vocab: int) -> int:
    """Where the targets lie; each of them says where in its row is read and written."""
    within("target tokens", targets, vocab)
    return at("target tokens", targets, torch.int64, (rows,))
