"""What lies between the matrix products of a layer: one pass over memory each, and its derivative.

In float32 and bfloat16 on a CPU these are the kernels of `layers.cpp`, elsewhere torch; both
compute in float32 (float64 for float64) and round once, to the type of the products. The residual
stream is called x and keeps its own, wider type.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grpo.kernels.door import SUFFIXES, Kernels, Source, at, at_rows, made

SOURCE = Source(
    Path(__file__).with_name("layers.cpp"),
    rms_norm_f32="PPPPNNF",  # after the type of x and weight; that of the result comes behind it
    rms_norm_bf16="PPPPNNF",
    rms_norm_backward="PPPPPPPNN",
    add="PPPN",
    rotate="PPPNNNNN",
    swiglu="PPNN",
    swiglu_backward="PPPPNN",
    transpose_16="PNPNNN",
)
TILED_SOURCE = Source(Path(__file__).with_name("weight_gradient.cpp"), weight_gradient="PPPNNNN")
TRANSPOSED = 1024
_WIDE = torch.float32


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x / sqrt(mean(x^2) + eps) * weight [N, D] in `dtype`, and the factors of the rows [N].

    x and weight [D] are float32, the learner's residual stream, or of `dtype`, the engine's.
    """
    known = x.is_cpu and weight.is_cpu and x.dtype is weight.dtype and x.dtype in (_WIDE, dtype)
    kernels = SOURCE.load(dtype) if known else None
    if kernels is None:
        x = _wide(x)
        scale = torch.rsqrt(x.square().mean(-1) + eps)
        return (x * scale[:, None] * weight).to(dtype), scale
    rows, width = x.shape
    (out, to), (scale, to_scale) = made(dtype, rows, width), made(_WIDE, rows)
    given = at("rows", x, x.dtype, (rows, width)), at("a norm's weight", weight, x.dtype, (width,))
    kernels(f"rms_norm_{SUFFIXES[x.dtype]}", *given, to, to_scale, rows, width, eps)
    return out, scale


def normed(x: Tensor, norm: Any) -> Tensor:
    """x [.., D] of a type, after a module with RMS norm's weight [D] and `variance_epsilon`."""
    rows = x.reshape(-1, x.shape[-1])
    return rms_norm(rows, norm.weight, norm.variance_epsilon, x.dtype)[0].view(x.shape)


def rms_norm_backward(
    of_out: Tensor, x: Tensor, weight: Tensor, scale: Tensor, residual: Tensor
) -> tuple[Tensor, Tensor]:
    """`residual` plus the gradient of x [N, D], and the gradient of the weight [D]."""
    dtype = of_out.dtype
    kernels = _native(dtype, x, weight, residual)
    if kernels is None:
        upstream, y = _wide(of_out), _wide(x) * scale[:, None]
        g = upstream * weight
        of_x = residual + scale[:, None] * (g - y * (g * y).mean(-1, keepdim=True))
        return of_x.to(x.dtype), (upstream * y).sum(0).to(weight.dtype)
    rows, width = x.shape
    of_x, to_x = made(_WIDE, rows, width)
    of_weight, to_weight = made(_WIDE, torch.get_num_threads(), width)
    tensors = (
        at("a gradient", of_out, dtype, (rows, width)),
        *(_wide_at(x, rows, width), _wide_at(weight, width), _wide_at(scale, rows)),
        *(_wide_at(residual, rows, width), to_x, to_weight),
    )
    kernels("rms_norm_backward", *tensors, rows, width)
    return of_x, of_weight.sum(0)


def add(x: Tensor, y: Tensor) -> Tensor:
    """x + y in the type of x."""
    kernels = _native(y.dtype, x)
    if kernels is None:
        return x + y
    out, to = made(_WIDE, *x.shape)
    given = _wide_at(x, *x.shape), at("a term", y, y.dtype, x.shape)
    kernels("add", *given, to, x.numel())
    return out


