"""`FusedDecoder` with compiled kernels between its matrix products."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from grpo.rollout.fused import FusedDecoder, Layer
from grpo.rollout.group_cache import CHUNK
from grpo.rollout.native import Kernels, Step, decode_library


class NativeDecoder(FusedDecoder):
    """`FusedDecoder` with everything but its matrix products compiled: 8 operations a layer."""

    keys_across = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, packed=next(model.parameters()).dtype == torch.bfloat16)
        compiled = decode_library(self.size)
        if compiled is None:
            raise NotImplementedError("no compiled kernels for this model on this machine")
        self._kernels = Kernels(compiled, self.dtype)

    @torch.inference_mode()
    def decode(self, tokens: np.ndarray, positions: np.ndarray) -> Tensor:
        cache, kernels = self.cache, self._kernels
        own = positions - cache.lengths[cache.group]
        cache.reserve(len(own), int(own.max()) + 1, self.embed.weight)
        cos, sin = self._tables(int(positions.max()) + 1)
        step = Step(
            rows=len(own),
            heads=self.heads,
            kv_heads=self.kv_heads,
            slots=cache.slots,
            chunk=CHUNK,
            capacity=cache.own[0].shape[2],
            threads=torch.get_num_threads(),
            group=cache.group.ctypes.data,
            lengths=cache.lengths.ctypes.data,
            positions=positions.ctypes.data,
            cosine=cos.data_ptr(),
            sine=sin.data_ptr(),
        )
        x = self.embed(torch.from_numpy(tokens))
        # Two pieces of memory for all layers: fresh ones cost more than a norm.
        hidden, attended = torch.empty_like(x), x.new_empty(len(x), self.heads * self.size)
        for index, layer in enumerate(self.layers):
            kernels.attend(
                step,
                layer.qkv(kernels.norm(x, layer.before, hidden)),
                cache.prompts[index],
                cache.own[index],
                layer.head_norms,
                layer.window,
                attended,
            )
            x = layer.out.plus(attended, x)
            active = self._activated(kernels.norm(x, layer.after, hidden), layer)
            x = layer.down.plus(active, x)
        return self.head(kernels.norm(x, self.norm, hidden))

    def _normed(self, x: Tensor, norm: Any) -> Tensor:
        return self._kernels.norm(x, norm, torch.empty_like(x))

    def _activated(self, hidden: Tensor, layer: Layer) -> Tensor:
        if len(layer.gates) > 1:
            return super()._activated(hidden, layer)
        return self._kernels.swiglu(layer.gates[0](hidden))
