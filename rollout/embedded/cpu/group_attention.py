"""A decoding step's attention over a group's prompt and a row's own tokens, by torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from grpo.kernels.layers import normed
from grpo.rollout.embedded.cpu.compiled_attention import CompiledAttention, attention_kernels
from grpo.rollout.embedded.cpu.group_cache import CHUNK, GroupCache
from grpo.rollout.embedded.cpu.rotation import Rotation, rotated


class GroupAttention(Protocol):
    """Reads and writes a `GroupCache` whose `pair` it says."""

    pair: int

    def begin(self, cache: GroupCache, positions: np.ndarray, windows: set[int | None]) -> Any:
        """What all layers of a step share: a token a row at `positions` int64 [R].

        `windows`: all that layers have; None is a layer that sees everything.
        """
        ...

    def __call__(
        self,
        step: Any,
        mixed: Tensor,
        cache: GroupCache,
        index: int,
        head_norms: tuple[Any, Any] | None,
        window: int | None,
    ) -> Tensor:
        """Keep what layer `index` made of the tokens and attend: [R, H D].

        mixed [R, (H + 2 KV) D]: queries, keys and values, not yet turned. `head_norms`: RMS norms
        of queries and keys.
        """
        ...


def attention_for(rotation: Rotation, dtype: torch.dtype) -> GroupAttention:
    """The compiled one, where this machine can have it for such heads."""
    kernels = attention_kernels(rotation.size, dtype)
    if kernels is None:
        return TorchAttention(rotation, dtype)
    return CompiledAttention(kernels, rotation, dtype)


@dataclass(kw_only=True, slots=True)
class _Step:
    cos: Tensor  # [R, H + 2 KV, D]; queries scaled, values unchanged
    sin: Tensor
    places: Tensor  # int64 [R * 2 KV]
    chunks: int  # of own tokens that are seen
    masks: dict[int | None, Tensor]  # window -> additive [R, 1, prompt + own]


class TorchAttention:
    """`GroupAttention` by batched products: of a group with its prompt, of a row with its own."""

    pair = 0

    def __init__(self, rotation: Rotation, dtype: torch.dtype) -> None:
        self._rotation, self.dtype = rotation, dtype

    def begin(self, cache: GroupCache, positions: np.ndarray, windows: set[int | None]) -> _Step:
        lengths = cache.lengths[cache.group]
        own = positions - lengths
        chunks = int(own.max()) // CHUNK + 1
        cos, sin = self._rotation.of_heads(
            torch.from_numpy(positions), cache.heads, cache.kv_heads, self.dtype
        )
        return _Step(
            cos=cos,
            sin=sin,
            places=torch.from_numpy(cache.places(own)),
            chunks=chunks,
            masks={
                window: self._mask(cache.slots, chunks, lengths, positions, window)
                for window in windows
            },
        )

    def _mask(
        self,
        slots: int,
        chunks: int,
        lengths: np.ndarray,
        positions: np.ndarray,
        window: int | None,
    ) -> Tensor:
        """Additive [R, 1, slots + chunks * CHUNK]: what rows of such prompts do not see."""
        prompt, own = np.arange(slots)[None, :], np.arange(chunks * CHUNK)[None, :]
        beyond = own > (positions - lengths)[:, None]
        hidden = np.concatenate([prompt >= lengths[:, None], beyond], axis=1)
        if window is not None:
            at = np.concatenate([prompt.repeat(len(lengths), 0), own + lengths[:, None]], axis=1)
            hidden |= at <= positions[:, None] - window
        mask = torch.zeros(hidden.shape, dtype=self.dtype)
        return mask.masked_fill_(torch.from_numpy(hidden), float("-inf")).unsqueeze(1)

    def __call__(
        self,
        step: _Step,
        mixed: Tensor,
        cache: GroupCache,
        index: int,
        head_norms: tuple[Any, Any] | None,
        window: int | None,
    ) -> Tensor:
        size = cache.size
        heads = with_norms(mixed.view(len(mixed), -1, size), cache, head_norms)
        turned = rotated(heads, step.cos, step.sin)
        own = cache.own[index].view(-1, size)
        own.index_copy_(0, step.places, turned[:, cache.heads :].reshape(-1, size))
        return self._attend(turned, cache, index, step.chunks, step.masks[window])

    def _attend(
        self, mixed: Tensor, cache: GroupCache, index: int, chunks: int, mask: Tensor
    ) -> Tensor:
        """Of `mixed` [R, H + 2 KV, D]'s queries, turned and scaled: [R, H D]."""
        rows, heads, kv_heads, size = len(mixed), cache.heads, cache.kv_heads, cache.size
        ties, slots = cache.ties, cache.slots
        queries = mixed[:, :heads].reshape(-1, size)
        each = queries.view(rows * kv_heads, -1, size)
        own = cache.own[index][:chunks, :, :rows].unbind(0)
        own = [chunk.flatten(1, 2).unbind(0) for chunk in own]  # contiguous [R KV, CHUNK, D] pairs
        keys, values = (b[: len(cache.lengths)].view(-1, slots, size) for b in cache.prompts[index])
        grouped = queries.index_select(0, ties.to_group).view(len(keys), -1, size)
        scores = [torch.bmm(grouped, keys.mT).view(-1, slots).index_select(0, ties.to_rows)]
        scores += [torch.bmm(each, k.mT).view(-1, CHUNK) for k, _ in own]
        score = torch.cat(scores, dim=1).view(rows, heads, -1).add_(mask)
        weights = torch.softmax(score, dim=-1).view(rows * heads, -1)
        read = weights[:, :slots].index_select(0, ties.to_group).view(len(keys), -1, slots)
        sums = [torch.bmm(read, values).view(-1, size).index_select(0, ties.to_rows)]
        parts = weights[:, slots:].view(rows * kv_heads, -1, weights.shape[1] - slots)
        for part, (_, value) in zip(parts.split(CHUNK, dim=2), own, strict=True):
            sums.append(torch.bmm(part, value).view(-1, size))
        # One sum, rounded once: adding chunk by chunk would round every time.
        return torch.stack(sums).sum(0).view(rows, -1)


def with_norms(mixed: Tensor, cache: GroupCache, head_norms: tuple[Any, Any] | None) -> Tensor:
    """Queries, keys and values [R, H + 2 KV, D] with RMS norms of the first two, if there are."""
    if head_norms is None:
        return mixed
    query, key, value = mixed.split([cache.heads, cache.kv_heads, cache.kv_heads], dim=1)
    of_query, of_key = head_norms
    return torch.cat([normed(query, of_query), normed(key, of_key), value], 1)
