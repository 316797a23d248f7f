"""A reward that needs no verifier and leaves hardly any group without signal, for both sides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def coin(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
    """1 where the completion's token ids add up to an odd number, else 0."""
    return [float(sum(ids) % 2) for ids in completion_ids]
