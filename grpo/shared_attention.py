"""Attention over tokens laid flat, where the completions of a group share one prompt.

A micro-batch is one row without padding: prompt, its completions, next prompt, ... Everything in a
model but attention takes each token by itself, so only attention has to know about the layout. A
completion's token attends to the prompt and to its own completion; both parts are computed apart
and put together by the logarithms of their normalizers, as in ring attention (2310.01889):

    prompt   the prompt to itself, causal
    cross    all tokens of a prompt's completions to the prompt, with nothing to mask
    own      each completion to itself, causal, in batches of similar lengths

No pair of tokens from different completions is computed, and keys are not repeated for the query
heads that share them. Three ways lead there, with the same sums:

    flex       on a GPU, in one part: `grpo/flex_attention.py`, for what its `uses_flex` says
    compiled   float32 and bfloat16 on a CPU: `kernels/attention.cpp`, a head of a prompt and its
               completions at a time, so that nothing leaves the processor's cache; in bfloat16
               with the processor's matrix tiles where it has them (`attention_tiles.h`)
    torch      everything else. On a CPU the forward pass is PyTorch's flash kernel; the backward
               pass is matrix products and one exp, since with the saved normalizer the
               probabilities need no softmax, in tiles of `TILE_ELEMENTS`. It is several times
               faster there than the flash kernel's own

Models reach this through transformers' attention interface, by the keyword `shared_layout`.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from grpo.batch import Pack
from grpo.flex_attention import attend_in_blocks, make_blocks, uses_flex
from grpo.kernels.attention import SUFFIXES, call, has_tiles
from grpo.kernels.native import library
from grpo.pieces import piece
from grpo.transfer import to_device

Members = list[tuple[np.ndarray, np.ndarray]]  # places of queries and of the keys they attend to
IMPLEMENTATION = "grpo_shared"  # the name in `config._attn_implementation`
SOURCE = Path(__file__).parent / "kernels" / "attention.cpp"
# Up to here the compiled forward pass without tiles is faster than PyTorch's flash kernel.
FEW_KEYS = 256
TILE_ELEMENTS = 2**21  # scores that exist at a time in the backward pass, on a CPU
# On a card one for each so many bytes of its memory: with what is made of it a score takes about
# 16 bytes, so all of them a sixteenth.
BYTES_TO_A_SCORE = 256
SLACK = 0.75  # completions shorter than this part of a batch's longest go into another batch


@dataclass(frozen=True, kw_only=True)
class Job:
    """B attentions of equal size; indices are flat positions of tokens.

    Queries beyond an item's own are copies of some token: computed, and then left out by `real`.
    `kept` says the same in places: how many a mask leaves, the host would have to wait for.
    """

    queries: Tensor  # int64 [B, S]
    keys: Tensor  # int64 [B, K]
    real: Tensor | None  # bool [B, S]; None: all
    causal: bool
    kept: Tensor | None = None  # int64 [n], the places in B * S where `real` is; None: all

    def split(self, heads: int) -> Iterator[Job]:
        """The same in tiles of queries whose scores over `heads` are no more than a piece.

        A tile has no `kept`: what is computed of it is put together before anything is left out.
        """
        B, S = self.queries.shape
        K = self.keys.shape[1]
        tile = piece(self.queries.device, TILE_ELEMENTS, BYTES_TO_A_SCORE)
        many = max(1, tile // (heads * S * K))
        for first in range(0, B, many):
            part = slice(first, first + many)
            real = None if self.real is None else self.real[part]
            queries, keys = self.queries[part], self.keys[part]
            yield replace(self, queries=queries, keys=keys, real=real, kept=None)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What attends to what in one flat row."""

    source: tuple[Pack, ...]
    device: torch.device
    # For the compiled kernels: start and length of a prompt, number of its first completion, and
    # how many; start and length of a completion.
    packs: Tensor  # int64 [P, 4]
    completions: Tensor  # int64 [C, 2]
    longest: int  # keys that some token attends to
    end: int  # tokens of the row

    @property
    def compiled(self) -> tuple[Tensor, Tensor, int]:
        """What the compiled kernels are told of it."""
        return self.packs, self.completions, self.end

    @property
    def jobs(self) -> tuple[Job, ...]:
        """The same without kernels: prompts, and completions to themselves."""
        return self._all_jobs[0]

    @property
    def cross(self) -> tuple[Job, ...]:
        """Completions to the prompt they share."""
        return self._all_jobs[1]

    @cached_property
    def _all_jobs(self) -> tuple[tuple[Job, ...], tuple[Job, ...]]:
        """Both, which are one copy to the device."""
        sequences: list[np.ndarray] = []
        crossing: list[tuple[np.ndarray, np.ndarray]] = []
        for pack in self.source:
            prompt, spans = _places(pack)
            if len(pack.completions) == 1:  # one causal sequence
                sequences.append(np.concatenate([prompt, *spans]))
            else:
                sequences += [prompt, *spans]
                if spans:
                    crossing.append((np.concatenate(spans), prompt))
        own = _batched([(s, s[:0]) for s in sequences])
        made = _jobs(
            [(m, True) for m in own] + [(m, False) for m in _batched(crossing)], self.device
        )
        return tuple(made[: len(own)]), tuple(made[len(own) :])

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


