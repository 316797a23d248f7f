"""Policy losses: what one token of a completion contributes, and what it is divided by.

    loss = sum over tokens of  weight * token_loss

`token_loss` is a pure function of `LossInputs`, the trained tokens of a micro-batch laid flat.
`weight` carries every denominator and is decided before any forward pass (`grpo/batch.py`) from
totals over the whole optimizer step: all rows, including those dropped because they teach
nothing, on all ranks. So the gradient does not depend on how the batch was cut into micro-batches.

    name      weight of a token                        where it comes from
    grpo      1 / (T_i * N)                            DeepSeekMath: mean of per-completion means
    dr_grpo   1 / (max_completion_length * N)          Dr. GRPO: no bonus for short or long answers
    dapo      1 / (trained tokens of the step)         DAPO: every token counts the same
    bnpo      1 / (tokens of the micro-batch) / (number of micro-batches)    TRL's; *does* depend on
              the cut, and on dropped rows, which is why such rows are kept

T_i: trained tokens of completion i. N: scored completions of the step. All four share the clipped
surrogate. A new loss is one function over `LossInputs` and a line in `OBJECTIVES`; one that needs
sequence ratios (GSPO) averages over `completions` with `completion_means`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from grpo import plugins
from grpo.errors import RecipeError, unknown_name

KlEstimator = Literal["k1", "k2", "k3"]


@dataclass(frozen=True, kw_only=True)
class LossInputs:
    """The N trained tokens of a micro-batch, flat and without padding; all [N] and floating."""

    logp: Tensor  # under the policy, with gradient
    logp_old: Tensor  # under the policy that sampled, as the learner computes it
    logp_sampler: Tensor  # the same as the sampler computed it
    logp_ref: Tensor | None  # under the reference; None when beta is 0
    advantages: Tensor
    weights: Tensor
    entropy: Tensor | None  # of the policy's next-token distribution; for the record only
    completions: Tensor  # int64: which completion of the micro-batch a token belongs to


@dataclass(frozen=True, kw_only=True)
class Clip:
    """The constants of a token loss, with TRL's names and defaults."""

    epsilon: float = 0.2
    epsilon_high: float | None = None  # None: same as epsilon
    delta: float | None = None  # upper bound of the unclipped ratio ("two-sided" clipping)
    beta: float = 0.0
    kl_estimator: KlEstimator = "k3"


@dataclass(frozen=True)
class Totals:
    """What the weights of one optimizer step are made of, over all ranks."""

    rows: int
    tokens: int


