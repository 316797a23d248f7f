"""Which tokens an objective acts on for their entropy: decided once for a whole optimizer step.

A micro-batch cannot know this, so that it is decided before the first backward pass, from
entropies [N] of every micro-batch of the step on every rank. `gather` joins the lists of all ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

Gather = Callable[[Sequence[Any]], list[Any]]

# The first tokens of a group's completions have the same entropy up to rounding, which differs
# with the cut. Tokens this close (in nats) to the threshold are kept or left out together.
SAME = 1e-5


def top_entropy(
    entropies: Sequence[Tensor], real: Sequence[Tensor], quantile: float, gather: Gather
) -> list[Tensor]:
    """1 [N] per micro-batch for the share `quantile` of tokens with the highest entropy, else 0.

    "Beyond the 80/20 rule" (2506.01939). `real` is 0 for tokens that only fill up a rank. The
    threshold is that of TRL's `top_entropy_quantile`: the (1 - quantile) quantile of all trained
    tokens, so that 0 keeps the very highest alone.
    """
    pairs = list(zip(entropies, real, strict=True))
    local = [e for e_N, real_N in pairs for e in e_N[real_N > 0].tolist()]
    sorted_N = np.sort(np.asarray(gather(local)))
    if not len(sorted_N):
        return list(real)
    # A linearly interpolated quantile is reached by exactly the values from this one on.
    first = math.ceil((len(sorted_N) - 1) * (1 - quantile) - 1e-9)
    threshold = sorted_N[first] - SAME
    return [(e_N >= threshold) * real_N for e_N, real_N in pairs]


def bonus_weights(acting: Sequence[Tensor], gather: Gather) -> list[Tensor]:
    """What each token's entropy weighs in its mean over the step; `acting` is 1 or 0 [N]."""
    count = sum(gather([float(sum(a_N.sum() for a_N in acting))]))
    return [a_N / max(count, 1.0) for a_N in acting]