def _places(pack: Pack) -> tuple[np.ndarray, list[np.ndarray]]:
    """Where the tokens of a prompt and those of each completion lie; of empty ones nothing."""
    spans = [np.arange(start, start + length) for start, length in pack.completions if length]
    return np.arange(pack.start, pack.start + pack.prompt), spans


def _jobs(batches: list[tuple[Members, bool]], device: torch.device) -> list[Job]:
    """A job of each batch; `True`: causal, its queries are its keys."""
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
        Job(
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


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    shared_layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' interface: query [1, H, N, D], key and value [1, K, N, D] -> [1, N, H, D].

    Without a layout it is transformers' own `sdpa`.
    """
    if shared_layout is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    others = [
        name for name in ("softcap", "s_aux", "sliding_window") if kwargs.get(name) is not None
    ]
    if others:  # dropped, they would be wrong numbers
        raise NotImplementedError(f"attention over a shared prompt knows no {', '.join(others)}")
    device = query.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if uses_flex(query, key, value):
        return attend_in_blocks(query, key, value, shared_layout.blocks, scale), None
    flat = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    found = _SharedAttention.apply(*flat, shared_layout, scale)
    return found[None], None  # pyright: ignore[reportOptionalSubscript]


AttentionInterface.register(IMPLEMENTATION, attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


class _SharedAttention(torch.autograd.Function):
    """Queries [N, H, D], keys and values [N, K, D or E] -> [N, H, E], H a multiple of K."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float
    ) -> Tensor:
        with torch.autocast(query.device.type, enabled=False):
            out, norm = attend(query, key, value, layout, scale)
        ctx.save_for_backward(query, key, value, out, norm)
        ctx.layout, ctx.scale = layout, scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, norm = ctx.saved_tensors
        with torch.autocast(query.device.type, enabled=False):
            saved = (query, key, value, out, norm)
            places = [torch.empty_like(tensor) for tensor in (query, key, value)]
            attend_backward(gradients[0], saved, ctx.layout, ctx.scale, places)
        return *places, None, None


