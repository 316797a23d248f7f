"""Three ways to run a model token by token behind one small interface.

`FusedDecoder` computes Llama-like models on a CPU by itself. `SlotDecoder` runs any model's own
code over a preallocated `SlotCache` of ragged rows. `OwnCacheDecoder` uses the cache the model
brings along, for models the others cannot serve; it takes one request at a time, whose samples
run in lockstep. `make_decoder` tries them in this order on a probe and compares it with the plain
forward pass, so that a model they would get wrong is found at start.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from grpo.rollout.fused import FusedDecoder, fusable
from grpo.rollout.kv_cache import ATTENTION, SlotCache, bucketed
from grpo.rollout.native_decoder import NativeDecoder
from grpo.rollout.prefill import read_prompts

logger = logging.getLogger(__name__)


class Decoder(Protocol):
    """Runs rows 0..R-1. `lockstep`: one request at a time, all rows at the same position."""

    lockstep: bool

    def prefill(self, prompts: Sequence[Sequence[int]], rows: Sequence[int]) -> Tensor:
        """Read `prompts` into `rows`; logits [B, V] after the last token of each."""
        ...

    def copy(self, source: int, target: Sequence[int], length: int) -> None:
        """Rows `target` get the prompt of row `source`, its first `length` tokens."""
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

    def refresh(self) -> None:
        """The model's weights have changed. Raises WeightsError where they cannot be followed."""
        ...


class SlotDecoder:
    """Ragged rows in a preallocated cache. `compiled`: decoding goes through torch.compile."""

    lockstep = False

    def __init__(self, model: nn.Module, *, compiled: bool = False) -> None:
        self.model = model
        self._run: Any = torch.compile(model, dynamic=True) if compiled else model
        self.device = next(model.parameters()).device
        self.dtype = next(model.parameters()).dtype
        self.free()

    def free(self) -> None:
        self.cache = SlotCache()

    def refresh(self) -> None:
        """Nothing to do: it runs the model itself."""

    def _tensor(self, values: Any) -> Tensor:
        return torch.as_tensor(values, dtype=torch.int64, device=self.device)

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]], rows: Sequence[int]) -> Tensor:
        longest = max(map(len, prompts))
        self.cache.reserve(max(rows) + 1, bucketed(longest + 1))
        return read_prompts(self.model, self.cache, prompts, rows)

    @torch.inference_mode()
    def copy(self, source: int, target: Sequence[int], length: int) -> None:
        self.cache.reserve(max(target) + 1, length)
        rows = self._tensor(target)
        self.cache.copy_rows(torch.full_like(rows, source), rows, length)

    @torch.inference_mode()
    def decode(self, tokens: np.ndarray, positions: np.ndarray) -> Tensor:
        count, view = len(tokens), bucketed(int(positions.max()) + 1)
        self.cache.reserve(count, view)
        slots = self._tensor(positions)
        self.cache.begin_decode(torch.arange(count, device=self.device), slots, view)
        hidden = torch.arange(view, device=self.device) > slots[:, None]
        mask = torch.zeros(count, view, dtype=self.dtype, device=self.device)
        mask.masked_fill_(hidden, float("-inf"))
        return self._run(
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


class OwnCacheDecoder:
    """The model's own cache: sliding windows, linear attention, whatever the model defines."""

    lockstep = True

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.free()

    def free(self) -> None:
        self.cache: Any = None

    def refresh(self) -> None:
        """Nothing to do: it runs the model itself."""

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]], rows: Sequence[int]) -> Tensor:
        (prompt,) = prompts
        ids = torch.tensor([list(prompt)], dtype=torch.int64, device=self.device)
        output = self.model(input_ids=ids, use_cache=True)
        self.cache = output.past_key_values
        return output.logits[:, -1]

    @torch.inference_mode()
    def copy(self, source: int, target: Sequence[int], length: int) -> None:
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


def make_decoder(model: nn.Module, *, packed: bool = True, compiled: bool = False) -> Decoder:
    """The first decoder that reproduces the model's plain forward pass.

    `packed` allows a copy of the weights in another layout, which follows them in `refresh` only.
    `compiled`: torch.compile of the model's own code instead, which takes minutes at first.
    Sets the model's attention implementation; the model must belong to the caller alone.
    """
    config: Any = model.config
    implementation = config._attn_implementation
    reason = _refusal(config)
    if reason is None:
        prompts = _probe_prompts(config)
        expected = [_plain(model, prompt) for prompt in prompts]
        config._attn_implementation = ATTENTION
        kinds: list[Callable[[nn.Module], Any]] = [
            functools.partial(SlotDecoder, compiled=compiled)
        ]
        if packed and not compiled and fusable(model):
            kinds = [NativeDecoder, FusedDecoder, *kinds]
        for kind in kinds:
            try:
                decoder = kind(model)
                reason = _mismatch(decoder, prompts, expected)
            except Exception as error:  # a foreign model's code may fail anyhow: not this path
                reason = f"{type(error).__name__}: {error}"
            else:
                if reason is None:
                    decoder.free()
                    return decoder
            name = getattr(kind, "__name__", SlotDecoder.__name__)
            logger.info("%s does not serve this model: %s", name, reason)
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
    """Two ragged prompts, the longer one beyond a (short) sliding window.

    Their tokens are spread over the vocabulary: the first ones are special ones, which many models
    were never trained on, and bfloat16 rounds three times as much of what those lead to.
    """
    window = getattr(config, "sliding_window", None) or 0
    length = min(max(6, window + 3), 64)
    vocab = config.vocab_size
    step = round(0.618 * vocab)
    return [[(step * i + 1) % vocab for i in range(n)] for n in (length, 3)]


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


def _mismatch(
    decoder: FusedDecoder | SlotDecoder, prompts: list[list[int]], expected: list[Tensor]
) -> str | None:
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
