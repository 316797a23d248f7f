"""Ways to run a model token by token behind one small interface.

`FusedDecoder` computes Llama-like models on a CPU by itself. `SlotDecoder` runs any model's own
code over a preallocated `SlotCache` of ragged rows. `OwnCacheDecoder` uses the cache the model
brings along, for models the others cannot serve; it takes one request at a time, whose samples
run in lockstep. `ReplayDecoder` keeps nothing. `make_decoder` tries them in this order on a probe
and compares it with the plain forward pass, so that a model they would get wrong is found at start.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from grpo.errors import EngineError
from grpo.model.families import check_causal, check_family
from grpo.model.transfer import to_device
from grpo.rollout.embedded.cpu.fused import FusedDecoder, fusable
from grpo.rollout.embedded.kv_cache import ATTENTION, SlotCache, bucketed
from grpo.rollout.embedded.own_cache import (
    ModelDecoder,
    OwnCacheDecoder,
    ReplayDecoder,
    rebuilt,
    reordered,
)
from grpo.rollout.embedded.prefill import read_prompts
from grpo.rollout.embedded.ways import Ways

logger = logging.getLogger(__name__)


class Decoder(Protocol):
    """Runs rows 0..R-1. `lockstep`: one request at a time, all rows at the same position."""

    lockstep: bool

    def prefill(self, prompts: Sequence[Sequence[int]], rows: Sequence[int]) -> Tensor:
        """Read `prompts` into `rows`; logits [B, V] after the last token of each."""
        ...

    def copy(self, source: Sequence[int], target: Sequence[int], lengths: Sequence[int]) -> None:
        """Row target[i] gets the first lengths[i] tokens of row source[i], its prompt."""
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


class SlotDecoder(ModelDecoder):
    """Ragged rows in a preallocated cache. `compiled`: decoding goes through torch.compile."""

    lockstep = False

    def __init__(self, model: nn.Module, ways: Ways, *, compiled: bool = False) -> None:
        super().__init__(model, ways)
        self._run: Any = torch.compile(model, dynamic=True) if compiled else model

    def free(self) -> None:
        self.cache = SlotCache()

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]], rows: Sequence[int]) -> Tensor:
        longest = max(map(len, prompts))
        self.cache.reserve(max(rows) + 1, bucketed(longest + 1))
        with self._ways.forward():
            return read_prompts(self.model, self.cache, prompts, rows, self._ways)

    @torch.inference_mode()
    def copy(self, source: Sequence[int], target: Sequence[int], lengths: Sequence[int]) -> None:
        length = max(lengths)  # what is copied beyond a prompt is masked
        self.cache.reserve(max(target) + 1, length)
        given = to_device(self.device, source=np.array(source), target=np.array(target))
        self.cache.copy_rows(given["source"], given["target"], length)

    @torch.inference_mode()
    def decode(self, tokens: np.ndarray, positions: np.ndarray) -> Tensor:
        count, view = len(tokens), bucketed(int(positions.max()) + 1)
        self.cache.reserve(count, view)
        given = to_device(self.device, tokens=tokens, slots=positions)
        slots = given["slots"]
        self.cache.begin_decode(torch.arange(count, device=self.device), slots, view)
        hidden = torch.arange(view, device=self.device) > slots[:, None]
        mask = torch.zeros(count, view, dtype=self.dtype, device=self.device)
        mask.masked_fill_(hidden, float("-inf"))
        with self._ways.forward():
            return self._run(
                input_ids=given["tokens"][:, None],
                attention_mask=mask[:, None, None],
                position_ids=slots[:, None],
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]

    @torch.inference_mode()
    def compact(self, moves: Sequence[tuple[int, int]], count: int, length: int) -> None:
        if moves:
            source, target = np.array(moves).T
            given = to_device(self.device, source=source, target=target)
            self.cache.copy_rows(given["source"], given["target"], length)


def make_decoder(
    model: nn.Module, ways: Ways, *, packed: bool = True, compiled: bool = False
) -> Decoder:
    """The first decoder that reproduces the model's plain forward pass.

    `ways`: those of the model's device.
    `packed` allows a copy of the weights in another layout, which follows them in `refresh` only.
    `compiled`: torch.compile of the model's own code instead, which takes minutes at first.
    Sets the model's attention implementation; the model must belong to the caller alone. Raises
    EngineError or RecipeError where even its own code, from the first token, gives other logits.
    """
    config: Any = model.config
    implementation = config._attn_implementation
    reason = _refusal(config)
    prompts = _probe_prompts(config)
    if reason is None:
        expected = _expected(model, ways, _RAGGED, prompts)
        config._attn_implementation = ATTENTION
        kinds: list[functools.partial[Any]] = [
            functools.partial(SlotDecoder, ways=ways, compiled=compiled)
        ]
        if packed and not compiled and ways.fused and fusable(model):
            kinds = [functools.partial(FusedDecoder, ways=ways), *kinds]
        for kind in kinds:
            decoder, reason = _tried(kind, model, _RAGGED, prompts, expected)
            if decoder is not None:
                return decoder
            logger.info("%s does not serve this model: %s", kind.func.__name__, reason)
        config._attn_implementation = implementation
    return _in_its_own_code(model, ways, prompts, reason)


def _in_its_own_code(
    model: nn.Module, ways: Ways, prompts: list[list[int]], reason: str | None
) -> Decoder:
    """A decoder that asks nothing of the model, for the `reason` that no other serves it."""
    name = type(model).__name__
    expected = _expected(model, ways, _LOCKSTEP, prompts)
    for pick in (reordered, rebuilt):
        kind = functools.partial(OwnCacheDecoder, ways=ways, pick=pick)
        decoder, fault = _tried(kind, model, _LOCKSTEP, prompts, expected)
        if decoder is not None:
            said = "%s is sampled with its own cache, one request at a time (slower): %s"
            logger.warning(said, name, reason)
            return decoder
        logger.info("its own cache, %s, does not serve this model: %s", pick.__name__, fault)
    expected = _expected(model, ways, _RAGGED, prompts)
    check_family(model.config)
    check_causal(model)
    decoder, fault = _tried(
        functools.partial(ReplayDecoder, ways=ways), model, _RAGGED, prompts, expected
    )
    if decoder is None:
        raise EngineError(
            f"{name} cannot be sampled: its logits change with the rows beside it ({fault}); "
            "choose another model.path"
        )
    said = "%s is sampled without a cache, every token from the first one on (slow): %s"
    logger.warning(said, name, reason)
    return decoder


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


@dataclass(frozen=True, kw_only=True)
class _Probe:
    """What a decoder is asked: some prompts in as many rows, and tokens [steps, rows] behind them.

    `copied`: prompt 0 also in that many further rows. After the first token, `compact` leaves as
    many rows as `keep` names, each what the row of that number was.
    """

    prompts: int
    copied: int
    tokens: tuple[tuple[int, ...], ...]
    keep: tuple[int, ...]


_RAGGED = _Probe(prompts=2, copied=0, tokens=((0, 1), (1, 2)), keep=(0, 1))
_LOCKSTEP = _Probe(prompts=1, copied=2, tokens=((0, 1, 2), (3, 4)), keep=(2, 1))


def _contexts(probe: _Probe, prompts: list[list[int]]) -> list[list[list[int]]]:
    """The text of every row before the first token, after it, and after the second."""
    rows = prompts[: probe.prompts] + [prompts[0]] * probe.copied
    texts = [rows]
    for step, tokens in enumerate(probe.tokens):
        rows = [texts[-1][r] for r in probe.keep] if step == 1 else texts[-1]
        texts.append([[*row, prompts[0][t]] for row, t in zip(rows, tokens, strict=True)])
    return texts


def _plain(model: nn.Module, ids: Tensor) -> Tensor:
    """Logits [1, L, V] of a plain forward pass. Raises EngineError where there is none."""
    try:
        return model(input_ids=ids, use_cache=False).logits
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # some models mix types that do not go together
        dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        reason = str(error).strip().partition("\n")[0]
        raise EngineError(
            f"{type(model).__name__} cannot compute in {dtype} by its own code ({reason}); set "
            "rollout.dtype to another type, or choose another model"
        ) from error


@torch.inference_mode()
def _expected(model: nn.Module, ways: Ways, probe: _Probe, prompts: list[list[int]]) -> Tensor:
    """Logits [N, V] after every text of `_contexts`, by plain forward passes of one row each."""
    device = next(model.parameters()).device
    found: list[Tensor] = []
    for texts in _contexts(probe, prompts):
        for ids in texts:
            tensor = torch.tensor([ids], device=device)
            with ways.forward():  # here too, every text is a new shape
                found.append(_plain(model, tensor)[0, -1].float())
    return torch.stack(found)


def _tried(
    kind: Callable[[nn.Module], Any],
    model: nn.Module,
    probe: _Probe,
    prompts: list[list[int]],
    expected: Tensor,
) -> tuple[Any, str | None]:
    """A decoder of the kind that passed the probe, or None and what is wrong with it."""
    try:
        decoder = kind(model)
        reason = _mismatch(decoder, probe, prompts, expected)
    except Exception as error:  # a foreign model's code may fail anyhow: not this path
        return None, f"{type(error).__name__}: {error}"
    if reason is not None:
        return None, reason
    decoder.free()
    return decoder, None


def _mismatch(
    decoder: Any, probe: _Probe, prompts: list[list[int]], expected: Tensor
) -> str | None:
    """Run the probe; say by how much it is off where that is more than rounding."""
    first, second, third = _contexts(probe, prompts)
    count = probe.prompts
    logits = [decoder.prefill(first[:count], list(range(count)))]
    if probe.copied:
        copied = range(count, len(first))
        decoder.copy([0 for _ in copied], list(copied), [len(first[0]) for _ in copied])
        logits.append(logits[0][:1].expand(probe.copied, -1))
    for texts in (second, third):
        if texts is third:
            moves = [(old, new) for new, old in enumerate(probe.keep) if old != new]
            decoder.compact(moves, len(texts), max(map(len, second)))
        tokens = np.array([text[-1] for text in texts])
        logits.append(decoder.decode(tokens, np.array([len(text) - 1 for text in texts])))
    got = torch.cat(logits).float()
    error = float((got - expected).norm() / expected.norm())
    tolerance = 1e-4 if decoder.dtype == torch.float32 else 0.05
    return None if error <= tolerance else f"cached logits are off by {error:.1e}"
