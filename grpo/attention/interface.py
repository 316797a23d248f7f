"""How models reach the attention over a flat row: transformers' interface and its keyword.

A model whose configuration names `IMPLEMENTATION` calls `attention` in every layer, with what was
given to the model as `shared_layout`. Without a layout, transformers' own `sdpa` computes it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from grpo.attention.flex import attend_in_blocks, uses_flex
from grpo.attention.layout import Layout
from grpo.attention.shared import attend_with_gradient
from grpo.model.casts import compute_type

IMPLEMENTATION = "grpo_shared"  # the name in `config._attn_implementation`


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    shared_layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' interface: query [1, H, N, D], key and value [1, K, N, D] -> [1, N, H, D]."""
    if shared_layout is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    others = [
        name for name in ("softcap", "s_aux", "sliding_window") if kwargs.get(name) is not None
    ]
    if others:  # without them the numbers would be wrong
        raise NotImplementedError(f"attention over a shared prompt knows no {', '.join(others)}")
    dtype = compute_type(query)
    query, key, value = (tensor.to(dtype) for tensor in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if uses_flex(query, key, value, shared_layout.choices):
        return attend_in_blocks(query, key, value, shared_layout.blocks, scale), None
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return attend_with_gradient(query, key, value, shared_layout, scale)[None], None


AttentionInterface.register(IMPLEMENTATION, attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
