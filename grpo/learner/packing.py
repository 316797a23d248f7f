"""Rows -> micro-batches -> tensors: what goes through the model together, and in which places.

What is decided here, and nowhere else:
  what is read            of a completion the tokens before its last trained one: what follows
                          predicts nothing, and no token looks ahead
  what shares a forward   rows of one group share their prompt: P + T1 + T2 + ... tokens instead of
                          k*P + T1 + T2 + ..., each completion seeing the prompt and itself; all
                          groups of a micro-batch lie in one flat row without padding

The numbers of a trained token (`Row.columns`) travel by their names, whatever these are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grpo.attention.layout import Layout, Pack, make_layout
from grpo.model.transfer import to_device
from grpo.types import Row

# What sharing a prompt costs: attention in two parts that are put together, for every token of a
# completion; about a twentieth of what the token costs in all else. What it saves: the prompt, for
# every completion but one. So prompts are shared where that is the larger number of tokens.
SHARE_ABOVE = 0.05

# What a rank that has no micro-batch left runs, so that no other waits for it: weight 0.
EMPTY_ROW = Row(
    group=0,
    prompt_ids=(0,),
    ids=np.zeros(1, dtype=np.int64),
    mask=np.ones(1, dtype=np.bool_),
    columns=dict.fromkeys(("logp_sampler", "advantages", "weights"), np.zeros(1, dtype=np.float32)),
)


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """R rows of L tokens, and the N trained tokens in them.

    With `packs` there is one row, which holds what they say, and `positions`; without, rows are
    ordinary sequences of one completion, right-padded to the longest.
    """

    ids: np.ndarray  # int64 [R, L]
    positions: np.ndarray  # int64 [R, L]; restarted after the prompt for every completion
    packs: tuple[Pack, ...]
    sources: np.ndarray  # int64 [N], flat index r*L + l of the position that predicts the token
    targets: np.ndarray  # int64 [N]
    columns: Mapping[str, np.ndarray]  # float32 [N] each, as in `Row.columns`
    completions: np.ndarray  # int64 [N], index of the token's completion in `rows`
    rows: tuple[int, ...]  # which of the given rows are here
    temperature: float | None = None  # that all of them were sampled at; None: the learner's own

    @property
    def weights(self) -> np.ndarray:
        """What each token weighs [N]."""
        return self.columns["weights"]

    @property
    def num_completions(self) -> int:
        """A number above all of `completions`."""
        return int(self.completions.max(initial=-1)) + 1

    def with_columns(self, **columns: np.ndarray) -> MicroBatch:
        """The same with other values in some columns."""
        return replace(self, columns={**self.columns, **columns})


def split_minibatches(rows: Sequence[Row], num_minibatches: int) -> list[list[int]]:
    """Indices into `rows` of each optimizer step's rows; whole groups, see the top of the file."""
    parts: list[list[int]] = [[] for _ in range(num_minibatches)]
    for index, row in enumerate(rows):
        parts[row.group % num_minibatches].append(index)
    return parts


def even_micro_batches(
    rows: Sequence[Row],
    token_budget: int,
    share_prompts: bool,
    gather: Callable[[Sequence[Any]], list[Any]],
) -> tuple[list[MicroBatch], int]:
    """As many micro-batches on every rank, so that collectives meet; how many are real.

    Ranks that have fewer are given copies of their last and smallest, with 0 for weights,
    advantages and the sampler's log-probs. A column of the objective's own keeps real numbers: a
    loss may divide by it. `gather` joins the lists of all ranks.
    """
    batches = micro_batches(rows, token_budget, share_prompts, pad_id=0)
    counts = gather([len(batches)])
    if min(counts) < max(counts):
        # a rank without a row learns here which columns the loss reads
        seen = {name: float(column[0]) for batch in batches[:1] for name, column in _own(batch)}
        seen = dict(gather(list(seen.items())))
        filler = (batches or micro_batches([EMPTY_ROW], token_budget, share_prompts, pad_id=0))[-1]
        columns = {n: np.full_like(filler.weights, number) for n, number in seen.items()}
        columns |= dict(_own(filler))
        columns |= dict.fromkeys(EMPTY_ROW.columns, np.zeros_like(filler.weights))
        nothing = dict(sorted(columns.items()))
        batches += [replace(filler, columns=nothing, rows=())] * (max(counts) - len(batches))
    return batches, sum(counts)


