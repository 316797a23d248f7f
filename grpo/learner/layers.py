"""Llama-like layers on a CPU with their backward pass by hand: fewer passes over memory.

Autograd keeps and casts the output of every operation. Here a layer is two steps, attention and
multi-layer perceptron, each with its norm and the sum into the residual stream, and

  between matrix products everything is one pass over memory (`grpo/kernels/layers.py`)
  queries, keys and values come from one product, as do gate and up; so do their gradients
  kept are the residual stream, the products' results and a factor a row; the backward pass computes
  the norms and the gated activation again, which costs less than reading them

The numbers are those of the model's own code, with fewer roundings on the way. It is used where
tokens lie flat (`grpo/attention/shared.py`); any other call goes to the model's own code, and so
does a layer that has an adapter.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from grpo.attention.layout import Layout
from grpo.attention.shared import attend, attend_backward
from grpo.kernels.layers import (
    add,
    rms_norm,
    rms_norm_backward,
    rotate_,
    swiglu,
    swiglu_backward,
    weight_gradient,
)
from grpo.model.casts import autocast_off, compute_type, joined

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# norm, attention with rotary embedding by halves, residual, norm, gated perceptron, residual
LAYERS = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer")


def fuse_layers(model: PreTrainedModel) -> None:
    """Give the layers that are known here their `forward`; does nothing for other models."""
    if getattr(model.config, "hidden_act", None) not in ("silu", "swish"):
        return
    for module in model.modules():
        if type(module).__name__ in LAYERS:
            module.forward = types.MethodType(_forward, module)


def _forward(
    layer: Any,
    hidden_states: Tensor,
    *,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    shared_layout: Layout | None = None,
    past_key_values: object = None,
    **kwargs: Any,
) -> Tensor:
    """The layer on [1, N, D], in place of transformers' own."""
    if (
        shared_layout is None
        or position_embeddings is None
        or past_key_values is not None
        or not _is_plain(layer)
    ):
        return type(layer).forward(
            layer,
            hidden_states,
            position_embeddings=position_embeddings,
            shared_layout=shared_layout,
            past_key_values=past_key_values,
            **kwargs,
        )
    compute = functools.partial(_computed, layer, position_embeddings, shared_layout)
    # transformers 5.2x recomputes inside the class's `forward`, which this one stands in for;
    # before, it did so around any.
    inside = hasattr(type(layer).forward, "__wrapped__")
    if inside and layer.gradient_checkpointing and layer.training:
        return layer._gradient_checkpointing_func(compute, hidden_states)
    return compute(hidden_states)


