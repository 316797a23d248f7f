"""Which tokens an objective acts on for their entropy: decided once for a whole optimizer step.

A micro-batch cannot know this, so that it is decided before the first backward pass, from
entropies [N] of every micro-batch of the step on every rank. `gather` joins the lists of all ranks.
It is decided on the host, to which all entropies come in one copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from grpo.method.objective import Objective

Gather = Callable[[Sequence[Any]], list[Any]]

# The first tokens of a group's completions have the same entropy up to rounding, which differs
# with the cut. Tokens this close (in nats) to the threshold are kept or left out together.
SAME = 1e-5


def chosen(
    weights: Sequence[np.ndarray],
    entropies: Sequence[np.ndarray],
    objective: Objective,
    gather: Gather,
) -> dict[str, np.ndarray]:
    """`high_entropy i` and `entropy_weights i` of `LossInputs` [N] for micro-batch number i.

    weights: [N] of each micro-batch, 0 for tokens that only fill up a rank.
    Each mask only where the objective has a use for it; without `top_entropy_quantile` no entropy
    is read.
    """
    acting = [(weights_N != 0).astype(np.float32) for weights_N in weights]
    found: dict[str, np.ndarray] = {}
    if objective.top_entropy_quantile < 1.0:
        acting = top_entropy(entropies, acting, objective.top_entropy_quantile, gather)
        found |= {f"high_entropy {i}": mask for i, mask in enumerate(acting)}
    if objective.entropy_coef:
        bonus = bonus_weights(acting, gather)
        found |= {f"entropy_weights {i}": weights for i, weights in enumerate(bonus)}
    return found


def top_entropy(
    entropies: Sequence[np.ndarray], real: Sequence[np.ndarray], quantile: float, gather: Gather
) -> list[np.ndarray]:
    """1 [N] per micro-batch for the share `quantile` of tokens with the highest entropy, else 0.

    "Beyond the 80/20 rule" (2506.01939). `real` is float32, 0 for tokens that only fill up a
    rank. The threshold is that of TRL's `top_entropy_quantile`: the (1 - quantile) quantile of all
    trained tokens, so that 0 keeps the very highest alone.
    """
    pairs = list(zip(entropies, real, strict=True))
    local = [e for e_N, real_N in pairs for e in e_N[real_N > 0].tolist()]
    sorted_N = np.sort(np.asarray(gather(local)))
    if not len(sorted_N):
        return list(real)
    # A linearly interpolated quantile is reached by exactly the values from this one on.
    first = math.ceil((len(sorted_N) - 1) * (1 - quantile) - 1e-9)
    threshold = sorted_N[first] - SAME
    return [(e_N >= e_N.dtype.type(threshold)) * real_N for e_N, real_N in pairs]


def bonus_weights(acting: Sequence[np.ndarray], gather: Gather) -> list[np.ndarray]:
    """What each token's entropy weighs in its mean over the step; `acting` is 1 or 0 [N]."""
    count = sum(gather([float(sum(a_N.sum() for a_N in acting))]))
    return [a_N / np.float32(max(count, 1.0)) for a_N in acting]
