"""Policy losses of single tokens, and what an objective adds to them.

Each token loss takes the N trained tokens of a micro-batch laid flat (`LossInputs`) and the
constants of the recipe (`Clip`), and returns the policy term [N] with detached per-token metrics
[N] under TRL's names. Its keyword arguments have their defaults in `grpo/method/table.py`. The rest
of a loss is the same for all of them: `loss_of_tokens` masks and corrects the policy term and adds
the KL term, `loss_of` weighs the tokens, adds them up and subtracts the entropy bonus.

    clipped_surrogate   -min(r A, clip(r) A)          GRPO, GSPO and what differs in weights only
    cispo               -stop(min(r, cap)) A log pi   no token loses its gradient
    sapo                -4/t sigmoid(t (r - 1)) A     a smooth gate instead of a clip
    vespo               -stop(phi(W)) A log pi        a smooth gate on the whole sequence

r is pi / pi_old of a token, or of its completion (`LossInputs.ratio`); W the completion's product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from grpo.errors import PluginError, unknown_name
from grpo.method.objective import KlEstimator, Level, Objective
from grpo.method.repeated import rows_at, sums_at

TokenLossResult = tuple[Tensor, dict[str, Tensor]]


class Columns(dict[str, Tensor]):
    """Per-token numbers by name, each [N]. An unknown name is a PluginError with the known ones."""

    def __missing__(self, name: str) -> Tensor:
        raise PluginError(unknown_name("column of LossInputs", name, self))


@dataclass(frozen=True, kw_only=True)
class LossInputs:
    """The N trained tokens of a micro-batch, flat and without padding; all [N] and floating.

    `columns` has every number that a row gives for each token: `logp_sampler`, `advantages` and
    `weights`, which are fields too, and those of `Objective.columns`.
    """

    logp: Tensor  # under the policy, with gradient
    logp_old: Tensor  # under the policy that sampled, as the learner computes it
    logp_sampler: Tensor  # the same as the sampler computed it
    logp_ref: Tensor | None  # under the reference; None when beta is 0
    advantages: Tensor
    weights: Tensor
    entropy: Tensor | None  # of the policy's next-token distribution in nats, with gradient
    completions: Tensor  # int64: which completion of the micro-batch a token belongs to
    correction: Tensor | None = None  # importance weights for the sampler's errors; None: 1
    high_entropy: Tensor | None = None  # 1 for tokens the policy term keeps, else 0; None: all kept
    entropy_weights: Tensor | None = None  # of the entropy bonus; they add up to 1 over the step
    num_completions: int | None = None  # above all of `completions`; None: read, a wait for a GPU
    importance_sampling_level: Level = "token"
    columns: Mapping[str, Tensor] = field(default_factory=Columns)

    def ratio(self) -> Tensor:
        """pi / pi_old [N] of the token, or the geometric mean over its completion (GSPO)."""
        log_ratio = self.logp - self.logp_old
        if self.importance_sampling_level == "sequence":
            log_ratio = completion_means(log_ratio, self.completions, self.num_completions)
        return torch.exp(log_ratio)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """The constants that most token losses share, with TRL's names and defaults."""

    epsilon: float = 0.2
    epsilon_high: float | None = None  # None: same as epsilon
    delta: float | None = None  # upper bound of the unclipped ratio ("two-sided" clipping)
    beta: float = 0.0

    @property
    def high(self) -> float:
        """The upper clip range."""
        return self.epsilon if self.epsilon_high is None else self.epsilon_high


def loss_of_tokens(objective: Objective, inputs: LossInputs, clip: Clip) -> TokenLossResult:
    """The loss of each token [N] under a resolved `objective`, and detached per-token metrics [N].

    Neither the tokens' weights nor the entropy bonus are in it.
    """
    assert not isinstance(objective.token_loss, str), "an objective of `find_objective` is wanted"
    inputs = replace(inputs, importance_sampling_level=objective.importance_sampling_level)
    loss, metrics = _called(objective.token_loss, inputs, clip)
    if objective.off_policy_mask_threshold is not None:
        keep = off_policy_mask(inputs, objective.off_policy_mask_threshold)
        loss = loss * keep
        metrics["off_policy_mask/masked_mean"] = 1 - keep
    if inputs.high_entropy is not None:
        loss = loss * inputs.high_entropy
    if inputs.correction is not None and not objective.corrects:
        loss = loss * inputs.correction
    if inputs.logp_ref is not None:  # neither masked nor corrected, as in TRL
        kl = kl_penalty(inputs.ratio(), inputs, objective.kl_estimator)
        loss = loss + clip.beta * kl
        metrics["kl"] = kl.detach()
    if inputs.entropy is not None:
        metrics["entropy"] = inputs.entropy.detach()
    return loss, metrics


