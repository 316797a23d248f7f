"""Advantages: how much better than its group was each completion?

Every estimator maps rewards_P_G (float64; row p holds the G rewards of prompt p; NaN = unscored)
to advantages of the same shape. Unscored completions leave every mean and standard deviation and
get advantage 0. A group whose scored rewards are all equal, or that has only one, compares
nothing: its advantages are exactly 0, whatever rounding does to the mean, so that its rows can be
dropped. (`none` has no baseline and is the one exception.) An estimator with a parameter `groups`,
`reward_weights` or `tokenizer` is given that too. `grpo/method/table.py` lists the estimators.

    name      advantage                          where it comes from
    grpo      (r - mean) / (std + 1e-4)          DeepSeekMath (2402.03300); TRL "group"
    dr_grpo   r - mean                           Dr. GRPO (2503.20783); TRL "none"
    rloo      r - mean of the others             leave-one-out REINFORCE (2402.14740)
    batch     (r - mean) / (batch std + 1e-4)    2508.08221; TRL "batch"
    reinforce_plus_plus_baseline                 REINFORCE++ (2501.03262), as verl calls it
              (r - mean) / (batch std of r - mean, + 1e-4)
    maxrl     (r - mean) / mean                  MaxRL (2602.02710)
    gdpo      `batch` of sum of weight * `grpo` of each reward
                                                 GDPO (2601.05242); TRL "normalize_then_sum"
    pass@k    (expected best of k with r - expected best of k) / (its std + 1e-4)
                                                 Pass@k training (2508.10751)
    none      r                                  plain REINFORCE, no baseline

Standard deviations are those of a sample (divided by n - 1), as in TRL, whose `scale_rewards` is
quoted above; only that of pass@k is of all subsets there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from grpo.errors import RecipeError, RewardError
from grpo.types import LARGEST_REWARD, Group, Rollout

STD_FLOOR = 1e-4  # TRL's; keeps a nearly constant group from exploding


def reward_matrix(groups: Sequence[Group]) -> np.ndarray:
    """The rewards of `groups` as float64 [P, G]; NaN where unscored or where a group is smaller.

    Raises RewardError for one that is no number, or so large that its square would be none.
    """
    return _matrix(groups, _usable)


def _matrix(groups: Sequence[Group], of: Callable[[Rollout], float | None]) -> np.ndarray:
    """`of` each completion as float64 [P, G]; NaN for None and where a group is smaller."""
    values_P_G = np.full((len(groups), max((len(g.rollouts) for g in groups), default=0)), np.nan)
    for values_G, group in zip(values_P_G, groups, strict=True):
        for i, rollout in enumerate(group.rollouts):
            if (value := of(rollout)) is not None:
                values_G[i] = value
    return values_P_G


def _usable(rollout: Rollout) -> float | None:
    value = rollout.score.value
    if value is not None and not abs(value) <= LARGEST_REWARD:
        parts = ", ".join(f"{name} {part}" for name, part in rollout.score.parts.items())
        raise RewardError(
            f"a completion of task {rollout.prompt.task.uid!r} has the reward {value:g} ({parts}); "
            f"nothing is learned from what is no number, or larger than {LARGEST_REWARD:g}"
        )
    return value


def _deviations(rewards_P_G: np.ndarray) -> np.ndarray:
    """r - mean of the group's scored rewards; NaN where unscored, exact 0 in constant groups."""
    scored_P_G = ~np.isnan(rewards_P_G)
    counts_P_1 = scored_P_G.sum(axis=1, keepdims=True)
    sums_P_1 = np.where(scored_P_G, rewards_P_G, 0.0).sum(axis=1, keepdims=True)
    deviations_P_G = rewards_P_G - sums_P_1 / np.maximum(counts_P_1, 1)
    lows_P_1 = np.where(scored_P_G, rewards_P_G, np.inf).min(axis=1, keepdims=True)
    highs_P_1 = np.where(scored_P_G, rewards_P_G, -np.inf).max(axis=1, keepdims=True)
    return np.where(scored_P_G & (lows_P_1 == highs_P_1), 0.0, deviations_P_G)


def _fill(advantages_P_G: np.ndarray, rewards_P_G: np.ndarray) -> np.ndarray:
    """0 where unscored; a NaN anywhere else is left for `token_values.checked` to find."""
    return np.where(np.isnan(rewards_P_G), 0.0, advantages_P_G)


def grpo(rewards_P_G: np.ndarray) -> np.ndarray:
    """Deviation from the group's mean in units of the group's standard deviation."""
    deviations_P_G = _deviations(rewards_P_G)
    counts_P_1 = (~np.isnan(deviations_P_G)).sum(axis=1, keepdims=True)
    squares_P_1 = np.nansum(deviations_P_G**2, axis=1, keepdims=True)
    std_P_1 = np.sqrt(squares_P_1 / np.maximum(counts_P_1 - 1, 1))
    return _fill(deviations_P_G / (std_P_1 + STD_FLOOR), rewards_P_G)


def dr_grpo(rewards_P_G: np.ndarray) -> np.ndarray:
    """Deviation from the group's mean, unscaled: easy and hard prompts are not inflated."""
    return _fill(_deviations(rewards_P_G), rewards_P_G)


