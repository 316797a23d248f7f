"""Products with the weights of linear layers on the processor's matrix tiles (Intel AMX).

`matmul.cpp` multiplies rows in bfloat16 by weights that were laid out for it. For as few rows as a
decoding step has, whose time is the reading of the weights, this is faster than a general matrix
product, and what follows a product (bias, residual sum, gated activation) costs no pass of its own.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from grpo.kernels.door import Kernels, Source, at, made

PANEL = 32  # outputs that lie together, and a multiple of what is summed at once
_TYPE = torch.bfloat16
_PLAIN, _SUM, _GATED = range(3)
SOURCE = Source(Path(__file__).with_name("matmul.cpp"), lay_weight="PPNN", multiply="PPPPPFPNNNN")


def has_tiles() -> bool:
    """Whether this machine can do it: a processor with tiles, and a compiler that knows them."""
    return SOURCE.tiles() is not None


def fits(outputs: int, size: int) -> bool:
    """Whether weights [N, K] can be laid out: both in multiples of what is multiplied at once."""
    return outputs % PANEL == 0 and size % PANEL == 0


def by_turns(values: Tensor) -> Tensor:
    """[N, ..] gates and what they belong to, one half below the other, in sixteens by turns."""
    return values.unflatten(0, (2, -1, PANEL // 2)).transpose(0, 1).flatten(0, 2)


def lay(weight: Tensor, out: Tensor | None = None) -> Tensor:
    """Weights [N, K], contiguous bfloat16, in the order in which tiles read them: [N K]."""
    compiled, (outputs, size) = _needed(), weight.shape
    if not fits(outputs, size) or weight.dtype != torch.bfloat16:
        raise ValueError(f"tiles want multiples of {PANEL} in bfloat16, not {weight.shape}")
    if out is None:
        out = torch.empty(weight.numel(), dtype=weight.dtype, device="cpu")
    places = (
        at("weights", weight, _TYPE, (outputs, size)),
        at("laid weights", out, _TYPE, (outputs * size,)),
    )
    compiled("lay_weight", *places, outputs, size)
    return out


def multiply(
    x: Tensor,
    laid: Tensor,
    bias: Tensor | None,
    term: Tensor | None = None,
    *,
    norm: tuple[Tensor, float] | None = None,
    gated: bool = False,
) -> Tensor:
    """x W^T + bias + term [R, N], rounded once; x [R, K], `laid` [N K], bias [N], term [R, N].

    `norm`: weight [K] and epsilon of an RMS norm that x is given first, rounded to bfloat16.
    `gated`, for weights and bias by turns (`by_turns`): silu(gate) * up [R, N / 2], no term.
    All contiguous bfloat16.
    """
    rows, size = x.shape
    outputs = len(laid) // size
    if not fits(outputs, size) or (gated and term is not None):
        raise ValueError(f"tiles take no product of {tuple(x.shape)} with {len(laid)} weights")
    out, to = made(_TYPE, rows, outputs // 2 if gated else outputs)
    _needed()(
        "multiply",
        at("rows", x, _TYPE, (rows, size)),
        at("laid weights", laid, _TYPE, (outputs * size,)),
        None if bias is None else at("a bias", bias, _TYPE, (outputs,)),
        None if term is None else at("a term", term, _TYPE, (rows, outputs)),
        None if norm is None else at("a norm's weight", norm[0], _TYPE, (size,)),
        0.0 if norm is None else norm[1],
        *(to, rows, size, outputs),
        _GATED if gated else _PLAIN if term is None else _SUM,
    )
    return out


def _needed() -> Kernels:
    compiled = SOURCE.tiles()
    if compiled is None:
        raise NotImplementedError("this machine has no matrix tiles")
    return compiled
