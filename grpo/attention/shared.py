"""Attention over a flat row in parts, where the completions of a group share one prompt.

A completion's token attends to the prompt and to its own completion. The two parts are computed
separately and merged by the logarithms of their normalizers, as in ring attention (2310.01889). No
pair of tokens from different completions is computed, and keys are not repeated for the query heads
that share them. There are three implementations of the same sums:

    flex       on a GPU, in one part: `grpo/attention/flex.py`, for what its `uses_flex` says
    compiled   float32 and bfloat16 on a CPU: `kernels/attention.cpp`, a head of a prompt and its
               completions at a time, so that nothing leaves the processor's cache; in bfloat16
               with the processor's matrix tiles where it has them (`attention_tiles.h`)
    torch      everything else. On a CPU the forward pass is PyTorch's flash kernel; the backward
               pass is matrix products and one exp, since with the saved normalizer the
               probabilities need no softmax, in tiles of `TILE_ELEMENTS`. It is several times
               faster there than the flash kernel's own

The layout says which of them a device has (`grpo/model/devices.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from grpo.attention.layout import Attentions, Layout
from grpo.kernels.attention import SOURCE, call
from grpo.kernels.door import Kernels
from grpo.model.casts import autocast_off
from grpo.model.devices import piece

# Up to here the compiled forward pass without tiles is faster than PyTorch's flash kernel.
FEW_KEYS = 256
TILE_ELEMENTS = 2**21  # scores that exist at a time in the backward pass, on a CPU
# On a GPU there is one score for each so many bytes of memory. A score and what is made of it take
# about 16 bytes, so all scores take a sixteenth of the memory.
BYTES_TO_A_SCORE = 256


def attend_with_gradient(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float
) -> Tensor:
    """Outputs [N, H, E] of queries [N, H, D], keys and values [N, K, D or E], with gradient."""
    return cast(Tensor, _SharedAttention.apply(query, key, value, layout, scale))


class _SharedAttention(torch.autograd.Function):
    """Queries [N, H, D], keys and values [N, K, D or E] -> [N, H, E], H a multiple of K."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float
    ) -> Tensor:
        with autocast_off(query):
            out, norm = attend(query, key, value, layout, scale)
        ctx.save_for_backward(query, key, value, out, norm)
        ctx.layout, ctx.scale = layout, scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, norm = ctx.saved_tensors
        with autocast_off(query):
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
    kernels = _kernels(query, key, value) if layout.choices.compiled_attention else None
    if kernels is not None and (layout.longest <= FEW_KEYS or kernels.has_tiles):
        call(kernels, "attend", [(query, key, value, out)], norm, layout.compiled, scale)
        return out, norm
    flash = layout.choices.flash_attention and query.shape[-1] == value.shape[-1]
    attend_to = _by_flash_kernel if flash else _in_tiles
    for part in layout.attentions:
        both = attend_to(part, query, key, value, scale)
        found, total = (_flat(tensor, part.kept) for tensor in both)
        places = _flat(part.queries, part.kept)
        if not part.causal:  # a prompt, beside what the completion gave
            before, own = norm[places], total
            total = torch.logaddexp(before, own)
            merged = out[places] * (before - total).exp_()[..., None]
            found = merged.add_(found * (own - total).exp_()[..., None]).to(out.dtype)
        out[places], norm[places] = found, total
    return out, norm


def attend_backward(
    grad_out: Tensor,
    saved: tuple[Tensor, ...],
    layout: Layout,
    scale: float,
    places: Sequence[Tensor],
) -> None:
    """Gradients of queries, keys and values to `places`, which may lie side by side as those may.

    `saved`: queries, keys, values, and the outputs and normalizers that `attend` gave.
    """
    query, key, value, out, norm = saved
    gradients = (*places, grad_out.contiguous())
    kernels = None
    if layout.choices.compiled_attention:
        kernels = _kernels(query, key, value, out, *gradients)
    if kernels is not None:
        call(kernels, "attend_backward", (saved[:4], gradients), norm, layout.compiled, scale)
        return
    delta = (grad_out * out).sum(-1, dtype=norm.dtype)
    totals = [torch.zeros(t.shape, dtype=norm.dtype, device=t.device) for t in saved[:3]]
    for whole in layout.attentions:
        for tile in _tiles(whole, query.shape[1]):
            _pull_back(tile, (query, key, value, grad_out, norm, delta), totals, scale)
    for place, total in zip(places, totals, strict=True):
        place.copy_(total)


def _kernels(*tensors: Tensor) -> Kernels | None:
    """The compiled kernels where they know these types and sizes."""
    dtype, dim = tensors[0].dtype, tensors[0].shape[-1]
    known = all(
        t.dtype == dtype and t.shape[-1] == t.stride(1) == dim and t.stride(2) == 1 for t in tensors
    )
    return SOURCE.load(dtype) if known else None


def _flat(values_B_S: Tensor, kept: Tensor | None) -> Tensor:
    """[B, S, ...] -> [n, ...], without padding."""
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