def rloo(rewards_P_G: np.ndarray) -> np.ndarray:
    """Reward minus the mean of the group's *other* scored rewards, = deviation * n / (n - 1)."""
    deviations_P_G = _deviations(rewards_P_G)
    counts_P_1 = (~np.isnan(deviations_P_G)).sum(axis=1, keepdims=True)
    return _fill(deviations_P_G * counts_P_1 / np.maximum(counts_P_1 - 1, 1), rewards_P_G)


def batch(rewards_P_G: np.ndarray) -> np.ndarray:
    """Deviation from the group's mean in units of the whole batch's standard deviation."""
    scored_N = rewards_P_G[~np.isnan(rewards_P_G)]
    std = float(scored_N.std(ddof=1)) if len(scored_N) > 1 else 0.0
    return _fill(_deviations(rewards_P_G) / (std + STD_FLOOR), rewards_P_G)


def reinforce_plus_plus_baseline(rewards_P_G: np.ndarray) -> np.ndarray:
    """Deviation from the group's mean, in units of the batch's standard deviation of those.

    The batch's mean of them is 0 already. The paper normalizes over tokens; here every completion
    counts once, whatever its length.
    """
    deviations_P_G = _deviations(rewards_P_G)
    scored_N = deviations_P_G[~np.isnan(deviations_P_G)]
    std = float(scored_N.std(ddof=1)) if len(scored_N) > 1 else 0.0
    return _fill(deviations_P_G / (std + STD_FLOOR), rewards_P_G)


def maxrl(rewards_P_G: np.ndarray) -> np.ndarray:
    """Deviation from the group's mean in units of that mean; rewards must not be negative.

    For rewards 0 and 1 its expectation over groups of n is the gradient of -sum (1 - p)^k / k over
    k < n, where p is the chance of success: log p when n grows, the plain reward for n = 2. Hard
    prompts weigh 1/p. Raises RecipeError.
    """
    if (rewards_P_G < 0).any():
        raise RecipeError(
            f"algorithm.advantage = 'maxrl' divides by the mean reward, which the reward "
            f"{np.nanmin(rewards_P_G)} could make 0 or negative; use rewards of 0 or more"
        )
    deviations_P_G = _deviations(rewards_P_G)
    counts_P_1 = (~np.isnan(rewards_P_G)).sum(axis=1, keepdims=True)
    means_P_1 = np.nansum(rewards_P_G, axis=1, keepdims=True) / np.maximum(counts_P_1, 1)
    return _fill(deviations_P_G / np.where(means_P_1 > 0, means_P_1, 1.0), rewards_P_G)


def gdpo(
    rewards_P_G: np.ndarray, groups: Sequence[Group], reward_weights: Mapping[str, float]
) -> np.ndarray:
    """`batch` of sums in which each reward is normalized within its group first (2601.05242).

    With a plain sum, rewards of different spread drown one another, and different mixes collapse to
    one total. A reward that does not apply to a completion adds nothing to its sum.
    """
    totals_P_G = np.where(np.isnan(rewards_P_G), np.nan, 0.0)
    for name, weight in reward_weights.items():
        part_P_G = _matrix(groups, lambda rollout, name=name: rollout.score.parts.get(name))
        part_P_G[np.isnan(rewards_P_G)] = np.nan
        totals_P_G += weight * grpo(part_P_G)
    return _fill(np.where(np.isnan(totals_P_G), np.nan, batch(totals_P_G)), rewards_P_G)


def pass_at_k(rewards_P_G: np.ndarray, k: int) -> np.ndarray:
    """How much a completion adds to the best of `k`, in units of that best's standard deviation.

    Of all subsets of `k` completions of a group, each scored by its best: the mean score of those
    that hold the completion minus the mean score of all, divided by the score's standard deviation
    over all. For rewards 0 and 1 that is the closed form of Pass@k training (2508.10751), where
    right answers stop teaching once they are so many that every subset has one. Groups of `k` or
    fewer scored completions compare nothing.
    """
    return np.stack([_best_of(rewards_G, k) for rewards_G in rewards_P_G])


def _best_of(rewards_G: np.ndarray, k: int) -> np.ndarray:
    """`pass_at_k` of one group."""
    advantages_G = np.zeros_like(rewards_G)
    scored_n = np.flatnonzero(~np.isnan(rewards_G))
    order_n = scored_n[np.argsort(rewards_G[scored_n], kind="stable")]  # worst first
    best_n = rewards_G[order_n]
    n = len(best_n)
    if n <= k or best_n[k - 1] == best_n[-1]:  # the worst subset's best is the best of all
        return advantages_G
    # The j-th worst (from 0) is the best of a subset when the k - 1 others are among the j below.
    chance_n = np.array([math.comb(j, k - 1) for j in range(n)]) / math.comb(n, k)
    mean = float(chance_n @ best_n)
    std = math.sqrt(float(chance_n @ (best_n - mean) ** 2))
    # With i in the subset: i is the best, or a j above it with k - 2 others among those below j.
    subsets = math.comb(n - 1, k - 1)
    above_n = np.array([math.comb(j - 1, k - 2) if j and k > 1 else 0 for j in range(n)]) / subsets
    for i in range(n):
        own = math.comb(i, k - 1) / subsets * best_n[i]
        with_i = own + float(above_n[i + 1 :] @ best_n[i + 1 :])
        advantages_G[order_n[i]] = (with_i - mean) / (std + STD_FLOOR)
    return advantages_G


def none(rewards_P_G: np.ndarray) -> np.ndarray:
    """The raw reward."""
    return _fill(rewards_P_G, rewards_P_G)
