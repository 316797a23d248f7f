"""Policy and reference as the learner scores with them: in its compute type, as was sampled."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from grpo.learner.forward import TokenScores, Want
from grpo.learner.packing import MicroBatch, Placed, place
from grpo.method.losses import Columns, LossInputs, sampling_weights
from grpo.model.adapter import base_alone
from grpo.model.ranks import Ranks, unwrapped
from grpo.model.transfer import to_host
from grpo.types import Row, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from grpo.config.schema import Algorithm

# Columns that are fields of `LossInputs`; all others are found in its `columns` alone.
OWN = {field.name for field in fields(LossInputs)}


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """Passes over micro-batches and over the canary tokens. Every method is collective."""

    model: PreTrainedModel
    policy: nn.Module  # a `Policy` around `model`, wrapped for the ranks
    reference: nn.Module | None  # the same of a reference; None: the base under an adapter
    ranks: Ranks
    compute_dtype: torch.dtype
    temperature: float  # of rows that name no other
    truncation: Sampling | None

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """The compute type, within."""
        if self.compute_dtype is torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.ranks.device.type, dtype=self.compute_dtype)

    def score(self, placed: Placed, want: Sequence[Want] = ()) -> TokenScores:
        """Under the policy, of the distribution that was sampled, with gradient."""
        with self.autocast():
            return self.policy(placed, self._temperature(placed), self.truncation, want)

    @torch.no_grad()
    def score_alone(self, placed: Placed, want: Sequence[Want] = ()) -> TokenScores:
        """The same without gradient."""
        found = self.score(placed, want)
        self.ranks.release(self.policy)
        return found

    @torch.no_grad()
    def reference_logp(self, placed: Placed) -> Tensor:
        """Log-probs [N] under the reference, which is never truncated."""
        policy = self.policy if self.reference is None else self.reference
        alone = base_alone(self.model) if self.reference is None else contextlib.nullcontext()
        with alone:
            with self.autocast():
                found = policy(placed, self._temperature(placed)).logp
            self.ranks.release(policy)
        return found

    @torch.no_grad()
    def canary(self) -> float:
        """Summed log-prob of the canary tokens."""
        with self.autocast():
            found = unwrapped(self.policy).canary_logprob()
        self.ranks.release(self.policy)
        return found

    @torch.no_grad()
    def canary_logits(self) -> Tensor:
        """Their logits, in the weights' own types."""
        found = unwrapped(self.policy).canary_logits()
        self.ranks.release(self.policy)
        return found

    def loss_inputs(self, placed: Placed, algorithm: Algorithm) -> LossInputs:
        """What the loss of a micro-batch is computed from."""
        scores = self.score(placed)
        columns: dict[str, Any] = {"logp_old": scores.logp.detach(), "logp_ref": None}
        columns |= placed.columns
        num_completions = placed.batch.num_completions
        correction = sampling_weights(
            columns["logp_old"],
            columns["logp_sampler"],
            placed.completions,
            algorithm.sampling_correction,
            algorithm.sampling_correction_cap,
            num_completions,
        )
        return LossInputs(
            logp=scores.logp,
            entropy=scores.entropy,
            completions=placed.completions,
            num_completions=num_completions,
            correction=correction,
            columns=Columns(placed.columns),
            **{name: column for name, column in columns.items() if name in OWN},
        )

    def logprobs(self, rows: Sequence[Row], batches: Sequence[MicroBatch]) -> list[np.ndarray]:
        """Log-probs of each row's tokens, float32 [T]; NaN where not trained on."""
        found = [np.full(len(row.ids), np.nan, dtype=np.float32) for row in rows]
        scored = self._by_row(batches, lambda scores: scores.logp.float())
        for index, (row, whole) in enumerate(zip(rows, found, strict=True)):
            whole[row.mask] = scored[index]
        return found

    def surprise(self, rows: Sequence[Row], batches: Sequence[MicroBatch]) -> np.ndarray:
        """float64 [3, N] of the rows' trained tokens, row after row, in order.

        The policy's log-prob, the entropy it was drawn at and the variance of -log p there; see
        `forward.token_scores`.
        """

        def stacked(scores: TokenScores) -> Tensor:
            return torch.stack([score.double() for score in scores if score is not None])

        found = self._by_row(batches, stacked, ("variance",))
        columns = [found[index] for index in range(len(rows))]
        return np.concatenate(columns, axis=1) if columns else np.zeros((3, 0))

    def _by_row(
        self,
        batches: Sequence[MicroBatch],
        of: Callable[[TokenScores], Tensor],
        want: Sequence[Want] = (),
    ) -> dict[int, np.ndarray]:
        """Scores [..., N] of micro-batches as those of each row; all come in one copy."""
        placed = [place(batch, self.ranks.device) for batch in batches]
        scores = to_host(*(of(self.score_alone(part, want)) for part in placed))
        return {
            index: score_N[..., batch.completions == number]
            for batch, score_N in zip(batches, scores, strict=True)
            for number, index in enumerate(batch.rows)
        }

    def _temperature(self, placed: Placed) -> float:
        own = placed.batch.temperature
        return self.temperature if own is None else own
