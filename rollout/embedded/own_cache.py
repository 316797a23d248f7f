"""Decoders for models that only their own code can run: recurrent state, convolutions, anything.

`OwnCacheDecoder` keeps whatever the model's forward pass hands back as its cache: keys and values,
the state of linear attention or a state-space layer, the last inputs of a convolution. Its rows are
of one request and always at the same position, so that no row is ever padded: a recurrent state
takes padding for text. `ReplayDecoder` is for models whose cache cannot be had or cannot be cut
into rows: it reads every row from its beginning for each token.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from grpo.model.transfer import to_device
from grpo.rollout.embedded.prefill import in_passes, padded
from grpo.rollout.embedded.ways import Ways

# What a forward pass calls the cache it gives back, and takes: attention, Mamba and xLSTM, RWKV.
CACHES = ("past_key_values", "cache_params", "state")

Pick = Callable[[Any, Tensor, int], Any]


def reordered(cache: Any, rows: Tensor, count: int) -> Any:
    """`cache` of `count` rows with row rows[i] in place i (int64 [N]), as beam search does it."""
    cache.reorder_cache(rows)
    return cache


def rebuilt(cache: Any, rows: Tensor, count: int) -> Any:
    """The same for any object, by its tensors whose first size is `count`."""
    return _rebuild(cache, rows, count, {})


def _rebuild(part: Any, rows: Tensor, count: int, seen: dict[int, Any]) -> Any:
    if id(part) in seen:
        return seen[id(part)]
    found = part
    if isinstance(part, Tensor):
        if part.ndim and part.shape[0] == count:
            found = part.index_select(0, rows)
    elif isinstance(part, list | tuple):
        found = type(part)([_rebuild(p, rows, count, seen) for p in part])
    elif isinstance(part, dict):
        for key, value in part.items():
            part[key] = _rebuild(value, rows, count, seen)
    elif hasattr(part, "__dict__") and not isinstance(part, type | nn.Module):
        seen[id(part)] = part
        _rebuild(vars(part), rows, count, seen)
    seen[id(part)] = found
    return found


class ModelDecoder:
    """A decoder that runs the model's own code."""

    def __init__(self, model: nn.Module, ways: Ways) -> None:
        self.model, self._ways = model, ways
        self.device = next(model.parameters()).device
        self.dtype = next(model.parameters()).dtype
        self._takes = inspect.signature(model.forward).parameters
        self.free()

    def free(self) -> None:
        """Drop what was read."""
        raise NotImplementedError

    def refresh(self) -> None:
        """Nothing to do: it runs the model itself."""


class OwnCacheDecoder(ModelDecoder):
    """The model's own cache. `pick` makes one of other rows from it."""

    lockstep = True

    def __init__(self, model: nn.Module, ways: Ways, pick: Pick = reordered) -> None:
        super().__init__(model, ways)
        self.pick = pick

    def free(self) -> None:
        self.cache: Any = None
        self.count = 0

    def _run(self, ids: Tensor, positions: Tensor | None) -> Tensor:
        """Logits [R, V] after the last of `ids` [R, L], which follow what the cache holds."""
        given: dict[str, Any] = {"input_ids": ids, "use_cache": True}
        if self.cache is not None:
            given[self._name] = self.cache
        if positions is not None and "position_ids" in self._takes:
            given["position_ids"] = positions
        if "logits_to_keep" in self._takes:
            given["logits_to_keep"] = 1
        with self._ways.forward():
            output = self.model(**given)
        names = [name for name in CACHES if getattr(output, name, None) is not None]
        if not names:
            raise NotImplementedError("its forward pass gives back no cache")
        self._name = names[0]
        self.cache = getattr(output, self._name)
        return output.logits[:, -1]

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]], rows: Sequence[int]) -> Tensor:
        (prompt,) = prompts
        self.free()
        self.count = 1
        return self._run(to_device(self.device, ids=padded([prompt]))["ids"], None)

    def _pick(self, rows: np.ndarray) -> None:
        """Row rows[i] (int64 [N]) in place i."""
        places = to_device(self.device, rows=rows)["rows"]
        self.cache = self.pick(self.cache, places, self.count)
        self.count = len(rows)

    @torch.inference_mode()
    def copy(self, source: Sequence[int], target: Sequence[int], lengths: Sequence[int]) -> None:
        rows = np.arange(max(target) + 1)
        rows[list(target)] = source
        self._pick(rows)

    @torch.inference_mode()
    def decode(self, tokens: np.ndarray, positions: np.ndarray) -> Tensor:
        given = to_device(self.device, tokens=tokens, positions=positions)
        return self._run(given["tokens"][:, None], given["positions"][:, None])

    @torch.inference_mode()
    def compact(self, moves: Sequence[tuple[int, int]], count: int, length: int) -> None:
        if count == 0:
            self.free()
            return
        keep = np.arange(count)
        for source, target in moves:
            keep[target] = source
        self._pick(keep)


class ReplayDecoder(ModelDecoder):
    """No cache: the tokens of each row, read from the first one for every new one.

    Rows are padded on the right, where a causal model never looks.
    """

    lockstep = False

    def free(self) -> None:
        self.rows: list[list[int]] = []

    def _set(self, row: int, tokens: Sequence[int]) -> None:
        self.rows += [[] for _ in range(row + 1 - len(self.rows))]
        self.rows[row] = list(tokens)

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]], rows: Sequence[int]) -> Tensor:
        for prompt, row in zip(prompts, rows, strict=True):
            self._set(row, prompt)
        return in_passes(self._read, prompts, rows, self._ways)

    def _read(self, prompts: Sequence[Sequence[int]], rows: Sequence[int]) -> Tensor:
        last = np.array([len(p) - 1 for p in prompts])
        ends, place = np.unique(last, return_inverse=True)
        given = to_device(self.device, ids=padded(prompts), last=last, ends=ends, place=place)
        kept, at = {}, given["last"]
        if "logits_to_keep" in self._takes:
            kept, at = {"logits_to_keep": given["ends"]}, given["place"]
        with self._ways.forward():
            logits = self.model(input_ids=given["ids"], use_cache=False, **kept).logits
        return logits[torch.arange(len(prompts), device=self.device), at]

    def copy(self, source: Sequence[int], target: Sequence[int], lengths: Sequence[int]) -> None:
        for come_from, to, length in zip(source, target, lengths, strict=True):
            self._set(to, self.rows[come_from][:length])

    @torch.inference_mode()
    def decode(self, tokens: np.ndarray, positions: np.ndarray) -> Tensor:
        for row, (token, position) in enumerate(zip(tokens, positions, strict=True)):
            self.rows[row] = [*self.rows[row][:position], int(token)]
        rows = range(len(tokens))
        return in_passes(self._read, [self.rows[row] for row in rows], rows, self._ways)

    def compact(self, moves: Sequence[tuple[int, int]], count: int, length: int) -> None:
        for source, target in moves:
            self.rows[target] = self.rows[source]
        del self.rows[count:]