def _called(token_loss: Callable[..., Any], inputs: LossInputs, clip: Clip) -> TokenLossResult:
    """What a token loss returns, its metrics detached. Raises PluginError if that is not [N] each.

    Another shape would be broadcast against the weights, and what is summed be something else. A
    tensor changed in place would stay so for the weights and for further passes over the batch.
    """
    given = {name: value for name, value in vars(inputs).items() if isinstance(value, Tensor)}
    given |= inputs.columns
    before = {name: value._version for name, value in given.items()}
    found = token_loss(inputs, clip)
    for name, value in given.items():
        if value._version != before[name]:
            raise PluginError(f"the token loss changed inputs.{name} in place; make a new tensor")
    wanted = f"; it has to return a loss of shape {tuple(inputs.logp.shape)} and a dict of metrics"
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], Mapping)):
        raise PluginError(f"the token loss returned {type(found).__name__}{wanted}")
    loss, metrics = found
    if not isinstance(loss, Tensor) or loss.shape != inputs.logp.shape:
        raise PluginError(f"the token loss returned {_kind(loss)}{wanted}")
    for name, value in metrics.items():
        if _shape(value) not in ((), tuple(inputs.logp.shape)):
            raise PluginError(f"the token loss returned {_kind(value)} as metric {name!r}{wanted}")
    return loss, {n: v.detach() if isinstance(v, Tensor) else v for n, v in metrics.items()}


def _shape(value: Any) -> tuple[int, ...] | None:
    """Of a tensor or a number; None of anything else."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    return () if isinstance(value, int | float) else None


def _kind(value: Any) -> str:
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
    return f"{type(value).__name__}{shape}"


def loss_of(objective: Objective, inputs: LossInputs, clip: Clip) -> TokenLossResult:
    """What a micro-batch adds to the loss of the step, and per-token metrics [N]."""
    loss_N, metrics = loss_of_tokens(objective, inputs, clip)
    loss = (inputs.weights * loss_N).sum()
    if objective.entropy_coef:
        assert inputs.entropy is not None
        assert inputs.entropy_weights is not None
        loss = loss - objective.entropy_coef * (inputs.entropy_weights * inputs.entropy).sum()
    if torch.is_grad_enabled() and inputs.logp.requires_grad and not loss.requires_grad:
        raise PluginError("the loss does not depend on inputs.logp, so nothing would be learned")
    return loss, metrics


def completion_sums(
    values_N: Tensor, completions_N: Tensor, num_completions: int | None = None
) -> Tensor:
    """The sum of `values_N` over the completion each token belongs to, given to each token [N].

    `num_completions` is above all of `completions_N`; None: read from there.
    """
    size = num_completions
    if size is None:
        size = int(completions_N.max()) + 1 if len(completions_N) else 0
    sums_size_1 = sums_at(values_N, completions_N, size)[:, None]
    return rows_at(sums_size_1, completions_N)[:, 0]


def completion_means(
    values_N: Tensor, completions_N: Tensor, num_completions: int | None = None
) -> Tensor:
    """The mean of `values_N` over the completion each token belongs to, given to each token [N]."""
    counts_N = completion_sums(torch.ones_like(values_N), completions_N, num_completions)
    return completion_sums(values_N, completions_N, num_completions) / counts_N


def sampling_weights(
    logp_old: Tensor,
    logp_sampler: Tensor,
    completions_N: Tensor,
    mode: str,
    cap: float,
    num_completions: int | None = None,
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
        difference = completion_sums(difference, completions_N, num_completions)
    ratio = torch.exp(difference)
    return ratio.clamp(max=cap) if what == "truncate" else ratio.masked_fill(ratio > cap, 0.0)


def off_policy_mask(inputs: LossInputs, threshold: float) -> Tensor:
    """0 [N] for completions with A < 0 that the policy has moved away from, 1 for all others.

    Moved away: the mean over the completion of log pi_sampler - log pi is above `threshold`, in
    nats per token. Such completions push hard on what the policy would no longer write
    (DeepSeek-V3.2, 2512.02556, equation 9; TRL's `off_policy_mask_threshold`).
    """
    drift = completion_means(
        inputs.logp_sampler - inputs.logp.detach(), inputs.completions, inputs.num_completions
    )
    return ((inputs.advantages >= 0) | (drift <= threshold)).to(inputs.logp.dtype)


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
    right gradient already, so there the ratio is a constant. With sequence-level ratios this holds
    on-policy only, in TRL as here.
    """
    assert inputs.logp_ref is not None
    kl = kl_estimate(inputs.logp, inputs.logp_ref, estimator)
    return kl * (ratio.detach() if estimator == "k2" else ratio)


def clipped_surrogate(inputs: LossInputs, clip: Clip, /) -> TokenLossResult:
    """-min(ratio * A, clip(ratio) * A), per token (PPO 1707.06347; GRPO 2402.03300).

    `epsilon_high` above `epsilon` lets rare good tokens grow (DAPO, 2503.14476). With `delta` the
    unclipped ratio is capped as well, which bounds the loss of tokens with a negative advantage
    (INTELLECT-2, 2505.07291). With sequence-level ratios this is GSPO's (2507.18071).
    """
    low, high = 1 - clip.epsilon, 1 + clip.high
    ratio = inputs.ratio()
    clipped = ratio.clamp(low, high)
    if clip.delta is not None:
        ratio = ratio.clamp(max=clip.delta)
    loss = -torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)

    seen = ratio.detach()
    low_clipped = (seen < low) & (inputs.advantages < 0)
    high_clipped = (seen > high) & (inputs.advantages > 0)
    return loss, {
        "clip_ratio/low_mean": low_clipped.to(seen.dtype),
        "clip_ratio/high_mean": high_clipped.to(seen.dtype),
        "clip_ratio/region_mean": (low_clipped | high_clipped).to(seen.dtype),
    }