def attend(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float
) -> tuple[Tensor, Tensor]:
    """Outputs [N, H, E] and normalizers [N, H], the latter in float32 or float64.

    Of queries [N, H, D], keys and values [N, K, D or E], H a multiple of K.
    """
    N, H, _ = query.shape
    out = query.new_empty((N, H, value.shape[-1]))
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    norm = torch.empty((N, H), dtype=wide, device=query.device)
    kernels = _kernels(query, key, value)
    if kernels is not None and (layout.longest <= FEW_KEYS or has_tiles(kernels, query.dtype)):
        call(kernels, "attend", [(query, key, value, out)], norm, layout.compiled, scale)
        return out, norm
    for job in layout.jobs:
        found, own = _attend(job, query, key, value, scale)
        places = _flat(job.queries, job.kept)
        out[places], norm[places] = _flat(found, job.kept), _flat(own, job.kept)
    for job in layout.cross:
        found, own = _attend(job, query, key, value, scale)
        places = _flat(job.queries, job.kept)
        found, own = _flat(found, job.kept), _flat(own, job.kept)
        before = norm[places]
        total = torch.logaddexp(before, own)
        merged = out[places] * (before - total).exp_()[..., None]
        merged += found * (own - total).exp_()[..., None]
        out[places], norm[places] = merged.to(out.dtype), total
    return out, norm


def attend_backward(
    of_out: Tensor,
    saved: tuple[Tensor, ...],
    layout: Layout,
    scale: float,
    places: Sequence[Tensor],
) -> None:
    """Gradients of queries, keys and values to `places`, which may lie side by side as those may.

    `saved`: queries, keys, values, and the outputs and normalizers that `attend` gave.
    """
    query, key, value, out, norm = saved
    gradients = (*places, of_out.contiguous())
    kernels = _kernels(query, key, value, out, *gradients)
    if kernels is not None:
        call(kernels, "attend_backward", (saved[:4], gradients), norm, layout.compiled, scale)
        return
    delta = (of_out * out).sum(-1, dtype=norm.dtype)
    totals = [torch.zeros(t.shape, dtype=norm.dtype, device=t.device) for t in saved[:3]]
    for whole in (*layout.jobs, *layout.cross):
        for job in whole.split(query.shape[1]):
            _pull_back(job, (query, key, value, of_out, norm, delta), totals, scale)
    for place, total in zip(places, totals, strict=True):
        place.copy_(total)


def _kernels(*tensors: Tensor) -> ctypes.CDLL | None:
    """The compiled kernels where they know these types and sizes."""
    dtype, dim = tensors[0].dtype, tensors[0].shape[-1]
    known = dtype in SUFFIXES and all(
        t.is_cpu and t.dtype == dtype and t.shape[-1] == t.stride(1) == dim and t.stride(2) == 1
        for t in tensors
    )
    return library(SOURCE) if known else None


def _flat(values_B_S: Tensor, kept: Tensor | None) -> Tensor:
    """[B, S, ...] -> [n, ...] without what is only there to fill up."""
    flat = values_B_S.flatten(0, 1)
    return flat if kept is None else flat[kept]


