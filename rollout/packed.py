"""Weights laid out for the CPU's matrix kernels, and linear layers that use them.

oneDNN multiplies 64 rows by a weight matrix it has reordered into its own blocks 1.6 times faster
than by the same matrix as torch keeps it, and adds, multiplies or applies SiLU before the result
is rounded and stored. The blocks are a second copy of the weights: whoever changes the weights has
to fill them again, and `holds` reads back what is really in them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

_ROWS = 64  # rows the blocks are chosen for; other numbers of rows are right too


def packs(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this machine multiplies packed weights of `dtype`."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


class PackedLinear:
    """y = x W^T + b with the weights of `layers` (same inputs) one below the other.

    x [R, in], all of one dtype; float32 or bfloat16. Without `packed` the weights lie as torch
    keeps them: for a few thousand numbers a row, float32 products are faster so.
    """

    def __init__(self, layers: Sequence[nn.Linear], *, packed: bool = True) -> None:
        self._layers = tuple(layers)
        self._packed = packed
        self.fill()

    def fill(self) -> None:
        """Take the layers' weights as they are now."""
        weights: list[Tensor] = [layer.weight.detach() for layer in self._layers]
        whole = weights[0] if len(weights) == 1 else torch.cat(weights)
        if self._packed:
            whole = torch.ops.mkldnn._reorder_linear_weight(whole, _ROWS)
        self._weight = whole
        biases = [layer.bias for layer in self._layers]
        self._bias = None if any(b is None for b in biases) else torch.cat(biases).detach()

    def holds(self) -> bool:
        """Read the blocks back: are they, bit for bit, the layers' weights of this moment?"""
        sizes = [layer.out_features for layer in self._layers]
        weight = self._weight.to_dense() if self._packed else self._weight
        held = [weight.split(sizes)]
        present = [[layer.weight for layer in self._layers]]
        if self._bias is not None:
            held.append(self._bias.split(sizes))
            present.append([layer.bias for layer in self._layers])
        return all(
            torch.equal(part, tensor)
            for parts, tensors in zip(held, present, strict=True)
            for part, tensor in zip(parts, tensors, strict=True)
        )

    def __call__(self, x: Tensor) -> Tensor:
        """[R, out]."""
        if not self._packed:
            return linear(x, self._weight, self._bias)
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")

    def silu(self, x: Tensor) -> Tensor:
        """silu(y) [R, out], of packed weights."""
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "swish", [], "")

    def times(self, x: Tensor, factor: Tensor) -> Tensor:
        """y * factor [R, out], of packed weights."""
        return torch.ops.mkldnn._linear_pointwise.binary(x, factor, self._weight, self._bias, "mul")

    def plus(self, x: Tensor, term: Tensor) -> Tensor:
        """y + term [R, out]."""
        if not self._packed:
            term = term if self._bias is None else term + self._bias
            return torch.addmm(term, x, self._weight.T)
        return torch.ops.mkldnn._linear_pointwise.binary(x, term, self._weight, self._bias, "add")
