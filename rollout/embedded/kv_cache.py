"""A preallocated key/value cache with ragged rows, and the attention that reads it.

Token t of row r sits at slot t of row r: no padding on the left, no moving as rows end. Positions
beyond a row's length hold stale but finite numbers and are masked. Both parts plug into
transformers: `SlotCache` is the `past_key_values` of a forward pass, and `slot_attention` is
registered as an attention implementation, so that any model that goes through that interface is
served without code of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.cache_utils import Cache

from grpo.rollout.embedded.prefill import causal_mask

ATTENTION = "grpo_slots"
BUCKET = 32  # slots; views grow in such steps, so that kernels see few distinct shapes


def bucketed(length: int) -> int:
    """`length` rounded up to a multiple of `BUCKET`."""
    return -(-length // BUCKET) * BUCKET


class SlotCache(Cache):
    """Keys and values of every layer, [rows, kv heads, slots, head size], allocated on first use.

    Call `begin_prefill` or `begin_decode` before each forward pass.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.buffers: dict[int, tuple[Tensor, Tensor]] = {}
        self._capacity = (0, 0)  # rows, slots
        self._rows = torch.empty(0, dtype=torch.int64)
        self._slots: Tensor | None = None  # None: prefill
        self._view = 0
        self._flat: dict[int, Tensor] = {}  # kv heads -> where this step's tokens go

    def reserve(self, rows: int, slots: int) -> None:
        """Room for `rows` rows of `slots` tokens; what the cache holds is kept."""
        old_rows, old_slots = self._capacity
        if rows <= old_rows and slots <= old_slots:
            return
        # Half as much again, so that a growing row copies the cache a few times and not often.
        slots = old_slots if slots <= old_slots else bucketed(max(slots, old_slots * 3 // 2))
        self._capacity = (max(rows, old_rows), slots)
        for layer in list(self.buffers):
            keys, values = self.buffers[layer]
            self.buffers[layer] = (self._grown(keys), self._grown(values))

    def _grown(self, old: Tensor) -> Tensor:
        (rows, slots), (old_rows, heads, old_slots, size) = self._capacity, old.shape
        new = old.new_empty((rows, heads, slots, size))
        new[:old_rows, :, :old_slots] = old
        # Not uninitialized memory: masked slots still meet a multiplication by zero.
        new[:old_rows, :, old_slots:].zero_()
        new[old_rows:].zero_()
        return new

    def _empty(self, like: Tensor) -> Tensor:
        rows, slots = self._capacity
        return like.new_zeros((rows, like.shape[1], slots, like.shape[3]))

    def begin_prefill(self, rows: Tensor) -> None:
        """The next forward pass writes slots 0.. of `rows` (int64 [B])."""
        self._rows, self._slots = rows, None

    def begin_decode(self, rows: Tensor, slots: Tensor, view: int) -> None:
        """The next forward pass writes one token a row, at `slots` (int64 [R]), and sees `view`."""
        self._rows, self._slots, self._view = rows, slots, view
        self._flat = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write [B, kv heads, tokens, head size]; return what the queries may attend to."""
        if layer_idx not in self.buffers:
            self.buffers[layer_idx] = (self._empty(key_states), self._empty(value_states))
        keys, values = self.buffers[layer_idx]
        if self._slots is None:
            length = key_states.shape[2]
            keys.narrow(2, 0, length).index_copy_(0, self._rows, key_states)
            values.narrow(2, 0, length).index_copy_(0, self._rows, value_states)
            return key_states, value_states
        # One flat index of (row, head, slot): ten times faster than indexing around the head axis.
        for buffer, new in ((keys, key_states), (values, value_states)):
            flat = self._flat_index(buffer.shape[1], self._slots)
            buffer.view(-1, buffer.shape[3]).index_copy_(0, flat, new.reshape(-1, new.shape[3]))
        count = len(self._rows)
        return keys[:count, :, : self._view], values[:count, :, : self._view]

    def _flat_index(self, heads: int, slots: Tensor) -> Tensor:
        """int64 [R * heads]: where each row's token goes in a buffer seen as [.., head size]."""
        if heads not in self._flat:
            head = torch.arange(heads, device=slots.device)
            flat = (self._rows[:, None] * heads + head) * self._capacity[1] + slots[:, None]
            self._flat[heads] = flat.reshape(-1)
        return self._flat[heads]

    def copy_rows(self, source: Tensor, target: Tensor, length: int) -> None:
        """Copy the first `length` slots of rows `source` to rows `target` (int64 [N] both)."""
        for pair in self.buffers.values():
            for buffer in pair:
                part = buffer.narrow(2, 0, length)
                part.index_copy_(0, target, part.index_select(0, source))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0: positions are passed explicitly, nothing may be derived from a common length."""
        return 0


def slot_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention over slots, with as many key/value heads as there are; none is repeated.

    query [B, H, q, D], key/value [B, KV, k, D]; `attention_mask` is additive [B, 1, 1, k] when
    decoding and None for a causal prefill. Returns [B, q, H, D].
    """
    if s_aux is not None:
        raise NotImplementedError("attention sinks")
    batch, heads, length, size = query.shape
    kv_heads, seen = key.shape[1], key.shape[2]
    groups = heads // kv_heads
    mask = attention_mask
    if mask is None:
        if softcap or sliding_window:
            mask = causal_mask(query, seen, sliding_window)[None, None]
        elif length > 1:
            if groups > 1:
                # Only some of a GPU's kernels take fewer heads of keys than of queries; where none
                # does, all scores are in memory at once.
                key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
            out = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
            return out.transpose(1, 2), None
    elif sliding_window is not None and seen > sliding_window:
        position = (mask == 0).sum(-1, keepdim=True) - 1
        far = torch.arange(seen, device=mask.device) <= position - sliding_window
        mask = mask.masked_fill(far, float("-inf"))
    # Query heads that share a key/value head become that head's queries.
    packed = query.reshape(batch, kv_heads, groups * length, size)
    if mask is not None and length > 1:
        mask = mask.repeat(1, 1, groups, 1)
    if softcap is None:
        out = scaled_dot_product_attention(packed, key, value, attn_mask=mask, scale=scaling)
    else:
        scores = packed @ key.transpose(2, 3) * (scaling or size**-0.5)
        scores = torch.tanh(scores / softcap) * softcap
        scores = scores if mask is None else scores + mask
        out = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype) @ value
    return out.reshape(batch, heads, length, value.shape[3]).transpose(1, 2), None


AttentionInterface.register(ATTENTION, slot_attention)
