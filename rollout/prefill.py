"""Reading prompts: the model's own forward pass over a padded batch, into a cache."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

_PREFILL_TOKENS = 4096  # padded tokens of one prefill pass: bounds its activations
_PREFILL_LOGITS = 64  # rows of logits of one prefill pass (ragged prompts ask for several each)


class PromptCache(Protocol):
    """A transformers cache that is told where the prompts of the next forward pass belong."""

    def begin_prefill(self, rows: Tensor) -> None:
        """The next forward pass reads the prompts of places `rows` (int64 [B])."""
        ...


Read = Callable[[Sequence[Sequence[int]], Sequence[int]], Tensor]


def read_prompts(
    model: nn.Module, cache: PromptCache, prompts: Sequence[Sequence[int]], rows: Sequence[int]
) -> Tensor:
    """Logits [B, V] after each of `prompts`; their keys and values go to places `rows`."""
    return in_passes(functools.partial(_read, model, cache), prompts, rows)


def in_passes(read: Read, prompts: Sequence[Sequence[int]], rows: Sequence[int]) -> Tensor:
    """`read` of as many prompts at a time as one forward pass should hold."""
    out: list[Tensor] = []
    start = 0
    while start < len(prompts):
        end = start + 1
        while end < len(prompts) and _fits(prompts[start : end + 1]):
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


def _fits(prompts: Sequence[Sequence[int]]) -> bool:
    lengths = [len(p) for p in prompts]
    return (
        len(prompts) * max(lengths) <= _PREFILL_TOKENS
        and len(prompts) * len(set(lengths)) <= _PREFILL_LOGITS
    )


def _read(
    model: nn.Module, cache: Any, prompts: Sequence[Sequence[int]], rows: Sequence[int]
) -> Tensor:
    device = next(model.parameters()).device
    lengths = [len(p) for p in prompts]
    ids = padded(prompts)
    ends = sorted(set(lengths))
    cache.begin_prefill(torch.as_tensor(rows, dtype=torch.int64, device=device))
    logits = model(
        input_ids=torch.as_tensor(ids, device=device),
        position_ids=torch.arange(ids.shape[1], device=device).expand(ids.shape),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=torch.as_tensor(ends, dtype=torch.int64, device=device) - 1,
    ).logits
    return logits[torch.arange(len(prompts)), [ends.index(n) for n in lengths]]