def _computed(
    layer: Any, position_embeddings: tuple[Tensor, Tensor], layout: Layout, hidden_states: Tensor
) -> Tensor:
    """The layer on [1, N, D]."""
    attention, mlp = layer.self_attn, layer.mlp
    cos, sin = (table[0] for table in position_embeddings)
    x = _Attention.apply(
        hidden_states[0],
        layer.input_layernorm.weight,
        _eps(layer.input_layernorm),
        attention.o_proj.weight,
        (cos, sin, layout, attention.head_dim, attention.scaling),
        *(p.weight for p in (attention.q_proj, attention.k_proj, attention.v_proj)),
        *(p.bias for p in (attention.q_proj, attention.k_proj, attention.v_proj)),
    )
    norm = layer.post_attention_layernorm
    x = _Perceptron.apply(
        x, norm.weight, _eps(norm), *(p.weight for p in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    )
    return cast(Tensor, x)[None]


def _is_plain(layer: Any) -> bool:
    """Linear layers and norms are what the model's code made: no adapter, no quantization."""
    attention, mlp = layer.self_attn, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    others = (attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    return (
        all(type(p) is nn.Linear for p in (*projections, *others))
        and all(p.bias is None for p in others)
        and len({p.bias is None for p in projections}) == 1
    )


def _eps(norm: Any) -> float:
    return norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps


class _Attention(torch.autograd.Function):
    """Residual stream [N, D] -> the same with attention's output added."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm: Tensor,
        eps: float,
        output: Tensor,
        how: tuple[Tensor, Tensor, Layout, int, float],
        *projections: Tensor | None,
    ) -> Tensor:
        dtype = compute_type(x)
        cos, sin, layout, width, scaling = how
        weights = cast(tuple[Tensor, ...], projections[:3])
        biases = [b for b in projections[3:] if b is not None]
        with autocast_off(x):
            projection, narrow_output = joined(weights, dtype), joined([output], dtype)
            hidden, scale = rms_norm(x, norm, eps, dtype)
            bias = joined(biases, dtype) if biases else None
            qkv = functional.linear(hidden, projection, bias).view(len(x), -1, width)
            heads = [len(w) // width for w in weights]
            rotate_(qkv, cos, sin, heads[0] + heads[1])
            query, key, value = qkv.split(heads, 1)
            found, normalizer = attend(query, key, value, layout, scaling)
            result = add(x, functional.linear(found.flatten(1), narrow_output))
        ctx.save_for_backward(
            x, norm, scale, qkv, found, normalizer, projection, narrow_output, cos, sin
        )
        ctx.eps, ctx.layout, ctx.scaling, ctx.heads = eps, layout, scaling, heads
        ctx.weight_type = output.dtype
        ctx.has_bias = bool(biases)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, norm, scale, qkv, found, normalizer, projection, output, cos, sin = ctx.saved_tensors
        upstream = gradients[0].contiguous()
        heads, N = ctx.heads, len(x)
        with autocast_off(x):
            grad_result = upstream.to(qkv.dtype)
            grad_output = None
            if ctx.needs_input_grad[3]:
                grad_output = weight_gradient(grad_result, found.flatten(1), ctx.weight_type)
            grad_found = (grad_result @ output).view(found.shape)
            saved = (*qkv.split(heads, 1), found, normalizer)
            grad_qkv = torch.empty_like(qkv)
            attend_backward(grad_found, saved, ctx.layout, ctx.scaling, grad_qkv.split(heads, 1))
            rotate_(grad_qkv, cos, sin, heads[0] + heads[1], backward=True)
            grad_qkv = grad_qkv.view(N, -1)
            rows = [many * qkv.shape[2] for many in heads]
            grad_weights: Sequence[Tensor | None] = [None] * 3
            if any(ctx.needs_input_grad[5:8]):
                hidden, _ = rms_norm(x, norm, ctx.eps, qkv.dtype)
                grad_weights = weight_gradient(grad_qkv, hidden, ctx.weight_type).split(rows)
            grad_biases: Sequence[Tensor | None] = [None] * 3
            if ctx.has_bias:
                grad_biases = grad_qkv.sum(0, dtype=ctx.weight_type).split(rows)
            grad_x, grad_norm = rms_norm_backward(grad_qkv @ projection, x, norm, scale, upstream)
        return grad_x, grad_norm, None, grad_output, None, *grad_weights, *grad_biases


class _Perceptron(torch.autograd.Function):
    """Residual stream [N, D] -> the same with the gated perceptron's output added."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm: Tensor, eps: float, gate: Tensor, up: Tensor, down: Tensor
    ) -> Tensor:
        dtype = compute_type(x)
        with autocast_off(x):
            expansion, narrow_down = joined([gate, up], dtype), joined([down], dtype)
            hidden, scale = rms_norm(x, norm, eps, dtype)
            gate_up = functional.linear(hidden, expansion)
            result = add(x, functional.linear(swiglu(gate_up), narrow_down))
        ctx.save_for_backward(x, norm, scale, gate_up, expansion, narrow_down)
        ctx.eps, ctx.weight_type = eps, down.dtype
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, norm, scale, gate_up, expansion, down = ctx.saved_tensors
        upstream = gradients[0].contiguous()
        grad_weights: list[Tensor | None] = [None] * 3
        with autocast_off(x):
            grad_result = upstream.to(gate_up.dtype)
            grad_gate_up, active = swiglu_backward(gate_up, grad_result @ down)
            if ctx.needs_input_grad[5]:
                grad_weights[2] = weight_gradient(grad_result, active, ctx.weight_type)
            if any(ctx.needs_input_grad[3:5]):
                hidden, _ = rms_norm(x, norm, ctx.eps, gate_up.dtype)
                grad_expansion = weight_gradient(grad_gate_up, hidden, ctx.weight_type)
                grad_weights[:2] = grad_expansion.chunk(2)
            grad_x, grad_norm = rms_norm_backward(
                grad_gate_up @ expansion, x, norm, scale, upstream
            )
        return grad_x, grad_norm, None, *grad_weights