def _by_flash_kernel(
    part: Attentions, query: Tensor, key: Tensor, value: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Outputs [B, S, H, E] and normalizers [B, S, H] by PyTorch's kernel for a CPU; D = E."""
    B, S = part.queries.shape
    H, K = query.shape[1], key.shape[1]
    q = query[part.queries]
    k, v = key[part.keys].transpose(1, 2), value[part.keys].transpose(1, 2)
    if part.causal:
        q = q.transpose(1, 2)
        if H > K:
            k, v = (t.repeat_interleave(H // K, 1) for t in (k, v))
    else:
        q = _folded(q, K).view(B, K, -1, q.shape[-1])
    out, norm = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, part.causal, scale=scale
    )
    if part.causal:
        return out.transpose(1, 2), norm.transpose(1, 2)
    return _unfolded(out.flatten(0, 1), B, S), _unfolded(norm.flatten(0, 1), B, S)


def _in_tiles(
    whole: Attentions, query: Tensor, key: Tensor, value: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Outputs [B, S, H, E] and normalizers [B, S, H] by products, on any device."""
    outs, norms = [], []
    for tile in _tiles(whole, query.shape[1]):
        S = tile.queries.shape[1]
        scores, v = _scores(tile, query, key, value, scale)
        norm = torch.logsumexp(scores, -1)
        probs = scores.sub_(norm[..., None]).exp_().to(v.dtype)
        outs.append(_unfolded(torch.bmm(probs, v), len(tile.queries), S))
        norms.append(_unfolded(norm, len(tile.queries), S))
    return torch.cat(outs), torch.cat(norms)


def _tiles(whole: Attentions, heads: int) -> Iterator[Attentions]:
    """The same in tiles of queries whose scores over `heads` are no more than a piece.

    A tile has no `kept`: what is computed of it is put together before anything is left out.
    """
    B, S = whole.queries.shape
    K = whole.keys.shape[1]
    tile = piece(whole.queries.device, TILE_ELEMENTS, BYTES_TO_A_SCORE)
    many = max(1, tile // (heads * S * K))
    for first in range(0, B, many):
        part = slice(first, first + many)
        real = None if whole.real is None else whole.real[part]
        queries, keys = whole.queries[part], whole.keys[part]
        yield replace(whole, queries=queries, keys=keys, real=real, kept=None)


def _scores(
    tile: Attentions, query: Tensor, key: Tensor, value: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Scaled and masked scores [B * K, (H / K) * S, keys] in float32 or float64, and values."""
    K = key.shape[1]
    q = _folded(query[tile.queries], K)
    k, v = _folded(key[tile.keys], K), _folded(value[tile.keys], K)
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    scores = torch.bmm(q, k.transpose(1, 2)).to(wide).mul_(scale)
    if tile.causal:
        S = tile.queries.shape[1]
        hidden = torch.ones((S, S), dtype=torch.bool, device=query.device).triu_(1)
        scores.view(len(scores), -1, S, S).masked_fill_(hidden, -torch.inf)
    return scores, v


def _pull_back(
    tile: Attentions, saved: tuple[Tensor, ...], totals: Sequence[Tensor], scale: float
) -> None:
    """Adds one tile's gradients of queries, keys and values to `totals`.

    With P = exp(scores - normalizer of everything the query attends to), a tile's share of the
    softmax's gradient is P (dP - delta), delta being the same for all tiles of a query.
    """
    query, key, value, grad_out, norm, delta = saved
    B, S = tile.queries.shape
    K = key.shape[1]
    probs, v = _scores(tile, query, key, value, scale)
    probs.sub_(_folded(norm[tile.queries], K)[..., None]).exp_()
    upstream = grad_out[tile.queries]
    if tile.real is not None:
        upstream = upstream * tile.real[..., None, None]
        # delta of a copy is not 0, so its probabilities are
        probs.view(B, K, -1, S, probs.shape[-1]).mul_(tile.real[:, None, None, :, None])
    upstream = _folded(upstream, K)
    narrow = probs.to(query.dtype)
    grad_value = torch.bmm(narrow.transpose(1, 2), upstream)
    grad_probs = torch.bmm(upstream, v.transpose(1, 2))
    probs.mul_(grad_probs.to(probs.dtype).sub_(_folded(delta[tile.queries], K)[..., None])).mul_(
        scale
    )
    grad_scores = probs.to(query.dtype)
    q, k = _folded(query[tile.queries], K), _folded(key[tile.keys], K)
    grad_query = torch.bmm(grad_scores, k)
    grad_key = torch.bmm(grad_scores.transpose(1, 2), q)
    keys = tile.keys.flatten()
    for total, places, part, length in (
        (totals[0], tile.queries.flatten(), grad_query, S),
        (totals[1], keys, grad_key, tile.keys.shape[1]),
        (totals[2], keys, grad_value, tile.keys.shape[1]),
    ):
        total.index_add_(0, places, _unfolded(part, B, length).flatten(0, 1).to(total.dtype))