def _folded(values: Tensor, keys: int) -> Tensor:
    """[B, S, H, ...] -> [B * K, (H / K) * S, ...]: query heads of one key head side by side."""
    B, S, H = values.shape[:3]
    rest = values.shape[3:]
    return (
        values.view(B, S, keys, H // keys, *rest)
        .permute(0, 2, 3, 1, *range(4, 4 + len(rest)))
        .reshape(B * keys, H // keys * S, *rest)
    )


def _unfolded(values: Tensor, B: int, S: int) -> Tensor:
    """The inverse of `_folded`: [B * K, (H / K) * S, ...] -> [B, S, H, ...]."""
    K = values.shape[0] // B
    rest = values.shape[2:]
    heads = values.view(B, K, -1, S, *rest)
    return heads.permute(0, 3, 1, 2, *range(4, 4 + len(rest))).reshape(B, S, -1, *rest)


def _attend(
    job: Job, query: Tensor, key: Tensor, value: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Outputs [B, S, H, E] and normalizers [B, S, H] of one job."""
    B, S = job.queries.shape
    H, K = query.shape[1], key.shape[1]
    if query.device.type == "cpu" and query.shape[-1] == value.shape[-1]:
        q, k, v = query[job.queries], key[job.keys].transpose(1, 2), value[job.keys].transpose(1, 2)
        if job.causal:
            q = q.transpose(1, 2)
            k, v = (_repeated(t, H // K) for t in (k, v))
        else:
            q = _folded(q, K).view(B, K, -1, q.shape[-1])
        out, norm = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, job.causal, scale=scale
        )
        if job.causal:
            return out.transpose(1, 2), norm.transpose(1, 2)
        return _unfolded(out.flatten(0, 1), B, S), _unfolded(norm.flatten(0, 1), B, S)
    outs, norms = [], []
    for part in job.split(H):
        scores, v = _scores(part, query, key, value, scale)
        norm = torch.logsumexp(scores, -1)
        probs = scores.sub_(norm[..., None]).exp_().to(v.dtype)
        outs.append(_unfolded(torch.bmm(probs, v), len(part.queries), S))
        norms.append(_unfolded(norm, len(part.queries), S))
    return torch.cat(outs), torch.cat(norms)


def _repeated(t: Tensor, times: int) -> Tensor:
    """[B, K, S, D] -> [B, K * times, S, D]."""
    B, K, S, D = t.shape
    return t if times == 1 else t[:, :, None].expand(B, K, times, S, D).reshape(B, -1, S, D)


def _scores(
    job: Job, query: Tensor, key: Tensor, value: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Scaled and masked scores [B * K, (H / K) * S, keys] in float32 or float64, and values."""
    K = key.shape[1]
    q = _folded(query[job.queries], K)
    k, v = _folded(key[job.keys], K), _folded(value[job.keys], K)
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    scores = torch.bmm(q, k.transpose(1, 2)).to(wide).mul_(scale)
    if job.causal:
        S = job.queries.shape[1]
        hidden = torch.ones((S, S), dtype=torch.bool, device=query.device).triu_(1)
        scores.view(len(scores), -1, S, S).masked_fill_(hidden, -torch.inf)
    return scores, v


def _pull_back(job: Job, saved: tuple[Tensor, ...], totals: Sequence[Tensor], scale: float) -> None:
    """Adds one job's gradients of queries, keys and values to `totals`.

    With P = exp(scores - normalizer of everything the query attends to), a job's share of the
    softmax's gradient is P (dP - delta), delta being the same for all jobs of a query.
    """
    query, key, value, of_out, norm, delta = saved
    B, S = job.queries.shape
    K = key.shape[1]
    probs, v = _scores(job, query, key, value, scale)
    probs.sub_(_folded(norm[job.queries], K)[..., None]).exp_()
    upstream = of_out[job.queries]
    if job.real is not None:
        upstream = upstream * job.real[..., None, None]
        # delta of a copy is not 0, so its probabilities are
        probs.view(B, K, -1, S, probs.shape[-1]).mul_(job.real[:, None, None, :, None])
    upstream = _folded(upstream, K)
    narrow = probs.to(query.dtype)
    of_value = torch.bmm(narrow.transpose(1, 2), upstream)
    of_probs = torch.bmm(upstream, v.transpose(1, 2))
    probs.mul_(of_probs.to(probs.dtype).sub_(_folded(delta[job.queries], K)[..., None])).mul_(scale)
    of_scores = probs.to(query.dtype)
    q, k = _folded(query[job.queries], K), _folded(key[job.keys], K)
    of_query = torch.bmm(of_scores, k)
    of_key = torch.bmm(of_scores.transpose(1, 2), q)
    keys = job.keys.flatten()
    for total, places, part, length in (
        (totals[0], job.queries.flatten(), of_query, S),
        (totals[1], keys, of_key, job.keys.shape[1]),
        (totals[2], keys, of_value, job.keys.shape[1]),
    ):
        total.index_add_(0, places, _unfolded(part, B, length).flatten(0, 1).to(total.dtype))
