"""Two ways to run a model token by token behind one small interface.

`SlotDecoder` keeps ragged rows in a preallocated `SlotCache`. `OwnCacheDecoder` uses the cache the
model brings along, for models the former cannot serve; it takes one request at a time, whose
samples run in lockstep. `make_decoder` tries the first on a probe and compares it with the plain
forward pass, so that a model it would get wrong is found at start.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from grpo.rollout.kv_cache import ATTENTION, SlotCache, bucketed

logger = logging.getLogger(__name__)

_PREFILL_TOKENS = 4096  # padded tokens of one prefill pass: bounds its activations
_PREFILL_LOGITS = 64  # rows of logits of one prefill pass (ragged prompts ask for several each)


class Decoder(Protocol):
    """Runs rows 0..R-1. `lockstep`: one request at a time, all rows at the same position."""

    lockstep: bool

    def prefill(self, prompts: Sequence[Sequence[int]], rows: Sequence[int]) -> Tensor:
        """Read `prompts` into `rows`; logits [B, V] after the last token of each."""
        ...

    def copy(self, source: Sequence[int], target: Sequence[int], length: int) -> None:
        """Rows `target` become copies of rows `source`, up to `length` tokens."""
        ...

    def decode(self, tokens: np.ndarray, positions: np.ndarray) -> Tensor:
        """One token a row (int64 [R] both); logits [R, V]."""
        ...

    def compact(self, moves: Sequence[tuple[int, int]], count: int, length: int) -> None:
        """Move rows (source, target), then keep the first `count`; none is longer than `length`."""
        ...

    def free(self) -> None:
        """Drop every key and value."""
        ...


class SlotDecoder:
    """Ragged rows in a preallocated cache."""

    lockstep = False

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.dtype = next(model.parameters()).dtype
        self.free()

    def free(self) -> None:
        self.cache = SlotCache()

    def _tensor(self, values: Any) -> Tensor:
        return torch.as_tensor(values, dtype=torch.int64, device=self.device)

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]], rows: Sequence[int]) -> Tensor:
        longest = max(map(len, prompts))
        self.cache.reserve(max(rows) + 1, bucketed(longest + 1))
        out: list[Tensor] = []
        start = 0
        while start < len(prompts):
            end = start + 1
            while end < len(prompts) and _fits(prompts[start : end + 1]):
                end += 1
            out.append(self._prefill(prompts[start:end], rows[start:end]))
            start = end
        return torch.cat(out)

    def _prefill(self, prompts: Sequence[Sequence[int]], rows: Sequence[int]) -> Tensor:
        lengths = [len(p) for p in prompts]
        ids = np.zeros((len(prompts), max(lengths)), dtype=np.int64)
        for row, prompt in zip(ids, prompts, strict=True):
            row[: len(prompt)] = prompt  # padded on the right: a causal model never looks there
        ends = sorted(set(lengths))
        self.cache.begin_prefill(self._tensor(rows))
        logits = self.model(
            input_ids=self._tensor(ids),
            position_ids=torch.arange(ids.shape[1], device=self.device).expand(ids.shape),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=self._tensor(ends) - 1,
        ).logits
        return logits[torch.arange(len(prompts)), [ends.index(n) for n in lengths]]

    @torch.inference_mode()
    def copy(self, source: Sequence[int], target: Sequence[int], length: int) -> None:
        self.cache.reserve(max(target) + 1, length)
        self.cache.copy_rows(self._tensor(source), self._tensor(target), length)

    @torch.inference_mode()
    def decode(self, tokens: np.ndarray, positions: np.ndarray) -> Tensor:
        count, view = len(tokens), bucketed(int(positions.max()) + 1)
        self.cache.reserve(count, view)
        slots = self._tensor(positions)
        self.cache.begin_decode(torch.arange(count, device=self.device), slots, view)
        hidden = torch.arange(view, device=self.device) > slots[:, None]
        mask = torch.zeros(count, view, dtype=self.dtype, device=self.device)
        mask.masked_fill_(hidden, float("-inf"))
        return self.model(
            input_ids=self._tensor(tokens)[:, None],
            attention_mask=mask[:, None, None],
            position_ids=slots[:, None],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]

    @torch.inference_mode()
    def compact(self, moves: Sequence[tuple[int, int]], count: int, length: int) -> None:
        if moves:
            source, target = zip(*moves, strict=True)
            self.cache.copy_rows(self._tensor(source), self._tensor(target), length)


def _fits(prompts: Sequence[Sequence[int]]) -> bool:
    lengths = [len(p) for p in prompts]
    return (
        len(prompts) * max(lengths) <= _PREFILL_TOKENS
        and len(prompts) * len(set(lengths)) <= _PREFILL_LOGITS
    )


class OwnCacheDecoder:
    """The model's own cache: sliding windows, linear attention, whatever the model defines."""

    lockstep = True

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.free()

    def free(self) -> None:
        self.cache: Any = None

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]], rows: Sequence[int]) -> Tensor:
        (prompt,) = prompts
        ids = torch.tensor([list(prompt)], dtype=torch.int64, device=self.device)
        output = self.model(input_ids=ids, use_cache=True)
        self.cache = output.past_key_values
        return output.logits[:, -1]

    @torch.inference_mode()
    def copy(self, source: Sequence[int], target: Sequence[int], length: int) -> None:
        self.cache.batch_repeat_interleave(len(target) + 1)

    @torch.inference_mode()
    def decode(self, tokens: np.ndarray, positions: np.ndarray) -> Tensor:
        ids = torch.as_tensor(tokens, dtype=torch.int64, device=self.device)[:, None]
        position = torch.as_tensor(positions, dtype=torch.int64, device=self.device)[:, None]
        output = self.model(
            input_ids=ids, position_ids=position, past_key_values=self.cache, use_cache=True
        )
        self.cache = output.past_key_values
        return output.logits[:, -1]

    @torch.inference_mode()
    def compact(self, moves: Sequence[tuple[int, int]], count: int, length: int) -> None:
        if count == 0:
            self.free()
            return
        keep = torch.arange(count, device=self.device)
        for source, target in moves:
            keep[target] = source
        self.cache.batch_select_indices(keep)