def cispo(inputs: LossInputs, clip: Clip, /) -> TokenLossResult:
    """-stop(min(ratio, epsilon_high)) * A * log pi: REINFORCE with a capped importance weight.

    The clip limits how much a token counts and never silences it (MiniMax-M1, 2506.13585).
    `epsilon_high` is the cap itself here, not a distance from 1; ScaleRL (2510.13786) uses 5.
    """
    ratio = inputs.ratio().detach()
    loss = -ratio.clamp(max=clip.high) * inputs.advantages * inputs.logp
    capped = (ratio > clip.high) & (inputs.advantages > 0)
    return loss, {"cispo_clip_ratio": capped.to(ratio.dtype)}


def sapo(
    inputs: LossInputs,
    clip: Clip,
    /,
    *,
    sapo_temperature_pos: float,
    sapo_temperature_neg: float,
) -> TokenLossResult:
    """-4/t * sigmoid(t (ratio - 1)) * A, t by the sign of A (SAPO, 2511.20347).

    The gate has slope 1 at ratio 1, as the surrogate, and fades on both sides instead of ending
    at a clip; a higher temperature `t` fades sooner.
    """
    ratio, advantages = inputs.ratio(), inputs.advantages
    t = torch.where(advantages > 0, sapo_temperature_pos, sapo_temperature_neg).to(ratio.dtype)
    return -torch.sigmoid(t * (ratio - 1)) * 4 / t * advantages, {}


def vespo(
    inputs: LossInputs,
    clip: Clip,
    /,
    *,
    vespo_k_pos: float,
    vespo_lambda_pos: float,
    vespo_k_neg: float,
    vespo_lambda_neg: float,
) -> TokenLossResult:
    """-stop(phi(W)) * A * log pi with phi(W) = W^k exp(lambda (1 - W)) (VESPO, 2602.10693).

    W is the ratio of the whole completion, the product over its tokens and not their mean, times
    the correction for the sampler, which therefore must not be applied a second time. k and lambda
    go by the sign of A. phi(1) = 1; k sets how fast it falls below, lambda above. The clamps of the
    logarithms are TRL's and the authors'.
    """
    smallest = math.log(1e-8)
    with torch.no_grad():
        terms = (inputs.logp - inputs.logp_old).clamp(-20.0, 20.0)
        if inputs.correction is not None:
            terms = terms + torch.log(inputs.correction).clamp(smallest, 20.0)
        sums = completion_sums(terms, inputs.completions, inputs.num_completions)
        log_w = sums.clamp(smallest, 20.0)
        good = inputs.advantages >= 0
        k = torch.where(good, vespo_k_pos, vespo_k_neg).to(log_w.dtype)
        decay = torch.where(good, vespo_lambda_pos, vespo_lambda_neg).to(log_w.dtype)
        phi = torch.exp(decay + k * log_w - decay * torch.exp(log_w))
    return -phi * inputs.advantages * inputs.logp, {"vespo/phi_seq_mean": phi}
