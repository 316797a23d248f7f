"""Advantages: how much better than its group was each completion?

Every function maps rewards_P_G (float64; row p holds the G rewards of prompt p; NaN = unscored)
to advantages of the same shape. Unscored completions leave every mean and standard deviation and
get advantage 0. A group whose scored rewards are all equal, or that has only one, compares
nothing: its advantages are exactly 0, whatever rounding does to the mean, so that its rows can be
dropped. (`none` has no baseline and is the one exception.)

    name      advantage                          where it comes from
    grpo      (r - mean) / (std + 1e-4)          DeepSeekMath (2402.03300); TRL "group"
    dr_grpo   r - mean                           Dr. GRPO (2503.20783); TRL "none"
    rloo      r - mean of the others             leave-one-out REINFORCE (2402.14740)
    batch     (r - mean) / (batch std + 1e-4)    2508.08221; TRL "batch"
    none      r                                  plain REINFORCE, no baseline

Standard deviations are those of a sample (divided by n - 1), as in TRL, whose
`scale_rewards` is quoted above.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from grpo.types import Group

STD_FLOOR = 1e-4  # TRL's; keeps a nearly constant group from exploding


def reward_matrix(groups: Sequence[Group]) -> np.ndarray:
    """The rewards of `groups` as float64 [P, G]; NaN where unscored or where a group is smaller."""
    rewards_P_G = np.full((len(groups), max((len(g.rollouts) for g in groups), default=0)), np.nan)
    for rewards_G, group in zip(rewards_P_G, groups, strict=True):
        for i, rollout in enumerate(group.rollouts):
            if rollout.score.value is not None:
                rewards_G[i] = rollout.score.value
    return rewards_P_G


def _deviations(rewards_P_G: np.ndarray) -> np.ndarray:
    """r - mean of the group's scored rewards; NaN where unscored, exact 0 in constant groups."""
    scored_P_G = ~np.isnan(rewards_P_G)
    counts_P_1 = scored_P_G.sum(axis=1, keepdims=True)
    sums_P_1 = np.where(scored_P_G, rewards_P_G, 0.0).sum(axis=1, keepdims=True)
    deviations_P_G = rewards_P_G - sums_P_1 / np.maximum(counts_P_1, 1)
    lows_P_1 = np.where(scored_P_G, rewards_P_G, np.inf).min(axis=1, keepdims=True)
    highs_P_1 = np.where(scored_P_G, rewards_P_G, -np.inf).max(axis=1, keepdims=True)
    return np.where(scored_P_G & (lows_P_1 == highs_P_1), 0.0, deviations_P_G)


def _fill(advantages_P_G: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(advantages_P_G), 0.0, advantages_P_G)


def grpo(rewards_P_G: np.ndarray) -> np.ndarray:
    """Deviation from the group's mean in units of the group's standard deviation."""
    deviations_P_G = _deviations(rewards_P_G)
    counts_P_1 = (~np.isnan(deviations_P_G)).sum(axis=1, keepdims=True)
    squares_P_1 = np.nansum(deviations_P_G**2, axis=1, keepdims=True)
    std_P_1 = np.sqrt(squares_P_1 / np.maximum(counts_P_1 - 1, 1))
    return _fill(deviations_P_G / (std_P_1 + STD_FLOOR))


def dr_grpo(rewards_P_G: np.ndarray) -> np.ndarray:
    """Deviation from the group's mean, unscaled: easy and hard prompts are not inflated."""
    return _fill(_deviations(rewards_P_G))


def rloo(rewards_P_G: np.ndarray) -> np.ndarray:
    """Reward minus the mean of the group's *other* scored rewards, = deviation * n / (n - 1)."""
    deviations_P_G = _deviations(rewards_P_G)
    counts_P_1 = (~np.isnan(deviations_P_G)).sum(axis=1, keepdims=True)
    return _fill(deviations_P_G * counts_P_1 / np.maximum(counts_P_1 - 1, 1))


def batch(rewards_P_G: np.ndarray) -> np.ndarray:
    """Deviation from the group's mean in units of the whole batch's standard deviation."""
    scored_N = rewards_P_G[~np.isnan(rewards_P_G)]
    std = float(scored_N.std(ddof=1)) if len(scored_N) > 1 else 0.0
    return _fill(_deviations(rewards_P_G) / (std + STD_FLOOR))


def none(rewards_P_G: np.ndarray) -> np.ndarray:
    """The raw reward."""
    return _fill(rewards_P_G)


ADVANTAGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "batch": batch,
    "none": none,
}