def _own(batch: MicroBatch) -> list[tuple[str, np.ndarray]]:
    """The columns that not every loss has."""
    return [(n, column) for n, column in batch.columns.items() if n not in EMPTY_ROW.columns]


def micro_batches(
    rows: Sequence[Row], token_budget: int, share_prompts: bool, pad_id: int
) -> list[MicroBatch]:
    """Rows cut into micro-batches of at most `token_budget` tokens, padding included.

    `share_prompts`: lay them flat, prompts shared where that pays; only for models that pass
    `forward.can_share_prompts`. Micro-batches are then about equally large; otherwise they go from
    the longest rows to the shortest. Either way running out of memory happens early or not at all.
    A row longer than the budget gets a micro-batch of its own. Rows of different temperatures never
    share one. The order depends on the rows alone.
    """
    temperatures = list(dict.fromkeys(row.temperature for row in rows))
    if len(temperatures) > 1:
        found: list[MicroBatch] = []
        for temperature in temperatures:
            places = [i for i, row in enumerate(rows) if row.temperature == temperature]
            part = micro_batches([rows[i] for i in places], token_budget, share_prompts, pad_id)
            found += [replace(b, rows=tuple(places[i] for i in b.rows)) for b in part]
        return sorted(found, key=lambda b: -b.ids.size)
    if share_prompts:
        return [_lay_flat(rows, packs) for packs in _deal_out(rows, token_budget)]
    order = sorted(range(len(rows)), key=lambda i: (-_tokens(rows, [i]), i))
    batches: list[list[int]] = []
    for i in order:
        longest = _tokens(rows, [batches[-1][0]]) if batches else 0
        if batches and (len(batches[-1]) + 1) * longest <= token_budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return [_lay_out(rows, batch, pad_id) for batch in batches]


def _read(row: Row) -> int:
    """How many tokens of the completion go through the model: those before the last trained."""
    if len(row.mask) and row.mask[-1]:
        return len(row.mask) - 1
    trained = np.flatnonzero(row.mask)
    return int(trained[-1]) if len(trained) else 0


def _tokens(rows: Sequence[Row], pack: Sequence[int]) -> int:
    """Of one prompt and its completions `pack`."""
    return len(rows[pack[0]].prompt_ids) + sum(_read(rows[i]) for i in pack)


def _pack(rows: Sequence[Row], token_budget: int) -> list[list[int]]:
    """Which completions share a prompt: of one group and one prompt only, longest first."""
    order = sorted(range(len(rows)), key=lambda i: (rows[i].group, rows[i].prompt_ids))
    packs: list[list[int]] = []
    for (_, prompt), group in groupby(order, key=lambda i: (rows[i].group, rows[i].prompt_ids)):
        members = sorted(group, key=lambda i: (-_read(rows[i]), i))
        saved = (len(members) - 1) * len(prompt)
        pays = saved > SHARE_ABOVE * sum(_read(rows[i]) for i in members)
        used = token_budget + 1  # so that the first one begins a pack, whatever it adds
        for i in members:
            if pays and used + _read(rows[i]) <= token_budget:
                packs[-1].append(i)
                used += _read(rows[i])
            else:
                packs.append([i])
                used = _tokens(rows, [i])
    return packs


