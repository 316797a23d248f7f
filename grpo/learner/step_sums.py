"""What the learner reports of a rollout batch: sums over micro-batches and ranks, then means."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from grpo.errors import PluginError
from grpo.method.losses import LossInputs
from grpo.model.devices import choices
from grpo.model.transfer import to_host
from grpo.types import Metrics

if TYPE_CHECKING:
    from grpo.model.ranks import Ranks

# Importance ratios count up to here, before any correction: a single token that the policy has come
# to find likely says nothing about the others.
LARGEST_RATIO = 10.0
# Names of the learner's own metrics, and beginnings of them, that no token loss may use.
TAKEN = ("loss", "grad_norm", "learning_rate")
TAKEN_BELOW = ("optimizer_steps", "learner/", "sampling/ess", "sampling/sampling_logp_difference/")


class Sums:
    """Sums over each micro-batch, kept on the device: all are read in one copy a rollout batch."""

    def __init__(self) -> None:
        self.loss: list[Tensor] = []
        self.tokens = 0
        self.sums: dict[str, list[Tensor]] = {}
        self.sampled_tokens = 0
        self.differences: list[Tensor] = []
        self.largest: list[Tensor] = []
        self.ratios: list[Tensor] = []
        self.squares: list[Tensor] = []

    def add(
        self,
        loss: Tensor,
        inputs: LossInputs,
        metrics: dict[str, Tensor],
        *,
        tokens: int,
        sampled: bool,
    ) -> None:
        """Add one micro-batch of so many tokens that weigh something.

        `sampled`: its old log-probs are still to be compared.
        """
        real = (inputs.weights != 0).to(inputs.weights.dtype)
        self.loss.append(loss.detach())
        self.tokens += tokens
        for name, values in metrics.items():
            self.sums.setdefault(name, []).append((values * real).sum())
        if sampled:
            signed = inputs.logp_old.detach() - inputs.logp_sampler
            difference = signed.abs() * real
            self.sampled_tokens += tokens
            self.differences.append(difference.sum())
            ratio = torch.exp(signed.clamp(max=math.log(LARGEST_RATIO))) * real
            self.ratios.append(ratio.sum())
            self.squares.append(ratio.square().sum())
            self.largest.append(difference.max())

    def metrics(self, ranks: Ranks, steps: int) -> Metrics:
        """Means over the tokens of all ranks; the loss is the mean over optimizer steps."""
        if not self.loss:  # on any rank: all have the same number of micro-batches
            return {"loss": 0.0}
        names = sorted(self.sums)
        parts = [self.loss, self.differences, self.ratios, self.squares, self.largest]
        parts += [self.sums[name] for name in names]
        read = iter(to_host(*(value for part in parts for value in part)))
        loss, differences, ratios, squares, largest, *rest = (
            [float(next(read)) for _ in part] for part in parts
        )
        # A loss may have a metric in some micro-batches only: sums meet by name, not by place.
        everywhere = ranks.gather([(max(largest, default=0.0), names)])
        totals = dict(zip(names, map(sum, rest), strict=True))
        names = sorted({name for _, theirs in everywhere for name in theirs})
        local = [
            sum(loss),
            float(self.tokens),
            float(self.sampled_tokens),
            sum(differences),
            sum(ratios),
            sum(squares),
            *(totals.get(name, 0.0) for name in names),
        ]
        loss, tokens, sampled, difference, ratios, squares, *rest = _summed(local, ranks)
        means = {n: s / max(tokens, 1) for n, s in zip(names, rest, strict=True)}
        if taken := [name for name in names if name in TAKEN or name.startswith(TAKEN_BELOW)]:
            raise PluginError(
                f"the token loss returned a metric {taken[0]!r}, which is the learner's own; give "
                "it another name"
            )
        return {
            "loss": loss / steps,
            **means,
            # the share of tokens that sampling from the policy would need for the same variance
            "sampling/ess": ratios**2 / (squares * max(sampled, 1)) if squares else 1.0,
            "sampling/sampling_logp_difference/mean": difference / max(sampled, 1),
            "sampling/sampling_logp_difference/max": max(most for most, _ in everywhere),
        }


def _summed(values: list[float], ranks: Ranks) -> list[float]:
    """The sums over ranks; of one alone they do not travel."""
    if ranks.count == 1:
        return values
    wide = choices(ranks.device).widest
    return ranks.sum(torch.tensor(values, dtype=wide, device=ranks.device)).tolist()