def rotate_(values: Tensor, cos: Tensor, sin: Tensor, heads: int, backward: bool = False) -> None:
    """Rotary embedding (2104.09864) of the first heads of [N, H, D] in place; halves, not pairs.

    cos and sin: [N, D]. `backward`: by the transposed matrix.
    """
    kernels = _native(values.dtype, cos, sin)
    if kernels is not None:
        rows, have, width = values.shape
        if heads > have or width % 2:
            raise ValueError(
                f"{heads} heads of {tuple(values.shape)} cannot be rotated where they lie"
            )
        place, stride = at_rows("heads to rotate", values, values.dtype, (rows, have, width))
        turns = _wide_at(cos, rows, width), _wide_at(sin, rows, width)
        kernels("rotate", place, *turns, rows, stride, heads, width, int(backward))
        return
    turned = values[:, :heads]
    cos, sin = cos[:, None], sin[:, None]
    low, high = (turned * sin if backward else turned).chunk(2, -1)
    other = torch.cat([high, -low] if backward else [-high, low], -1)
    turned.copy_(turned * cos + (other if backward else other * sin))


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up [N, F] of the two side by side [N, 2F]."""
    kernels = SOURCE.load(gate_up.dtype) if gate_up.is_cpu else None
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    if kernels is None:
        gate, up = _wide(gate_up).chunk(2, -1)
        return (torch.nn.functional.silu(gate) * up).to(gate_up.dtype)
    out, to = made(gate_up.dtype, rows, width)
    given = at("gate and up", gate_up, gate_up.dtype, (rows, 2 * width))
    kernels("swiglu", given, to, rows, width)
    return out


def swiglu_backward(gate_up: Tensor, of_out: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of gate and up [N, 2F], and once more the output [N, F]."""
    kernels = SOURCE.load(gate_up.dtype) if gate_up.is_cpu else None
    if kernels is None:
        gate, up = _wide(gate_up).chunk(2, -1)
        upstream, share = _wide(of_out), torch.sigmoid(gate)
        active = torch.nn.functional.silu(gate)
        of_gate = upstream * up * share * (1 + gate * (1 - share))
        of_gate_up = torch.cat([of_gate, upstream * active], -1)
        return of_gate_up.to(gate_up.dtype), (active * up).to(gate_up.dtype)
    rows, width = of_out.shape
    dtype = gate_up.dtype
    (of_gate_up, to_both), (out, to) = made(dtype, rows, 2 * width), made(dtype, rows, width)
    given = (
        at("gate and up", gate_up, dtype, (rows, 2 * width)),
        at("a gradient", of_out, dtype, (rows, width)),
    )
    kernels("swiglu_backward", *given, to_both, to, rows, width)
    return of_gate_up, out


def weight_gradient(
    of_out: Tensor, x: Tensor, dtype: torch.dtype, total: Tensor | None = None
) -> Tensor:
    """[M, K] in `dtype`: the gradient of a linear layer's weight by [N, M] and input [N, K].

    `total` is what it is added to, in place. In bfloat16 on matrix tiles sums stay in float32
    (`weight_gradient.cpp`). Elsewhere a product in bfloat16 is half as fast on a transposed view
    as on a copy; that is made for `TRANSPOSED` outputs at a time, so that it and its product stay
    in the processor's cache.
    """
    rows, outputs = of_out.shape
    narrow = of_out.dtype is torch.bfloat16 and of_out.is_cpu
    if narrow and dtype is torch.float32 and outputs % 32 == 0 and x.shape[1] % 32 == 0:
        tiles = TILED_SOURCE.tiles()
        if tiles is not None:
            inputs = x.shape[1]
            sums = total
            if sums is None:
                sums = torch.empty((outputs, inputs), dtype=_WIDE, device="cpu")
            of_out, x = of_out.contiguous(), x.contiguous()
            tiles(
                "weight_gradient",
                at("a gradient", of_out, torch.bfloat16, (rows, outputs)),
                at("inputs", x, torch.bfloat16, (rows, inputs)),
                _wide_at(sums, outputs, inputs),
                *(rows, outputs, inputs, int(total is not None)),
            )
            return sums
    kernels = SOURCE.load(of_out.dtype) if narrow else None
    if kernels is None:
        found = torch.mm(of_out.T, x).to(dtype)
        return found if total is None else total.add_(found)
    if of_out.stride(1) != 1:
        of_out = of_out.contiguous()
    sums = of_out.new_empty((outputs, x.shape[1]), dtype=dtype) if total is None else total
    whole_lines = -(-rows // 32) * 32
    copy, to = made(of_out.dtype, min(outputs, TRANSPOSED), whole_lines)
    copy[:, rows:] = 0  # products read numbers in pairs, and 0 times what lies there may be NaN
    for part, place in zip(of_out.split(TRANSPOSED, 1), sums.split(TRANSPOSED), strict=True):
        source = at_rows("a gradient", part, part.dtype, part.shape)
        kernels("transpose_16", *source, to, whole_lines, *part.shape)
        product = torch.mm(copy[: part.shape[1], :rows], x)
        # in float32 what is added: sums of two types take four times as long
        place.copy_(product) if total is None else place.add_(product.to(dtype))
    return sums


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _native(dtype: torch.dtype, *wide: Tensor) -> Kernels | None:
    """The compiled kernels, where they know these types: products in `dtype`, the rest float32."""
    known = all(t.dtype == torch.float32 and t.is_cpu for t in wide)
    return SOURCE.load(dtype) if known else None


def _wide_at(tensor: Tensor, *shape: int) -> int:
    """The address of float32 numbers that a kernel is given."""
    return at("numbers", tensor, _WIDE, shape)