def _deal_out(rows: Sequence[Row], token_budget: int) -> list[list[list[int]]]:
    """Packs in as few micro-batches as they fit into, each about equally full.

    Largest pack first, to the micro-batch with the fewest tokens so far. A pack beyond the budget
    has one of its own.
    """
    packs = sorted(_pack(rows, token_budget), key=lambda p: (-_tokens(rows, p), p))
    alone = [[pack] for pack in packs if _tokens(rows, pack) > token_budget]
    packs = packs[len(alone) :]
    total = sum(_tokens(rows, pack) for pack in packs)
    for count in range(-(-total // token_budget), len(packs) + 1):
        loads = [0] * count
        batches: list[list[list[int]]] = [[] for _ in range(count)]
        for pack in packs:
            target = loads.index(min(loads))
            loads[target] += _tokens(rows, pack)
            batches[target].append(pack)
        if max(loads, default=0) <= token_budget:
            return alone + batches
    raise AssertionError("a pack alone fits into the budget")


def _lay_flat(rows: Sequence[Row], packs: list[list[int]]) -> MicroBatch:
    """One row of packs. A completion's first token is predicted by the prompt's last."""
    ids: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    sources: list[np.ndarray] = []
    laid: list[Pack] = []
    at = 0
    for pack in packs:
        start, P = at, len(rows[pack[0]].prompt_ids)
        ids.append(np.array(rows[pack[0]].prompt_ids, dtype=np.int64))
        positions.append(np.arange(P))
        at += P
        spans: list[tuple[int, int]] = []
        for i in pack:
            T = _read(rows[i])
            ids.append(rows[i].ids[:T])
            positions.append(np.arange(P, P + T))
            before = np.arange(at - 1, at + T)
            before[0] = start + P - 1
            sources.append(before[np.flatnonzero(rows[i].mask)])
            spans.append((at, T))
            at += T
        laid.append(Pack(start=start, prompt=P, completions=tuple(spans)))
    return _micro_batch(
        rows,
        [i for pack in packs for i in pack],
        ids=np.concatenate(ids)[None],
        positions=np.concatenate(positions)[None],
        packs=tuple(laid),
        sources=np.concatenate(sources),
    )


def _lay_out(rows: Sequence[Row], members: list[int], pad_id: int) -> MicroBatch:
    """One row for each completion, after its prompt."""
    R, L = len(members), max(_tokens(rows, [i]) for i in members)
    ids_R_L = np.full((R, L), pad_id, dtype=np.int64)
    sources: list[np.ndarray] = []
    for r, i in enumerate(members):
        P, T = len(rows[i].prompt_ids), _read(rows[i])
        ids_R_L[r, :P] = rows[i].prompt_ids
        ids_R_L[r, P : P + T] = rows[i].ids[:T]
        sources.append(r * L + P - 1 + np.flatnonzero(rows[i].mask))
    return _micro_batch(
        rows,
        members,
        ids=ids_R_L,
        positions=np.tile(np.arange(L), (R, 1)),
        packs=(),
        sources=np.concatenate(sources),
    )


def _micro_batch(
    rows: Sequence[Row],
    members: list[int],
    *,
    ids: np.ndarray,
    positions: np.ndarray,
    packs: tuple[Pack, ...],
    sources: np.ndarray,
) -> MicroBatch:
    """With what the trained tokens of `members` carry, in their order."""
    masks = [rows[i].mask for i in members]
    mask = np.concatenate(masks)

    def trained(arrays: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(arrays)[mask]

    return MicroBatch(
        ids=ids,
        positions=positions,
        packs=packs,
        sources=sources,
        targets=trained([rows[i].ids for i in members]),
        columns={
            name: trained([rows[i].columns[name] for i in members])
            for name in rows[members[0]].columns
        },
        completions=np.repeat(np.arange(len(masks)), [np.count_nonzero(m) for m in masks]),
        rows=tuple(members),
        temperature=rows[members[0]].temperature,
    )


def equal_weights(weights_N: np.ndarray, num_micro_batches: int) -> np.ndarray:
    """Weights of a mean over all ranks' micro-batches of means over tokens; a filler's stay 0."""
    return (weights_N != 0) / np.float32(len(weights_N) * num_micro_batches)


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A micro-batch where the model is, for all passes over it: shapes as there."""

    batch: MicroBatch
    ids: Tensor
    positions: Tensor
    sources: Tensor
    targets: Tensor
    completions: Tensor
    columns: Mapping[str, Tensor]  # [N] each, as in `Row.columns`, and what the learner adds
    layout: Layout | None  # of a flat row

    def with_columns(self, **columns: Tensor | None) -> Placed:
        """The same with more columns; None is no column."""
        more = {name: column for name, column in columns.items() if column is not None}
        return replace(self, columns={**self.columns, **more})


def place(micro_batch: MicroBatch, device: torch.device) -> Placed:
    """The micro-batch on `device`: one copy, and one more where an attention reads the layout."""
    names = ("ids", "positions", "sources", "targets", "completions")
    arrays = {name: getattr(micro_batch, name) for name in names}
    # Under other keys, so that a column may have any name.
    columns = {f"column {name}": column for name, column in micro_batch.columns.items()}
    there = to_device(device, **arrays, **columns)
    return Placed(
        batch=micro_batch,
        layout=make_layout(micro_batch.packs, device) if micro_batch.packs else None,
        columns={name: there.pop(f"column {name}") for name in micro_batch.columns},
        **there,
    )
