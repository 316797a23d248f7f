"""Decoding of Llama-like models on a CPU without their forward pass.

A layer is 8 operations instead of 43: packed weights (`packed.py`), one product for queries, keys
and values and one for gate and up, norms, activation and residual sum inside the products where
matrix tiles make them, and attention over a group's prompt and a row's own tokens
(`group_attention.py`) in one compiled pass, or by torch. `make_decoder` compares all of it with
the model's own forward pass before use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from grpo.errors import WeightsError
from grpo.rollout.embedded.cpu.group_attention import attention_for, with_norms
from grpo.rollout.embedded.cpu.group_cache import GroupCache
from grpo.rollout.embedded.cpu.packed import Linear, layout_for, packs
from grpo.rollout.embedded.cpu.rotation import Rotation, rotated
from grpo.rollout.embedded.prefill import causal_mask, in_passes, padded
from grpo.rollout.embedded.ways import Ways

_MODELS = {"llama", "mistral", "qwen2", "qwen3"}
_STATIC_ROPES = {"default", "linear", "llama3", "yarn"}  # the same at every length of the context


def fusable(model: nn.Module) -> bool:
    """Whether `FusedDecoder` knows every part of `model`, and this machine its type of weights."""
    config: Any = model.config
    first = next(model.parameters())
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        config.model_type in _MODELS
        and config.hidden_act == "silu"
        and rope.get("rope_type", "default") in _STATIC_ROPES
        and rope.get("partial_rotary_factor", 1.0) == 1.0
        # An adapter's layers are of another type.
        and all(type(m) is nn.Linear for n, m in model.named_modules() if n.endswith("_proj"))
        and all(p.dtype == first.dtype for p in model.parameters())
        and packs(first.dtype)
    )


class Layer:
    """A decoder layer's weights; norms and shapes are the module's own."""

    def __init__(self, module: Any, config: Any, linear: type[Linear], gated: type[Linear]) -> None:
        attention, mlp = module.self_attn, module.mlp
        self.before = module.input_layernorm
        self.after = module.post_attention_layernorm
        self.qkv = linear([attention.q_proj, attention.k_proj, attention.v_proj])
        self.out = linear([attention.o_proj])
        self.gate = gated([mlp.gate_proj, mlp.up_proj])
        self.down = linear([mlp.down_proj])
        self.head_norms = (
            (attention.q_norm, attention.k_norm) if config.model_type == "qwen3" else None
        )
        owner = config if config.model_type == "mistral" else attention
        self.window: int | None = getattr(owner, "sliding_window", None)

    @property
    def linears(self) -> tuple[Linear, ...]:
        return (self.qkv, self.out, self.gate, self.down)

    def rest(self, attended: Tensor, x: Tensor) -> Tensor:
        """What follows attention [R, H D], with the residual stream x [R, hidden]: the same."""
        x = self.out.plus(attended, x)
        return self.down.plus(self.gate.gated(x, self.after), x)


class FusedDecoder:
    """Ragged rows in a `GroupCache`."""

    lockstep = False

    def __init__(self, model: nn.Module, ways: Ways) -> None:
        whole: Any = model
        config = whole.config
        self._ways = ways
        self.dtype = next(model.parameters()).dtype
        self.heads: int = config.num_attention_heads
        self.kv_heads: int = config.num_key_value_heads
        self.size: int = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.embed = whole.model.embed_tokens
        self.norm = whole.model.norm
        linear, gated = layout_for(model)
        self.layers = [Layer(module, config, linear, gated) for module in whole.model.layers]
        self.head = linear([whole.lm_head])
        self._windows = {layer.window for layer in self.layers}
        self._rotation = Rotation(whole.model.rotary_emb, self.size)
        self.attention = attention_for(self._rotation, self.dtype)
        self.free()

    def free(self) -> None:
        pair = self.attention.pair
        self.cache = GroupCache(self.heads, self.kv_heads, self.size, len(self.layers), pair=pair)
        self._rotation.free()

    @torch.no_grad()
    def refresh(self) -> None:
        """Pack the model's present weights, and read them back. Raises WeightsError."""
        for linear in (self.head, *(p for layer in self.layers for p in layer.linears)):
            linear.fill()
            if not linear.holds():
                raise WeightsError("the packed weights are not the ones that were loaded")

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]], rows: Sequence[int]) -> Tensor:
        groups = self.cache.open(rows, [len(p) for p in prompts])
        return in_passes(self._read, prompts, groups, self._ways)

    def _read(self, prompts: Sequence[Sequence[int]], groups: Sequence[int]) -> Tensor:
        """Logits [B, V] after `prompts`, which become those of `groups`."""
        ids = torch.from_numpy(padded(prompts))
        B, L = ids.shape
        heads, kv_heads = self.heads, self.kv_heads
        turns = self._rotation.of_heads(torch.arange(L), heads, kv_heads, self.dtype)
        cos, sin = (t.repeat(B, 1, 1) for t in turns)
        self.cache.begin_prefill(torch.tensor(groups))
        x = self.embed(ids.view(-1))
        for index, layer in enumerate(self.layers):
            mixed = layer.qkv(x, layer.before).view(B * L, -1, self.size)
            mixed = rotated(with_norms(mixed, self.cache, layer.head_norms), cos, sin)
            mixed = mixed.view(B, L, -1, self.size).transpose(1, 2)
            q, k, v = mixed.split([heads, kv_heads, kv_heads], dim=1)
            self.cache.update(k, v, index)
            mask = None if layer.window is None else causal_mask(x, L, layer.window)
            # Heads are repeated: torch's kernel for CPUs takes no fewer keys than queries.
            k, v = (t.repeat_interleave(heads // kv_heads, dim=1) for t in (k, v))
            attended = scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, scale=1)
            x = layer.rest(attended.transpose(1, 2).reshape(B * L, -1), x)
        last = torch.tensor([row * L + len(p) - 1 for row, p in enumerate(prompts)])
        return self.head(x[last], self.norm)

    @torch.inference_mode()
    def copy(self, source: Sequence[int], target: Sequence[int], lengths: Sequence[int]) -> None:
        for row in dict.fromkeys(source):
            self.cache.share(row, [t for s, t in zip(source, target, strict=True) if s == row])

    @torch.inference_mode()
    def compact(self, moves: Sequence[tuple[int, int]], count: int, length: int) -> None:
        if moves:
            source, target = zip(*moves, strict=True)
            own = length - int(self.cache.lengths.min())
            self.cache.move(source, target, max(own, 0))
        self.cache.keep(count)

    @torch.inference_mode()
    def decode(self, tokens: np.ndarray, positions: np.ndarray) -> Tensor:
        cache, attention = self.cache, self.attention
        own = positions - cache.lengths[cache.group]
        cache.reserve(len(own), int(own.max()) + 1, self.embed.weight)
        step = attention.begin(cache, positions, self._windows)
        x = self.embed(torch.from_numpy(tokens))
        for index, layer in enumerate(self.layers):
            mixed = layer.qkv(x, layer.before)
            attended = attention(step, mixed, cache, index, layer.head_norms, layer.window)
            x = layer.rest(attended, x)
        return self.head(x, self.norm)
