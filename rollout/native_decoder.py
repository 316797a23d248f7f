"""`FusedDecoder` with compiled kernels between its matrix products."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from grpo.rollout.fused import FusedDecoder
from grpo.rollout.native import Kernels, decode_library, make_step
from grpo.rollout.packed import Linears, PackedLinears, PlainLinears, TiledLinears, tiles


class NativeDecoder(FusedDecoder):
    """`FusedDecoder` with everything but its matrix products compiled: 8 operations a layer."""

    def __init__(self, model: nn.Module) -> None:
        config: Any = model.config
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        dtype = next(model.parameters()).dtype
        compiled = decode_library(size)
        if compiled is None:
            raise NotImplementedError("no compiled kernels for this model on this machine")
        self._kernels = Kernels(compiled, dtype, size)
        self.pair = 2 if dtype == torch.bfloat16 else 1
        super().__init__(model, _linears(model, self._kernels))

    @torch.inference_mode()
    def decode(self, tokens: np.ndarray, positions: np.ndarray) -> Tensor:
        cache, kernels = self.cache, self._kernels
        own = positions - cache.lengths[cache.group]
        cache.reserve(len(own), int(own.max()) + 1, self.embed.weight)
        tables = self._tables(int(positions.max()) + 1)
        step = make_step(
            heads=self.heads,
            kv_heads=self.kv_heads,
            size=self.size,
            cache=cache,
            positions=positions,
            tables=tables,
        )
        x = self.embed(torch.from_numpy(tokens))
        attended = x.new_empty(len(x), self.heads * self.size)
        for index, layer in enumerate(self.layers):
            kernels.attend(
                step,
                layer.qkv(x, layer.before),
                cache.prompts[index],
                cache.own[index],
                layer.head_norms,
                layer.window,
                attended,
            )
            x = layer.out.plus(attended, x)
            x = layer.down.plus(layer.gated(x, layer.after), x)
        return self.head(x, self.norm)


def _linears(model: nn.Module, kernels: Kernels) -> Linears:
    """What multiplies fastest."""
    if next(model.parameters()).dtype == torch.float32:
        return PlainLinears(kernels.norm, kernels.swiglu)
    return TiledLinears() if tiles(model) else PackedLinears(kernels.norm, kernels.swiglu)
