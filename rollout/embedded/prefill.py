"""Reading prompts: the model's own forward pass over a padded batch, into a cache."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from grpo.model.transfer import to_device
from grpo.rollout.embedded.ways import Ways


class PromptCache(Protocol):
    """A transformers cache that is told where the prompts of the next forward pass belong."""

    def begin_prefill(self, rows: Tensor) -> None:
        """The next forward pass reads the prompts of places `rows` (int64 [B])."""
        ...


Read = Callable[[Sequence[Sequence[int]], Sequence[int]], Tensor]


def read_prompts(
    model: nn.Module,
    cache: PromptCache,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[int],
    ways: Ways,
) -> Tensor:
    """Logits [B, V] after each of `prompts`; their keys and values go to places `rows`."""
    device = next(model.parameters()).device
    return in_passes(functools.partial(_read, model, cache, device), prompts, rows, ways)


def in_passes(
    read: Read, prompts: Sequence[Sequence[int]], rows: Sequence[int], ways: Ways
) -> Tensor:
    """`read` of as many prompts at a time as one forward pass should hold."""
    out: list[Tensor] = []
    start = 0
    while start < len(prompts):
        end = start + 1
        while end < len(prompts) and _fits(prompts[start : end + 1], ways):
            end += 1
        out.append(read(prompts[start:end], rows[start:end]))
        start = end
    return torch.cat(out)


def padded(prompts: Sequence[Sequence[int]]) -> np.ndarray:
    """int64 [B, L], padded on the right, where a causal model never looks."""
    ids = np.zeros((len(prompts), max(map(len, prompts))), dtype=np.int64)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    return ids


def causal_mask(like: Tensor, length: int, window: int | None) -> Tensor:
    """Additive mask [length, length]: causal, and no further back than `window` tokens if given."""
    at = torch.arange(length, device=like.device)
    distance = at[:, None] - at[None, :]
    hidden = distance < 0
    if window is not None:
        hidden |= distance >= window
    return like.new_zeros(length, length).masked_fill_(hidden, float("-inf"))


def _fits(prompts: Sequence[Sequence[int]], ways: Ways) -> bool:
    lengths = [len(p) for p in prompts]
    count = len(prompts)
    return count * max(lengths) <= ways.tokens and count * len(set(lengths)) <= ways.logits


def _read(
    model: nn.Module,
    cache: Any,
    device: torch.device,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[int],
) -> Tensor:
    lengths = np.array([len(p) for p in prompts])
    ends, place = np.unique(lengths, return_inverse=True)
    given = to_device(device, ids=padded(prompts), rows=np.array(rows), last=ends - 1, place=place)
    cache.begin_prefill(given["rows"])
    ids = given["ids"]
    logits = model(
        input_ids=ids,
        position_ids=torch.arange(ids.shape[1], device=device).expand(ids.shape),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=given["last"],
    ).logits
    return logits[torch.arange(len(prompts), device=device), given["place"]]
