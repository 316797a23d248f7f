"""Which token of a flat row sees which, made once for a micro-batch and read by every layer.

A micro-batch is one row without padding: prompt, its completions, next prompt, ... Only attention
mixes tokens, so only attention needs the layout. A completion's token attends to the prompt and to
its own completion. Each implementation in `grpo/attention/shared.py` has its own form of this:
starts and lengths for the compiled kernels, blocks for FlexAttention, and batches of attentions of
equal size for PyTorch's products:

    own      a prompt to itself, a completion to itself, causal, in batches of similar lengths
    cross    all tokens of a prompt's completions to the prompt, with nothing to mask
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from grpo.attention.flex import make_blocks
from grpo.model.devices import Choices, choices
from grpo.model.transfer import to_device

Members = list[tuple[np.ndarray, np.ndarray]]  # places of queries and of the keys they attend to
SLACK = 0.75  # completions shorter than this part of a batch's longest go into another batch


@dataclass(frozen=True, kw_only=True)
class Pack:
    """A prompt and the completions that share it, side by side in a flat row."""

    start: int  # where the prompt begins
    prompt: int  # its length
    completions: tuple[tuple[int, int], ...]  # (start, length) of each


@dataclass(frozen=True, kw_only=True)
class Attentions:
    """B attentions of equal size; indices are flat positions of tokens.

    Queries beyond an item's own are padding, copies of some token: computed, then left out by
    `real`. `kept` has the places that `real` keeps, since the host would have to wait for a GPU to
    count them.
    """

    queries: Tensor  # int64 [B, S]
    keys: Tensor  # int64 [B, K]
    real: Tensor | None  # bool [B, S]; None: all
    causal: bool
    kept: Tensor | None = None  # int64 [n], the places in B * S where `real` is; None: all


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What attends to what in one flat row."""

    source: tuple[Pack, ...]
    device: torch.device
    choices: Choices  # which ways there are on the device
    # For the compiled kernels: start and length of a prompt, number of its first completion, and
    # how many; start and length of a completion.
    packs: Tensor  # int64 [P, 4]
    completions: Tensor  # int64 [C, 2]
    longest: int  # keys that some token attends to
    end: int  # tokens of the row

    @property
    def compiled(self) -> tuple[Tensor, Tensor, int]:
        """The arguments of the compiled kernels."""
        return self.packs, self.completions, self.end

    @cached_property
    def attentions(self) -> list[Attentions]:
        """All of it for PyTorch's products: the causal batches first. One copy to the device."""
        sequences: list[np.ndarray] = []
        crossing: list[tuple[np.ndarray, np.ndarray]] = []
        for pack in self.source:
            prompt = np.arange(pack.start, pack.start + pack.prompt)
            spans = [np.arange(start, start + n) for start, n in pack.completions if n]
            if len(pack.completions) == 1:  # one causal sequence
                sequences.append(np.concatenate([prompt, *spans]))
            else:
                sequences += [prompt, *spans]
                if spans:
                    crossing.append((np.concatenate(spans), prompt))
        own, cross = _batched([(s, s[:0]) for s in sequences]), _batched(crossing)
        return _made([(m, True) for m in own] + [(m, False) for m in cross], self.device)

    @cached_property
    def blocks(self) -> BlockMask:
        """All of it for FlexAttention."""
        return make_blocks(self.source, self.device)


def make_layout(packs: Sequence[Pack], device: torch.device) -> Layout:
    """The attentions of packed groups; a pack of one completion is one causal sequence."""
    firsts = itertools.accumulate((len(pack.completions) for pack in packs[:-1]), initial=0)
    return Layout(
        source=tuple(packs),
        device=device,
        choices=choices(device),
        packs=torch.tensor(
            [
                (p.start, p.prompt, n, len(p.completions))
                for p, n in zip(packs, firsts, strict=True)
            ],
            dtype=torch.int64,
            device="cpu",
        ),
        completions=torch.tensor(
            [span for pack in packs for span in pack.completions], dtype=torch.int64, device="cpu"
        ).view(-1, 2),
        end=max(s + n for p in packs for s, n in ((p.start, p.prompt), *p.completions)),
        longest=max(p.prompt + max(length for _, length in p.completions) for p in packs),
    )


def _made(batches: list[tuple[Members, bool]], device: torch.device) -> list[Attentions]:
    """The attentions of each batch. In a causal one (`True`) the queries are the keys as well."""
    arrays: dict[str, np.ndarray] = {}
    for number, (members, causal) in enumerate(batches):
        lengths = np.array([len(queries) for queries, _ in members])
        S = lengths.max()
        arrays[f"queries {number}"] = np.stack(
            [np.pad(queries, (0, S - len(queries)), mode="edge") for queries, _ in members]
        )
        if not causal:
            arrays[f"keys {number}"] = np.stack([prompt for _, prompt in members])
        if (lengths < S).any():
            real = np.arange(S) < lengths[:, None]
            arrays[f"real {number}"], arrays[f"kept {number}"] = real, np.flatnonzero(real)
    there = to_device(device, **arrays)
    return [
        Attentions(
            queries=there[f"queries {number}"],
            keys=there[f"queries {number}" if causal else f"keys {number}"],
            real=there.get(f"real {number}"),
            kept=there.get(f"kept {number}"),
            causal=causal,
        )
        for number, (_, causal) in enumerate(batches)
    ]


def _batched(pairs: Members) -> list[Members]:
    """(queries, keys) in lists of equal numbers of keys and similar numbers of queries."""
    batches: list[Members] = []
    for pair in sorted(pairs, key=lambda p: (-len(p[1]), -len(p[0]))):
        first = batches[-1][0] if batches else None
        if (
            first is not None
            and len(first[1]) == len(pair[1])
            and len(pair[0]) >= SLACK * len(first[0])
        ):
            batches[-1].append(pair)
        else:
            batches.append([pair])
    return batches
