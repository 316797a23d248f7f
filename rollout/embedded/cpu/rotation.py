"""Rotary embedding (2104.09864) of an engine's positions, from the model's own table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Rotation:
    """cos and sin of positions, for heads of `size` whose halves turn against each other.

    `rotary` is the model's own module, asked once for as many positions as there are.
    """

    def __init__(self, rotary: Any, size: int) -> None:
        self._rotary, self.size = rotary, size
        self._tables: tuple[Tensor, Tensor] | None = None

    def free(self) -> None:
        """Drop the tables."""
        self._tables = None

    def tables(self, positions: int) -> tuple[Tensor, Tensor]:
        """cos and sin of at least `positions` positions, float32 [.., D].

        x * cos + swapped halves of x * sin: the first half of the rotation has a minus.
        """
        if self._tables is None or positions > len(self._tables[0]):
            room = max(256, 2 * positions)
            like = torch.zeros(1, dtype=torch.float32)
            cos, sin = self._rotary(like, torch.arange(room)[None])
            half = self.size // 2
            sin = torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)
            self._tables = (cos[0].float().contiguous(), sin.float())
        return self._tables

    def of_heads(
        self, positions: Tensor, heads: int, kv_heads: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """cos and sin [R, H + 2 KV, D] of `positions` int64 [R]: queries scaled, values as is."""
        cos, sin = (t.to(dtype)[positions] for t in self.tables(int(positions.max()) + 1))
        scale = self.size**-0.5
        one, zero = torch.ones_like(cos), torch.zeros_like(sin)
        counts = torch.tensor((heads, kv_heads, kv_heads))
        return (
            torch.stack([cos * scale, cos, one], 1).repeat_interleave(counts, 1),
            torch.stack([sin * scale, sin, zero], 1).repeat_interleave(counts, 1),
        )


def rotated(mixed: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries, keys and values [R, H + 2 KV, D], turned by tables of the same shape."""
    return torch.addcmul(mixed * cos, mixed.roll(mixed.shape[-1] // 2, dims=-1), sin)
