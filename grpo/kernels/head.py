"""`head.cpp` for torch tensors; None where `grpo/learner/head.py` has to do the work itself."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from grpo.kernels.door import Kernels, Source, at, made, within

SOURCE = Source(Path(__file__).with_name("head.cpp"), normalize="PPPNNF", pull_back="PPPPPPNNF")


def normalize(product_n_V: Tensor, targets_n: Tensor, factor: float) -> Tensor | None:
    """float32 [4, n] of the softmax of factor * product: see the file in C++.

    Log of the sum of exp, the targets' log-probs, mean and variance of -log p.
    """
    kernels = _kernels(product_n_V)
    if kernels is None:
        return None
    rows, vocab = product_n_V.shape
    targets_n = targets_n.contiguous()
    found, to = made(torch.float32, 4, rows)
    product = at("a product", product_n_V, product_n_V.dtype, (rows, vocab))
    kernels("normalize", product, _targets(targets_n, rows, vocab), to, rows, vocab, factor)
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
    rows, vocab = product_n_V.shape
    targets_n = targets_n.contiguous()
    parts = [row.float().contiguous() for row in rows_4_n]
    if len(parts) != 4:
        raise ValueError(f"four numbers a row are needed, not {len(parts)}")
    kernels(
        "pull_back",
        at("a product", product_n_V, product_n_V.dtype, (rows, vocab)),
        _targets(targets_n, rows, vocab),
        *(at("a row's numbers", part, torch.float32, (rows,)) for part in parts),
        *(rows, vocab, factor),
    )
    return product_n_V


def _kernels(product: Tensor) -> Kernels | None:
    return SOURCE.load(product.dtype) if product.is_cpu and product.is_contiguous() else None


def _targets(targets: Tensor, rows: int, vocab: int) -> int:
    """The address of the targets; each of them says where in its row is read and written."""
    within("target tokens", targets, vocab)
    return at("target tokens", targets, torch.int64, (rows,))
