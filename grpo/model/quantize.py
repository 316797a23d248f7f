"""QLoRA: the frozen base of an adapter in 4-bit NormalFloat (Dettmers et al. 2023, 2305.14314).

The learner keeps every linear layer but the head packed by bitsandbytes. It unpacks a layer for
each use, and again in the backward pass. Engines quantize their own copy and unpack it at once, so
that both have the same numbers. An engine's compute type and memory do not change.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

from grpo.errors import RecipeError

BLOCK = 64  # weights that share a scale, as in the paper


@torch.no_grad()
def quantize_base(model: nn.Module) -> None:
    """Replace the linear layers of `model`, in place; they compute in the type they had."""
    for parent, name, layer in _layers(model):
        setattr(parent, name, FourBitLinear(layer))


@torch.no_grad()
def round_base(model: nn.Module) -> None:
    """Give the linear layers of `model` the values that `quantize_base` would keep, in place."""
    for _, _, layer in _layers(model):
        layer.weight.data = FourBitLinear(layer).values()


class FourBitLinear(nn.Linear):
    """A frozen linear layer that keeps its weight in four bits, in blocks with a scale each.

    `weight` holds the packed bytes, `scales` the largest absolute value of each block (float32).
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        packed, state = _bitsandbytes().functional.quantize_4bit(
            layer.weight.data, blocksize=BLOCK, quant_type="nf4", compress_statistics=False
        )
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = layer.bias
        self.register_buffer("scales", state.absmax)
        self.register_buffer("table", state.code, persistent=False)
        self.compute_dtype = layer.weight.dtype

    @torch.no_grad()
    def values(self) -> torch.Tensor:
        """The weight [out, in] in the type it computes in."""
        functional = _bitsandbytes().functional
        state = functional.QuantState(
            absmax=self.scales,
            shape=torch.Size((self.out_features, self.in_features)),
            code=self.table,
            blocksize=BLOCK,
            quant_type="nf4",
            dtype=self.compute_dtype,
        )
        unpack: Any = functional.dequantize_4bit
        return unpack(self.weight.data, state)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _Multiply.apply(input, self)  # pyright: ignore[reportReturnType]


class _Multiply(torch.autograd.Function):
    """x W^T + b; the backward pass unpacks W again instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: FourBitLinear) -> torch.Tensor:
        ctx.layer, ctx.dtype = layer, x.dtype
        with torch.autocast(x.device.type, enabled=False):
            return nn.functional.linear(x.to(layer.compute_dtype), layer.values(), layer.bias)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return (grads[0].to(ctx.layer.compute_dtype) @ ctx.layer.values()).to(ctx.dtype), None


def _layers(model: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    """(owner, name in it, layer) of every linear layer but the head."""
    named: Any = model
    head = named.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and child is not head
    ]


def _bitsandbytes() -> Any:
    try:
        return importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise RecipeError(
            "model.quantization = 'nf4' needs bitsandbytes: pip install 'grpo-toolkit[quantize]'"
        ) from error