def make_decoder(model: nn.Module) -> Decoder:
    """`SlotDecoder` where it reproduces the model's plain forward pass, else `OwnCacheDecoder`.

    Sets the model's attention implementation; the model must belong to the caller alone.
    """
    config: Any = model.config
    implementation = config._attn_implementation
    reason = _refusal(config)
    if reason is None:
        prompts = _probe_prompts(config)
        expected = [_plain(model, prompt) for prompt in prompts]
        config._attn_implementation = ATTENTION
        try:
            reason = _mismatch(SlotDecoder(model), prompts, expected)
        except Exception as error:  # any failure of a foreign model's code means: not this path
            reason = f"{type(error).__name__}: {error}"
    if reason is None:
        return SlotDecoder(model)
    config._attn_implementation = implementation
    logger.warning(
        "%s is sampled with its own cache, one request at a time (slower): %s",
        type(model).__name__,
        reason,
    )
    return OwnCacheDecoder(model)


def _refusal(config: Any) -> str | None:
    """Why the slot cache cannot serve this configuration, None if it may."""
    kinds = set(getattr(config, "layer_types", None) or ()) - {
        "full_attention",
        "sliding_attention",
    }
    return f"layer types {', '.join(sorted(kinds))}" if kinds else None


def _probe_prompts(config: Any) -> list[list[int]]:
    """Two ragged prompts, the longer one beyond a (short) sliding window."""
    window = getattr(config, "sliding_window", None) or 0
    length = min(max(6, window + 3), 64)
    vocab = config.vocab_size
    return [[(7 * i + 1) % vocab for i in range(n)] for n in (length, 3)]


_PROBE_STEPS = 2


@torch.inference_mode()
def _plain(model: nn.Module, prompt: list[int]) -> Tensor:
    """Logits [steps + 1, V] of the plain forward pass over the prompt and what is decoded."""
    ids = prompt + _probe_tail(prompt)
    device = next(model.parameters()).device
    logits = model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits
    return logits[0, len(prompt) - 1 :].float()


def _probe_tail(prompt: list[int]) -> list[int]:
    return prompt[:_PROBE_STEPS]


def _mismatch(decoder: SlotDecoder, prompts: list[list[int]], expected: list[Tensor]) -> str | None:
    """Run the probe; say by how much it is off where that is more than rounding."""
    logits = [decoder.prefill(prompts, [0, 1])]
    tails = [_probe_tail(p) for p in prompts]
    for step in range(_PROBE_STEPS):
        tokens = np.array([tail[step] for tail in tails])
        positions = np.array([len(p) + step for p in prompts])
        logits.append(decoder.decode(tokens, positions))
    got = torch.stack(logits, dim=1).float()
    want = torch.stack(expected)
    error = float((got - want).norm() / want.norm())
    tolerance = 1e-4 if decoder.dtype == torch.float32 else 0.05
    return None if error <= tolerance else f"cached logits are off by {error:.1e}"
