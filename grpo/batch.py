"""Groups with advantages -> rows -> micro-batches.

Three decisions are taken here, before any forward pass, and nowhere else:
  which tokens are trained   segments the model wrote, of completions that were scored (and, on
                             request, ended by themselves); never from a token's identity, so the
                             end-of-sequence token is trained on even when it is also the pad token
  what each token weighs     every denominator of the loss, over all rows of the optimizer step
  what is read               of a completion the tokens before its last trained one: what follows
                             predicts nothing, and no token looks ahead
  what shares a forward      rows of one group share their prompt: P + T1 + T2 + ... tokens instead
                             of k*P + T1 + T2 + ..., each completion seeing the prompt and itself;
                             all groups of a micro-batch lie in one flat row without padding

With several optimizer steps per batch (`num_minibatches`), whole groups are dealt out by
`group % num_minibatches`: tasks come in shuffled order already, groups keep sharing their prompt,
and a row's minibatch does not depend on which other rows were dropped. (TRL shuffles completions.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from grpo.objective import Objective, Totals, find_objective, keeps_dead_rows
from grpo.rewards.verdicts import verdict
from grpo.types import Group, Metrics, Row

# What sharing a prompt costs: attention in two parts that are put together, for every token of a
# completion; about a twentieth of what the token costs in all else. What it saves: the prompt, for
# every completion but one. So prompts are shared where that is the larger number of tokens.
SHARE_ABOVE = 0.05


def make_rows(
    groups: Sequence[Group],
    advantages_P_G: Sequence[np.ndarray] | np.ndarray,
    *,
    loss_type: str | Objective,
    max_completion_length: int,
    mask_truncated: bool = False,
    num_minibatches: int = 1,
) -> list[Row]:
    """One row per completion, dead and masked ones included, in group and sample order.

    `advantages_P_G`: one row of advantages per group. Unscored completions get an empty mask and
    leave the denominators, as if they had never been drawn; truncated ones (`mask_truncated`) get
    an empty mask but count as rows, as in TRL. Denominators are of all `groups`: with several ranks
    every one of them has the groups of all.
    """
    rollouts = [(index, r) for index, group in enumerate(groups) for r in group.rollouts]
    segments = [s for _, r in rollouts for s in r.completion.segments]
    if not segments:
        return []
    scored_N = np.array([r.score.value is not None for _, r in rollouts])
    taught_N = scored_N & [not mask_truncated or r.completion.finish == "stop" for _, r in rollouts]
    sizes_N = np.array([len(r.completion) for _, r in rollouts])
    written = np.repeat([s.source == "model" for s in segments], [len(s.ids) for s in segments])
    # All rows' tokens in one array, and rows are views of it: most completions are short.
    mask = written & np.repeat(taught_N, sizes_N)
    bounds = np.concatenate([[0], np.cumsum(sizes_N)])
    lengths_N = np.diff(np.concatenate([[0], np.cumsum(mask)])[bounds])

    minibatch_N = [index % num_minibatches for index, _ in rollouts]
    totals_M = [
        Totals(rows=int(rows), tokens=int(tokens))
        for rows, tokens in zip(
            np.bincount(minibatch_N, scored_N, num_minibatches),
            np.bincount(minibatch_N, lengths_N, num_minibatches),
            strict=True,
        )
    ]
    weight = find_objective(loss_type).weight
    weights_N = [
        weight(length, totals_M[part], max_completion_length) if length else 0.0
        for part, length in zip(minibatch_N, lengths_N.tolist(), strict=True)
    ]
    advantages_N = np.concatenate(
        # a group smaller than the widest has its advantages padded on the right
        [a[: len(g.rollouts)] for g, a in zip(groups, advantages_P_G, strict=True)]
    )
    ids = np.concatenate([s.ids for s in segments])
    logprobs = np.concatenate([s.logprobs for s in segments])
    advantages = np.where(mask, np.repeat(advantages_N, sizes_N), 0.0).astype(np.float32)
    weights = np.where(mask, np.repeat(weights_N, sizes_N), 0.0).astype(np.float32)
    rows: list[Row] = []
    for (index, _), start, stop in zip(rollouts, bounds[:-1], bounds[1:], strict=True):
        at = slice(start, stop)
        rows.append(
            Row(
                group=index,
                prompt_ids=groups[index].prompt.ids,
                ids=ids[at],
                mask=mask[at],
                logprobs=logprobs[at],
                advantages=advantages[at],
                weights=weights[at],
            )
        )
    return rows


def group_metrics(groups: Sequence[Group]) -> Metrics:
    """How many groups teach nothing because their rewards are all equal, and which kind they are.

    All right and all wrong go by the verdicts where every scored completion has one, and by the
    sign of the reward otherwise. Fractions of the groups with at least one score.
    """
    zero = right = wrong = scored_groups = 0
    for group in groups:
        scores = [r.score for r in group.rollouts if r.score.value is not None]
        if not scores:
            continue
        scored_groups += 1
        if len({score.value for score in scores}) > 1:
            continue
        zero += 1
        verdicts = {verdict(score) for score in scores}
        if None not in verdicts:
            right += verdicts == {True}
            wrong += verdicts == {False}
        elif scores[0].value:
            right += scores[0].value > 0
        else:
            wrong += 1
    count = max(scored_groups, 1)
    return {
        "frac_reward_zero_std": zero / count,
        "frac_reward_zero_std/all_right": right / count,
        "frac_reward_zero_std/all_wrong": wrong / count,
    }


def drop_dead(
    rows: Sequence[Row], *, beta: float, loss_type: str | Objective = "dapo"
) -> tuple[list[Row], Metrics]:
    """The rows that can move the policy, and how many could not.

    A row is masked when no token of it is trained (always dropped), dead when all its advantages
    are 0 and nothing else in the loss touches it (the KL term does, and bnpo's denominator).
    Weights already count dropped rows, so the gradient is the same.
    """
    keep_all = keeps_dead_rows(find_objective(loss_type), beta)
    masked = [not row.mask.any() for row in rows]
    dead = [
        not m and not keep_all and not row.advantages.any()
        for row, m in zip(rows, masked, strict=True)
    ]
    kept = [r for r, m, d in zip(rows, masked, dead, strict=True) if not (m or d)]
    return kept, {
        "rows/total": float(len(rows)),
        "rows/dead": float(sum(dead)),
        "rows/masked": float(sum(masked)),
        "rows/trained": float(len(kept)),
    }


def split_minibatches(rows: Sequence[Row], num_minibatches: int) -> list[list[int]]:
    """Indices into `rows` of each optimizer step's rows; whole groups, see the top of the file."""
    parts: list[list[int]] = [[] for _ in range(num_minibatches)]
    for index, row in enumerate(rows):
        parts[row.group % num_minibatches].append(index)
    return parts


def rank_share(
    rows: Sequence[Row], rank: int, num_ranks: int, num_minibatches: int = 1
) -> list[Row]:
    """What learner rank `rank` of `num_ranks` trains; together the ranks train every row once.

    Whole groups, since they share a prompt, dealt out minibatch by minibatch: the one with the most
    tokens first, to the rank with the fewest so far. The order of rows is kept.
    """
    sizes: dict[int, int] = {}
    for row in rows:
        sizes[row.group] = sizes.get(row.group, len(row.prompt_ids)) + len(row.ids)
    mine: set[int] = set()
    for part in range(num_minibatches):
        loads = [0] * num_ranks
        groups = [group for group in sizes if group % num_minibatches == part]
        for group in sorted(groups, key=lambda g: (-sizes[g], g)):
            target = loads.index(min(loads))
            loads[target] += sizes[group]
            if target == rank:
                mine.add(group)
    return [row for row in rows if row.group in mine]


@dataclass(frozen=True, kw_only=True)
class Pack:
    """A prompt and the completions that share it, side by side in a flat row."""

    start: int  # where the prompt begins
    prompt: int  # its length
    completions: tuple[tuple[int, int], ...]  # (start, length) of each


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
    logprobs: np.ndarray  # float32 [N], the sampler's
    advantages: np.ndarray  # float32 [N]
    weights: np.ndarray  # float32 [N]
    completions: np.ndarray  # int64 [N], index of the token's completion in `rows`
    rows: tuple[int, ...]  # which of the given rows are here
    temperature: float | None = None  # that all of them were sampled at; None: the learner's own


def micro_batches(
    rows: Sequence[Row], token_budget: int, share_prompts: bool, pad_id: int
) -> list[MicroBatch]:
    """Rows cut into micro-batches of at most `token_budget` tokens, padding included.

    `share_prompts`: lay them flat, prompts shared where that pays; only for models that
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
        logprobs=trained([rows[i].logprobs for i in members]),
        advantages=trained([rows[i].advantages for i in members]),
        weights=trained([rows[i].weights for i in members]),
        completions=np.repeat(np.arange(len(masks)), [np.count_nonzero(m) for m in masks]),
        rows=tuple(members),
        temperature=rows[members[0]].temperature,
    )


# What a rank that has no micro-batch left runs, so that no other waits for it: weight 0.
EMPTY_ROW = Row(
    group=0,
    prompt_ids=(0,),
    ids=np.zeros(1, dtype=np.int64),
    mask=np.ones(1, dtype=np.bool_),
    logprobs=np.zeros(1, dtype=np.float32),
    advantages=np.zeros(1, dtype=np.float32),
    weights=np.zeros(1, dtype=np.float32),
)


def equal_weights(weights_N: np.ndarray, num_micro_batches: int) -> np.ndarray:
    """Weights of a mean over all ranks' micro-batches of means over tokens; a filler's stay 0."""
    return (weights_N != 0) / np.float32(len(weights_N) * num_micro_batches)
