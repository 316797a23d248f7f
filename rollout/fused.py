"""Decoding of Llama-like models on a CPU without their forward pass.

A layer is 29 operations instead of 43: packed weights (`packed.py`), one product for queries,
keys and values, activation, product and residual sum inside the products, one rotation for
queries and keys, attention over a group's prompt and a row's own tokens (`group_cache.py`).
`make_decoder` compares all of it with the model's own forward pass before use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from grpo.errors import WeightsError
from grpo.kernels.layers import rms_norm, swiglu
from grpo.rollout.group_cache import CHUNK, GroupCache
from grpo.rollout.packed import Gated, Linear, Linears, PackedLinears, PlainLinears, packs
from grpo.rollout.prefill import in_passes, padded

_MODELS = {"llama", "mistral", "qwen2", "qwen3"}
_STATIC_ROPES = {"default", "linear", "llama3", "yarn"}  # the same at every length of the context


def fusable(model: nn.Module) -> bool:
    """Whether `FusedDecoder` knows every part of `model`, and this machine packs its weights."""
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
        and packs(first.dtype, first.device)
    )


class Layer:
    """A decoder layer's weights; norms and shapes are the module's own."""

    def __init__(self, module: Any, config: Any, linears: Linears) -> None:
        attention, mlp = module.self_attn, module.mlp
        self.before = module.input_layernorm
        self.after = module.post_attention_layernorm
        self.qkv = linears.together([attention.q_proj, attention.k_proj, attention.v_proj])
        self.out = linears.together([attention.o_proj])
        self.gated = linears.gated(mlp.gate_proj, mlp.up_proj)
        self.down = linears.together([mlp.down_proj])
        self.head_norms = (
            (attention.q_norm, attention.k_norm) if config.model_type == "qwen3" else None
        )
        owner = config if config.model_type == "mistral" else attention
        self.window: int | None = getattr(owner, "sliding_window", None)

    @property
    def linears(self) -> tuple[Linear | Gated, ...]:
        return (self.qkv, self.out, self.gated, self.down)


class _Step:
    """What all layers of one step share."""

    def __init__(self, *, cos: Tensor, sin: Tensor, places: Tensor, chunks: int) -> None:
        self.cos, self.sin = cos, sin  # [R, H + 2 KV, D]; queries scaled, values unchanged
        self.places = places  # int64 [R * 2 KV]
        self.chunks = chunks  # of own tokens that are seen
        self.masks: dict[int | None, Tensor] = {}  # window -> additive [R, 1, prompt + own]


class FusedDecoder:
    """Ragged rows in a `GroupCache`."""

    lockstep = False
    pair = 0  # how the cache keeps keys and values

    def __init__(self, model: nn.Module, linears: Linears | None = None) -> None:
        whole: Any = model
        config = whole.config
        self.dtype = next(model.parameters()).dtype
        if linears is None:
            narrow = self.dtype == torch.bfloat16
            linears = PackedLinears(_normed, swiglu) if narrow else PlainLinears(_normed, swiglu)
        self.heads: int = config.num_attention_heads
        self.kv_heads: int = config.num_key_value_heads
        self.size: int = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.embed = whole.model.embed_tokens
        self.norm = whole.model.norm
        self.layers = [Layer(module, config, linears) for module in whole.model.layers]
        self.head = linears.together([whole.lm_head])
        self._rotary = whole.model.rotary_emb
        self._turns: tuple[Tensor, Tensor] | None = None  # cos, sin [positions, D]
        self.free()

    def free(self) -> None:
        self.cache = GroupCache(
            self.heads, self.kv_heads, self.size, len(self.layers), pair=self.pair
        )
        self._turns = None

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
        return in_passes(self._read, prompts, groups, self.embed.weight.device)

    def _read(self, prompts: Sequence[Sequence[int]], groups: Sequence[int]) -> Tensor:
        """Logits [B, V] after `prompts`, which become those of `groups`."""
        ids = torch.from_numpy(padded(prompts))
        B, L = ids.shape
        cos, sin = (t.repeat(B, 1, 1) for t in self._turn(torch.arange(L)))
        self.cache.begin_prefill(torch.tensor(groups))
        x = self.embed(ids.view(-1))
        for index, layer in enumerate(self.layers):
            mixed = self._mixed(x, layer, cos, sin).view(B, L, -1, self.size).transpose(1, 2)
            q, k, v = mixed.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
            self.cache.update(k, v, index)
            mask = None if layer.window is None else _banded(x, L, layer.window)
            # Heads are repeated: torch's kernel for CPUs takes no fewer keys than queries.
            k, v = (t.repeat_interleave(self.heads // self.kv_heads, dim=1) for t in (k, v))
            attended = scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, scale=1)
            attended = attended.transpose(1, 2).reshape(B * L, -1)
            x = self._rest(layer.out.plus(attended, x), layer)
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
        step = self._begin(positions)
        x = self.embed(torch.from_numpy(tokens))
        for index, layer in enumerate(self.layers):
            x = self._layer(x, layer, index, step)
        return self.head(x, self.norm)

    def _begin(self, positions: np.ndarray) -> _Step:
        cache = self.cache
        lengths = cache.lengths[cache.group]
        own = positions - lengths
        chunks = int(own.max()) // CHUNK + 1
        cache.reserve(len(own), chunks * CHUNK, self.embed.weight)
        cos, sin = self._turn(torch.from_numpy(positions))
        step = _Step(cos=cos, sin=sin, places=torch.from_numpy(cache.places(own)), chunks=chunks)
        slots = np.arange(cache.slots)[None, :], np.arange(chunks * CHUNK)[None, :]
        hidden = np.concatenate([slots[0] >= lengths[:, None], slots[1] > own[:, None]], axis=1)
        for window in {layer.window for layer in self.layers}:
            unseen = hidden
            if window is not None:
                at = np.concatenate(
                    [slots[0].repeat(len(own), 0), slots[1] + lengths[:, None]], axis=1
                )
                unseen = hidden | (at <= positions[:, None] - window)
            mask = torch.zeros(unseen.shape, dtype=self.dtype)
            step.masks[window] = mask.masked_fill_(
                torch.from_numpy(unseen), float("-inf")
            ).unsqueeze(1)
        return step

    def _turn(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [R, H + 2 KV, D] of `positions` int64 [R]."""
        cos, sin = (t.to(self.dtype)[positions] for t in self._tables(int(positions.max()) + 1))
        scale = self.size**-0.5
        one, zero = torch.ones_like(cos), torch.zeros_like(sin)
        counts = (self.heads, self.kv_heads, self.kv_heads)
        return (
            torch.stack([cos * scale, cos, one], 1).repeat_interleave(torch.tensor(counts), 1),
            torch.stack([sin * scale, sin, zero], 1).repeat_interleave(torch.tensor(counts), 1),
        )

    def _tables(self, positions: int) -> tuple[Tensor, Tensor]:
        """cos and sin of at least `positions` positions, float32 [.., D].

        x * cos + swapped halves of x * sin: the first half of the rotation has a minus.
        """
        if self._turns is None or positions > len(self._turns[0]):
            room = max(256, 2 * positions)
            cos, sin = self._rotary(self.embed.weight[:1].float(), torch.arange(room)[None])
            half = self.size // 2
            sin = torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)
            self._turns = (cos[0].float().contiguous(), sin.float())
        return self._turns

    def _layer(self, x: Tensor, layer: Layer, index: int, step: _Step) -> Tensor:
        mixed = self._mixed(x, layer, step.cos, step.sin)
        own = self.cache.own[index].view(-1, self.size)
        own.index_copy_(0, step.places, mixed[:, self.heads :].reshape(-1, self.size))
        return self._rest(layer.out.plus(self._attend(mixed, layer, index, step), x), layer)

    def _mixed(self, x: Tensor, layer: Layer, cos: Tensor, sin: Tensor) -> Tensor:
        """Queries (scaled), keys and values [R, H + 2 KV, D], the first two turned."""
        size = self.size
        mixed = layer.qkv(x, layer.before).view(len(x), -1, size)
        if layer.head_norms is not None:
            q, k, v = mixed.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
            of_query, of_key = layer.head_norms
            mixed = torch.cat([_normed(q, of_query), _normed(k, of_key), v], 1)
        swapped = mixed.roll(size // 2, dims=-1)
        return torch.addcmul(mixed * cos, swapped, sin)

    def _rest(self, x: Tensor, layer: Layer) -> Tensor:
        """What follows attention: [R, hidden] -> the same."""
        return layer.down.plus(layer.gated(x, layer.after), x)

    def _attend(self, mixed: Tensor, layer: Layer, index: int, step: _Step) -> Tensor:
        """Attention of `mixed` [R, H + 2 KV, D]'s queries over prompts and own tokens: [R, H D]."""
        rows, heads, kv_heads, size = len(mixed), self.heads, self.kv_heads, self.size
        ties, slots = self.cache.ties, self.cache.slots
        queries = mixed[:, :heads].reshape(-1, size)
        each = queries.view(rows * kv_heads, -1, size)
        own = self.cache.own[index][: step.chunks, :, :rows].unbind(0)
        own = [chunk.flatten(1, 2).unbind(0) for chunk in own]  # contiguous [R KV, CHUNK, D] pairs
        keys, values = (
            b[: len(self.cache.lengths)].view(-1, slots, size) for b in self.cache.prompts[index]
        )
        grouped = queries.index_select(0, ties.to_group).view(len(keys), -1, size)
        scores = [torch.bmm(grouped, keys.mT).view(-1, slots).index_select(0, ties.to_rows)]
        scores += [torch.bmm(each, k.mT).view(-1, CHUNK) for k, _ in own]
        score = torch.cat(scores, dim=1).view(rows, heads, -1).add_(step.masks[layer.window])
        weights = torch.softmax(score, dim=-1).view(rows * heads, -1)
        read = weights[:, :slots].index_select(0, ties.to_group).view(len(keys), -1, slots)
        sums = [torch.bmm(read, values).view(-1, size).index_select(0, ties.to_rows)]
        parts = weights[:, slots:].view(rows * kv_heads, -1, weights.shape[1] - slots)
        for part, (_, value) in zip(parts.split(CHUNK, dim=2), own, strict=True):
            sums.append(torch.bmm(part, value).view(-1, size))
        # One sum, rounded once: adding chunk by chunk would round every time.
        return torch.stack(sums).sum(0).view(rows, -1)


def _normed(x: Tensor, norm: Any) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    return rms_norm(rows, norm.weight, norm.variance_epsilon, x.dtype)[0].view(x.shape)


def _banded(like: Tensor, length: int, window: int) -> Tensor:
    """Additive mask [length, length]: causal, and no further back than `window` tokens."""
    at = torch.arange(length)
    distance = at[:, None] - at[None, :]
    hidden = (distance < 0) | (distance >= window)
    return like.new_zeros(length, length).masked_fill_(hidden, float("-inf"))