TokenLoss = Callable[[LossInputs, Clip], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A token loss with the rule for its weights.

    `weight(length, totals, max_completion_length)` is the weight of each of the `length` trained
    tokens of one completion. With `per_micro_batch` the learner divides by what the micro-batch
    happens to hold instead, and dead rows may not be dropped.
    """

    token_loss: TokenLoss
    weight: Callable[[int, Totals, int], float]
    per_micro_batch: bool = False

    def __call__(self, inputs: LossInputs, clip: Clip) -> tuple[Tensor, dict[str, Tensor]]:
        """The token loss: an objective is called like the function that a plug-in may be."""
        return self.token_loss(inputs, clip)


def sampling_weights(
    logp_old: Tensor, logp_sampler: Tensor, completions_N: Tensor, mode: str, cap: float
) -> Tensor:
    """Importance weights [N] of tokens that were drawn from another distribution than assumed.

    The ratio of `logp_old` to `logp_sampler`, per token or multiplied over its completion, is cut
    at `cap` (truncated importance sampling, https://fengyao.notion.site/off-policy-rl) or set to 0
    above it (masked, as in TRL's `sequence_mask`). Ones for mode "none".
    """
    if mode == "none":
        return torch.ones_like(logp_old)
    level, _, what = mode.partition("_")
    difference = logp_old - logp_sampler
    if level == "sequence":
        size = int(completions_N.max()) + 1 if len(completions_N) else 0
        sums = difference.new_zeros(size).index_add(0, completions_N, difference)
        difference = sums[completions_N]
    ratio = torch.exp(difference)
    return ratio.clamp(max=cap) if what == "truncate" else ratio.masked_fill(ratio > cap, 0.0)


def completion_means(values_N: Tensor, completions_N: Tensor) -> Tensor:
    """The mean of `values_N` over the completion each token belongs to, given to each token [N]."""
    size = int(completions_N.max()) + 1 if len(completions_N) else 0
    sums = values_N.new_zeros(size).index_add(0, completions_N, values_N)
    counts = values_N.new_zeros(size).index_add(0, completions_N, torch.ones_like(values_N))
    return (sums / counts.clamp(min=1))[completions_N]


def kl_estimate(logp: Tensor, logp_ref: Tensor, estimator: KlEstimator) -> Tensor:
    """Per-token estimates of KL(policy || reference) from the policy's samples [N].

    http://joschu.net/blog/kl-approx.html. k1 and k3 have the KL as their expectation; k3 is never
    negative and varies less.
    """
    log_ratio = logp - logp_ref
    match estimator:
        case "k1":
            return log_ratio
        case "k2":
            return log_ratio.square() / 2
        case "k3":
            return torch.exp(-log_ratio) + log_ratio - 1


def kl_penalty(ratio: Tensor, inputs: LossInputs, estimator: KlEstimator) -> Tensor:
    """Per-token KL to the reference [N], weighted so that its gradient is the KL's own.

    Samples come from the old policy, so the estimate is multiplied by the ratio (DeepSeek-V3.2,
    2512.02556; TRL's `use_bias_correction_kl`, on by default). Through the ratio k1 and k3 also
    get the gradient of where samples fall, without which k1 would regularize nothing; k2 has the
    right gradient already, so there the ratio is a constant.
    """
    assert inputs.logp_ref is not None
    kl = kl_estimate(inputs.logp, inputs.logp_ref, estimator)
    return kl * (ratio.detach() if estimator == "k2" else ratio)


def clipped_surrogate(inputs: LossInputs, clip: Clip) -> tuple[Tensor, dict[str, Tensor]]:
    """-min(ratio * A, clip(ratio) * A) + beta * KL, per token (PPO 1707.06347; GRPO 2402.03300).

    Returns the loss [N] and detached per-token quantities [N], to be averaged over tokens, under
    TRL's metric names. With `delta` the unclipped ratio is capped as well, which bounds the loss
    of tokens with a negative advantage (INTELLECT-2, 2505.07291).
    """
    low = 1 - clip.epsilon
    high = 1 + (clip.epsilon if clip.epsilon_high is None else clip.epsilon_high)
    ratio = torch.exp(inputs.logp - inputs.logp_old)
    clipped = ratio.clamp(low, high)
    unbounded = ratio
    if clip.delta is not None:
        ratio = ratio.clamp(max=clip.delta)
    loss = -torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)

    seen = ratio.detach()
    low_clipped = (seen < low) & (inputs.advantages < 0)
    high_clipped = (seen > high) & (inputs.advantages > 0)
    metrics = {
        "clip_ratio/low_mean": low_clipped.to(seen.dtype),
        "clip_ratio/high_mean": high_clipped.to(seen.dtype),
        "clip_ratio/region_mean": (low_clipped | high_clipped).to(seen.dtype),
    }
    if inputs.logp_ref is not None:
        kl = kl_penalty(unbounded, inputs, clip.kl_estimator)
        loss = loss + clip.beta * kl
        metrics["kl"] = kl.detach()
    if inputs.entropy is not None:
        metrics["entropy"] = inputs.entropy.detach()
    return loss, metrics


def per_completion(length: int, totals: Totals, max_completion_length: int) -> float:
    """1 / (T_i * N): each completion counts the same, whatever its length."""
    return 1.0 / (length * totals.rows)


def per_budget(length: int, totals: Totals, max_completion_length: int) -> float:
    """1 / (max_completion_length * N): a constant, so that length is neither paid nor punished."""
    return 1.0 / (max_completion_length * totals.rows)


def per_token(length: int, totals: Totals, max_completion_length: int) -> float:
    """1 / (tokens of the optimizer step): each token counts the same."""
    return 1.0 / totals.tokens


OBJECTIVES: dict[str, Objective] = {
    "grpo": Objective(token_loss=clipped_surrogate, weight=per_completion),
    "dr_grpo": Objective(token_loss=clipped_surrogate, weight=per_budget),
    "dapo": Objective(token_loss=clipped_surrogate, weight=per_token),
    "bnpo": Objective(token_loss=clipped_surrogate, weight=per_token, per_micro_batch=True),
}


def find_objective(loss_type: str | Objective) -> Objective:
    """The objective of that name or plug-in address, or the one given. Raises RecipeError.

    A plug-in is an `Objective`, or a token loss alone, whose tokens then weigh as in `dapo`.
    """
    if isinstance(loss_type, Objective):
        return loss_type
    if plugins.is_address(loss_type):
        found = plugins.find("objective", loss_type, OBJECTIVES)
        if isinstance(found, Objective):
            return found
        return Objective(token_loss=found, weight=per_token)
    if loss_type not in OBJECTIVES:
        raise RecipeError(unknown_name("algorithm.loss_type", loss_type, OBJECTIVES))
    return OBJECTIVES[loss_type]


def keeps_dead_rows(objective: Objective, beta: float) -> bool:
    """Whether rows with advantage 0 still matter: the KL term, or a cut-dependent denominator."""
    return beta != 0.0 or objective.per_micro_batch
