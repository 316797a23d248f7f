"""Keys and values of groups: a prompt once for the rows that share it, then what each row wrote.

A row's context is its group's prompt and its own tokens. The prompt's keys and values are read
once for the whole group (one matrix product of all its rows), not once a row, and never copied
to its rows. Own tokens lie in chunks of `CHUNK` slots; every chunk of all rows is one
contiguous block, as batched products of strided blocks copy them first (measured: 3 to 5 times
slower).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import Cache

CHUNK = 32  # slots of own tokens that one product reads
WIDTH = 16  # rows that share one copy of a prompt; bounds the padding where groups differ in size
_PROMPT_STEP = 32  # slots a prompt's room is rounded up to


@dataclass(kw_only=True, slots=True)
class Ties:
    """How rows and groups find each other, for R rows, G groups of at most M rows, H query heads.

    to_group int64 [G * KV * M * (H / KV)]: which (row, head) each place of a group holds.
    to_rows int64 [R * H]: where each (row, head) is among those places.
    """

    to_group: Tensor
    to_rows: Tensor


class GroupCache(Cache):
    """Keys and values of all layers for rows 0..R-1, each in one of groups 0..G-1.

    prompts[layer]: keys and values, [groups, kv heads, slots, head size];
    own[layer]: [chunks, 2, rows, kv heads, CHUNK, head size].
    For kernels that multiply `pair` numbers at once, as they lie (of `own` too, by whoever writes
    it): keys [.., head size / pair, slots, pair], values [.., slots / pair, head size, pair].
    """

    def __init__(self, heads: int, kv_heads: int, size: int, layers: int, *, pair: int = 0) -> None:
        super().__init__(layers=[])
        self.pair = pair
        self.heads, self.kv_heads, self.size, self.depth = heads, kv_heads, size, layers
        self.prompts: list[tuple[Tensor, Tensor]] = []
        self.own: list[Tensor] = []
        self.slots = 0  # of a prompt
        self.lengths = np.zeros(0, dtype=np.int64)  # of the groups' prompts
        self.group = np.zeros(0, dtype=np.int64)  # of each row
        self._ties: Ties | None = None
        self._reading = torch.empty(0, dtype=torch.int64)

    # Groups

    def open(self, rows: Sequence[int], lengths: Sequence[int]) -> list[int]:
        """New groups, one for each of `rows`, with room for prompts of `lengths` tokens."""
        self._drop_empty(exclude=rows)
        first = len(self.lengths)
        self.lengths = np.concatenate([self.lengths, np.asarray(lengths, dtype=np.int64)])
        if max(rows) >= len(self.group):
            more = max(rows) + 1 - len(self.group)
            self.group = np.concatenate([self.group, np.full(more, -1, dtype=np.int64)])
        groups = list(range(first, len(self.lengths)))
        self.group[list(rows)] = groups
        self._ties = None
        self._fit_prompts()
        return groups

    def share(self, source: int, rows: Sequence[int]) -> None:
        """`rows` join the group of row `source`; further copies of its prompt where it is full."""
        group = int(self.group[source])
        if max(rows) >= len(self.group):
            more = max(rows) + 1 - len(self.group)
            self.group = np.concatenate([self.group, np.full(more, -1, dtype=np.int64)])
        self.group[list(rows)] = -1
        left = list(rows)
        room = WIDTH - int((self.group == group).sum())
        while left:
            taken, left = left[: max(room, 0)], left[max(room, 0) :]
            self.group[taken] = group
            if left:
                (copy,) = self.open(left[:1], [int(self.lengths[group])])
                source_group = int(self.group[source])
                for pair in self.prompts:
                    for buffer in pair:
                        buffer[copy] = buffer[source_group]
                group, room, left = copy, WIDTH - 1, left[1:]
        self._ties = None

    def _drop_empty(self, exclude: Sequence[int] = ()) -> None:
        """Forget groups without rows; the last ones move into their places."""
        live = self.group.copy()
        live[[r for r in exclude if r < len(live)]] = -1
        used = set(live[live >= 0].tolist())
        holes = sorted(set(range(len(self.lengths))) - used)
        if not holes:
            return
        count = len(used)
        movers = sorted(g for g in used if g >= count)
        for source, target in zip(movers, [h for h in holes if h < count], strict=True):
            for pair in self.prompts:
                for buffer in pair:
                    buffer[target] = buffer[source]
            self.lengths[target] = self.lengths[source]
            live[live == source] = target
        self.group = live
        self.lengths = self.lengths[:count]
        self._ties = None
        if not count:
            self.prompts, self.slots = [], 0

    def _fit_prompts(self) -> None:
        """Room for every group's prompt; what is there is kept."""
        groups = len(self.lengths)
        slots = max(self.slots, -(-int(self.lengths.max()) // _PROMPT_STEP) * _PROMPT_STEP)
        have = self.prompts[0][0].shape[0] if self.prompts else 0
        if not self.prompts or (groups <= have and slots == self.slots):
            self.slots = slots
            return
        groups = max(have, groups if groups <= have else max(groups, 2 * have))

        def grown(old: Tensor, dim: int, size: int) -> Tensor:
            shape = list(old.shape)
            shape[0], shape[dim] = groups, size
            new = old.new_zeros(shape)
            new[: old.shape[0], :, : old.shape[2], : old.shape[3]] = old
            return new

        along, together = (3, self.pair) if self.pair else (2, 1)
        self.prompts = [
            (grown(keys, along, slots), grown(values, 2, slots // together))
            for keys, values in self.prompts
        ]
        self.slots = slots

    # Reading prompts: the model's own forward pass

    def begin_prefill(self, rows: Tensor) -> None:
        """The next forward pass reads the prompts of groups `rows` (int64 [B])."""
        self._reading = rows

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep [B, kv heads, tokens, head size] of a prompt."""
        if layer_idx == len(self.prompts):
            # Zeros, not uninitialized memory: masked slots still meet a multiplication by zero.
            shape = (len(self.lengths), self.kv_heads, self.slots, self.size)
            keys, values = key_states.new_zeros(shape), key_states.new_zeros(shape)
            if self.pair:
                keys = keys.view(*shape[:2], self.size // self.pair, self.slots, self.pair)
                values = values.view(*shape[:2], self.slots // self.pair, self.size, self.pair)
            self.prompts.append((keys, values))
        keys, values = self.prompts[layer_idx]
        new_keys, new_values, length = key_states, value_states, key_states.shape[2]
        if self.pair:
            new_keys = key_states.unflatten(3, (-1, self.pair)).transpose(2, 3)
            new_values = functional.pad(value_states, (0, 0, 0, -length % self.pair))
            new_values = new_values.unflatten(2, (-1, self.pair)).transpose(3, 4)
        along = 3 if self.pair else 2
        keys.narrow(along, 0, length).index_copy_(0, self._reading, new_keys)
        values.narrow(2, 0, new_values.shape[2]).index_copy_(0, self._reading, new_values)
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0: positions are passed explicitly."""
        return 0

    # Own tokens

    def reserve(self, rows: int, tokens: int, like: Tensor) -> None:
        """Room for `tokens` own tokens of `rows` rows; what the cache holds is kept."""
        chunks = -(-tokens // CHUNK)
        have_chunks, _, have_rows = self.own[0].shape[:3] if self.own else (0, 0, 0)
        if chunks <= have_chunks and rows <= have_rows:
            return
        # Twice as much, so that growing rows copy the cache a few times and not often.
        chunks = have_chunks if chunks <= have_chunks else max(chunks, 2 * have_chunks)
        rows = have_rows if rows <= have_rows else rows
        shape = (chunks, 2, rows, self.kv_heads, CHUNK, self.size)
        old, self.own = self.own, []
        for layer in range(self.depth):
            new = like.new_zeros(shape)
            if old:
                new[:have_chunks, :, :have_rows] = old[layer]
            self.own.append(new)

    def places(self, own: np.ndarray) -> np.ndarray:
        """int64 [R * 2 KV]: where the keys, then the values of rows 0.. go in a layer of `own`.

        `own` int64 [R]: the slot of each row.
        """
        rows = self.own[0].shape[2]
        count = len(own)
        kind = np.arange(2)[None, :, None]
        head = np.arange(self.kv_heads)[None, None, :]
        row = np.arange(count)[:, None, None]
        chunk, slot = (own // CHUNK)[:, None, None], (own % CHUNK)[:, None, None]
        block = ((chunk * 2 + kind) * rows + row) * self.kv_heads + head
        return (block * CHUNK + slot).reshape(-1)

    def move(self, source: Sequence[int], target: Sequence[int], tokens: int) -> None:
        """Rows `target` become what rows `source` were; none has more than `tokens` own tokens."""
        chunks = -(-tokens // CHUNK)
        # New rows may end or move before there is room for their own tokens: they have none yet.
        room = self.own[0].shape[2] if self.own else 0
        pairs = [(s, t) for s, t in zip(source, target, strict=True) if max(s, t) < room]
        come_from, to = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).unbind(1)
        for buffer in self.own if chunks and pairs else ():
            part = buffer[:chunks]
            part.index_copy_(2, to, part.index_select(2, come_from))
        self.group[list(target)] = self.group[list(source)]

    def keep(self, count: int) -> None:
        """Only rows 0..count-1 are left."""
        self.group = self.group[:count]
        self._drop_empty()
        self._ties = None

    @property
    def ties(self) -> Ties:
        """Of all rows, in their present groups."""
        if self._ties is None:
            self._ties = _tie(self.group, len(self.lengths), self.heads, self.kv_heads)
        return self._ties


def _tie(group: np.ndarray, groups: int, heads: int, kv_heads: int) -> Ties:
    per = heads // kv_heads
    order = np.argsort(group, kind="stable")
    sizes = np.bincount(group, minlength=groups)
    rank = np.empty(len(group), dtype=np.int64)
    rank[order] = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    width = int(sizes.max())
    member = np.zeros((groups, width), dtype=np.int64)  # places without a row repeat row 0
    member[group, rank] = np.arange(len(group))
    head = np.arange(heads).reshape(kv_heads, 1, per)
    to_group = member[:, None, :, None] * heads + head[None]
    place = (group[:, None] * kv_heads + np.arange(kv_heads)) * width + rank[:, None]
    to_rows = place[:, :, None] * per + np.arange(per)
    return Ties(
        to_group=torch.from_numpy(to_group.reshape(-1)),
        to_rows=torch.from_numpy(to_rows.reshape(-1)),
    )
