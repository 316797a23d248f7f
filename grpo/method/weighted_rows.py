"""Groups with advantages -> rows: what is trained, what it weighs, and who trains it.

Two decisions are taken here, before any forward pass, and nowhere else:
  which tokens are trained   segments the model wrote, of completions that were scored (and, on
                             request, ended by themselves); never from a token's identity, so the
                             end-of-sequence token is trained on even when it is also the pad token
  what each token weighs     every denominator of the loss, over all rows of the optimizer step

With several optimizer steps per batch (`num_minibatches`), whole groups are dealt out by
`group % num_minibatches`: tasks come in shuffled order already, groups keep sharing their prompt,
and a row's minibatch does not depend on which other rows were dropped. (TRL shuffles completions.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from grpo.errors import PluginError
from grpo.method.losses import LossInputs
from grpo.method.objective import Objective, Totals, keeps_dead_rows
from grpo.method.table import find_objective
from grpo.method.token_values import TokenValues, checked, spread
from grpo.types import Group, Metrics, Row


def make_rows(
    groups: Sequence[Group],
    advantages_P_G: TokenValues | np.ndarray,
    *,
    loss_type: str | Objective,
    max_completion_length: int,
    mask_truncated: bool = False,
    num_minibatches: int = 1,
) -> list[Row]:
    """One row per completion, dead and masked ones included, in group and sample order.

    `advantages_P_G`: of each group, of each completion, a number or one for each token. Unscored
    completions get an empty mask and leave the denominators, as if they had never been drawn;
    truncated ones (`mask_truncated`) get an empty mask but count as rows, as in TRL. Denominators
    are of all `groups`: with several ranks every one of them has the groups of all. Raises
    PluginError for a weight or a column of the objective's own that is no such number, and for a
    column with a taken name.
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
    totals_M = _totals(minibatch_N, scored_N, lengths_N, num_minibatches)
    objective = find_objective(loss_type)
    weights_N = [
        _weight(objective, length, totals_M[part], max_completion_length)
        for part, length in zip(minibatch_N, lengths_N.tolist(), strict=True)
    ]
    values = {"weights": np.repeat(weights_N, sizes_N)}
    given = {"advantages": advantages_P_G, **_own_columns(objective, groups)}
    values |= {name: spread(column, groups, sizes_N) for name, column in given.items()}
    columns = {n: np.where(mask, value, 0.0).astype(np.float32) for n, value in values.items()}
    columns["logp_sampler"] = np.concatenate([s.logprobs for s in segments])
    ids = np.concatenate([s.ids for s in segments])
    rows: list[Row] = []
    for (index, _), start, stop in zip(rollouts, bounds[:-1], bounds[1:], strict=True):
        at = slice(start, stop)
        rows.append(
            Row(
                group=index,
                prompt_ids=groups[index].prompt.ids,
                ids=ids[at],
                mask=mask[at],
                columns={name: column[at] for name, column in columns.items()},
            )
        )
    return rows


def _weight(objective: Objective, length: int, totals: Totals, budget: int) -> float:
    """What each trained token of a completion weighs; 0 where none is. Raises PluginError."""
    found = objective.weight(length, totals, budget) if length else 0.0
    number = np.asarray(found)
    if number.shape or number.dtype.kind not in "iuf" or not np.isfinite(number):
        raise PluginError(f"the objective's weight returned {found!r}; it is a finite number")
    return found


def _own_columns(objective: Objective, groups: Sequence[Group]) -> dict[str, TokenValues]:
    """The columns that an objective makes of the groups. Raises PluginError."""
    if objective.columns is None:
        return {}
    found = objective.columns(groups)
    if not isinstance(found, Mapping):
        raise PluginError(
            f"the objective's columns returned {type(found).__name__}; it has to return a dict: "
            "name -> numbers"
        )
    taken = LossInputs.__dataclass_fields__
    for name in found:
        if not isinstance(name, str) or name in taken:
            raise PluginError(
                f"the objective's columns returned {name!r}, and a column needs a name of its own: "
                f"a word that is not among {', '.join(taken)}"
            )
    return {
        name: checked(values, groups, f"column {name!r} of the objective")
        for name, values in found.items()
    }


def _totals(
    minibatch_N: Sequence[int], scored_N: np.ndarray, lengths_N: np.ndarray, num_minibatches: int
) -> list[Totals]:
    """What the rows of each optimizer step add up to: scored ones, and trained tokens."""
    return [
        Totals(rows=int(rows), tokens=int(tokens))
        for rows, tokens in zip(
            np.bincount(minibatch_N, scored_N, num_minibatches),
            np.bincount(minibatch_N, lengths_N, num_minibatches),
            strict=True,
        )
    ]


def drop_dead(
    rows: Sequence[Row], *, beta: float, loss_type: str | Objective = "dapo"
) -> tuple[list[Row], Metrics]:
    """The rows that can move the policy, and how many could not.

    A row is masked when no token of it is trained (always dropped), dead when all its advantages
    are 0 and nothing else in the loss touches it (see `keeps_dead_rows`). Weights already count
    dropped rows, so the gradient is the same.
    """
    keep_all = keeps_dead_rows(find_objective(loss_type), beta)
    masked = [not row.mask.any() for row in rows]
    dead = [
        not m and not keep_all and not row.columns["advantages"].any()
        for row, m in zip(rows, masked, strict=True)
    ]
    kept = [r for r, m, d in zip(rows, masked, dead, strict=True) if not (m or d)]
    return kept, {
        "rows/total": float(len(rows)),
        "rows/dead": float(sum(dead)),
        "rows/masked": float(sum(masked)),
        "rows/trained": float(len(kept)),
    }


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
