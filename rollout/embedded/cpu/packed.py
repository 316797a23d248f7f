"""Linear layers of a decoder, their weights laid out for the CPU's matrix products.

Three layouts, one interface:

  PlainLinear   as torch keeps them; for a few thousand numbers a row, float32 is fastest so
  PackedLinear  oneDNN's own blocks: 64 rows are multiplied 1.6 times faster than with torch's
                layout; a term is added before the result is rounded and stored
  TiledLinear   for the processor's matrix tiles (grpo/kernels/matmul.py)

A copy in another layout has to follow the weights: whoever changes them calls `fill`, and `holds`
says whether the copy has the weights of this moment. x [R, in] is contiguous everywhere, and of the
weights' type.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from grpo.kernels import matmul
from grpo.kernels.layers import normed, swiglu

_ROWS = 64  # rows oneDNN's blocks are chosen for; other numbers of rows are right too


class Linear(ABC):
    """y = x W^T + b for `layers` with the same inputs, one below the other."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self._layers = tuple(layers)
        self.fill()

    @abstractmethod
    def fill(self) -> None:
        """Take the layers' weights as they are now."""

    @abstractmethod
    def holds(self) -> bool:
        """Are those kept, bit for bit, the layers' weights of this moment?"""

    @abstractmethod
    def __call__(self, x: Tensor, norm: Any = None) -> Tensor:
        """y [R, out] of x, or of norm(x) for a module with RMS norm's weight and epsilon."""

    @abstractmethod
    def plus(self, x: Tensor, term: Tensor) -> Tensor:
        """y + term [R, out]."""

    def gated(self, x: Tensor, norm: Any) -> Tensor:
        """silu(gate(n)) * up(n) [R, intermediate] of n = norm(x), where these are the layers."""
        return swiglu(self(x, norm))


def packs(dtype: torch.dtype) -> bool:
    """Whether this machine's CPU multiplies weights of `dtype` well in one of the layouts."""
    if dtype == torch.bfloat16:
        available = torch.backends.mkldnn.is_available()
        return available and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def layout_for(model: nn.Module) -> tuple[type[Linear], type[Linear]]:
    """What multiplies fastest, and what does so for a gate with its up projection.

    `packs` says yes to the type of the model's weights.
    """
    if next(model.parameters()).dtype == torch.float32:
        return PlainLinear, PlainLinear
    return (TiledLinear, TiledGated) if tiles(model) else (PackedLinear, PackedLinear)


def tiles(model: nn.Module) -> bool:
    """Whether this machine has tiles, and all linear layers of `model` fit into them."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    return (
        matmul.has_tiles()
        and all(layer.weight.dtype == torch.bfloat16 for layer in layers)
        and all(matmul.fits(layer.out_features, layer.in_features) for layer in layers)
    )


def _stacked(layers: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Weights [N, K] and biases [N] of the layers, one below the other."""
    weights: list[Tensor] = [layer.weight.detach() for layer in layers]
    biases: list[Any] = [layer.bias for layer in layers]
    weight = weights[0] if len(weights) == 1 else torch.cat(weights)
    return weight, None if any(b is None for b in biases) else torch.cat(biases).detach()


def _equal(held: tuple[Tensor, Tensor | None], present: tuple[Tensor, Tensor | None]) -> bool:
    pairs = list(zip(held, present, strict=True))
    return all(a is b if a is None or b is None else torch.equal(a, b) for a, b in pairs)


class PlainLinear(Linear):
    def fill(self) -> None:
        self._weight, self._bias = _stacked(self._layers)

    def holds(self) -> bool:
        return _equal((self._weight, self._bias), _stacked(self._layers))

    def __call__(self, x: Tensor, norm: Any = None) -> Tensor:
        return linear(x if norm is None else normed(x, norm), self._weight, self._bias)

    def plus(self, x: Tensor, term: Tensor) -> Tensor:
        term = term if self._bias is None else term + self._bias
        return torch.addmm(term, x, self._weight.T)


class PackedLinear(Linear):
    """For bfloat16."""

    def fill(self) -> None:
        weight, self._bias = _stacked(self._layers)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)

    def holds(self) -> bool:
        return _equal((self._weight.to_dense(), self._bias), _stacked(self._layers))

    def __call__(self, x: Tensor, norm: Any = None) -> Tensor:
        x = x if norm is None else normed(x, norm)
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")

    def plus(self, x: Tensor, term: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise.binary(x, term, self._weight, self._bias, "add")


class TiledLinear(Linear):
    """For bfloat16."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        size = sum(layer.weight.numel() for layer in layers)
        self._laid = torch.empty(size, dtype=torch.bfloat16)
        super().__init__(layers)

    def _present(self) -> tuple[Tensor, Tensor | None]:
        """What to lay out."""
        return _stacked(self._layers)

    def fill(self) -> None:
        weight, self._bias = self._present()
        matmul.lay(weight, self._laid)

    def holds(self) -> bool:
        weight, bias = self._present()
        return _equal((self._laid, self._bias), (matmul.lay(weight), bias))

    def __call__(self, x: Tensor, norm: Any = None) -> Tensor:
        return matmul.multiply(x, self._laid, self._bias, norm=_rms(norm))

    def plus(self, x: Tensor, term: Tensor) -> Tensor:
        return matmul.multiply(x, self._laid, self._bias, term)


class TiledGated(TiledLinear):
    """A gate and its up projection, whose columns lie by turns."""

    def _present(self) -> tuple[Tensor, Tensor | None]:
        weight, bias = _stacked(self._layers)
        return matmul.by_turns(weight), None if bias is None else matmul.by_turns(bias)

    def gated(self, x: Tensor, norm: Any) -> Tensor:
        return matmul.multiply(x, self._laid, self._bias, norm=_rms(norm), gated=True)


def _rms(norm: Any) -> tuple[Tensor, float] | None:
    return None if norm is None else (norm.weight, norm.variance_epsilon)
