"""The agreement gate: does this engine sample from the policy that learns?

Two questions, asked of each engine with fresh samples and the learner at the same weights.

Does it report the right log-probs? |sampler - learner| over the same tokens, mean and maximum, and
the KL divergence KL(sampler || learner) estimated by k3 (http://joschu.net/blog/kl-approx.html).

Does it draw from the distribution it reports? A sampler that is consistently wrong passes the first
question. Under the learner's own distribution each -log p has the entropy as its mean, and a
variance that is computed with it. So over all tokens

    z = sum(-log p - entropy) / sqrt(sum(variance))

is a standard normal number, whatever the lengths (the terms are martingale differences). Its
numerator is the derivative of the log-likelihood by the inverse temperature, so no test detects a
wrong temperature with fewer tokens: drawing at T / (1 - d) moves z by about d times
sqrt(sum(variance)).

Where the policy is nearly sure of every token, z is no longer normal: almost all of the variance is
in very rare tokens, and a single one that occurs by chance is many deviations out. Such tokens are
Poisson events. Without the two most surprising ones, z passes its limit as rarely as a normal
number does (in at most 1 of 10,000 checks, whatever their rate).

An engine can be right for probes and wrong for batches, which have other lengths and another load.
So both questions are asked of a step's batch as well when a check is due, and every step's trained
tokens have limits (`grpo/training/step_limits.py`), since their log-probs are known anyway.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from grpo.errors import AgreementError, EngineError
from grpo.training.probes import Probes, too_little
from grpo.types import Engine, EnginePool, Group, Learner, Metrics, Row

Z_LIMIT = 4.0  # a clean check fails once in 16,000
FEWEST = 512  # tokens of a batch below which nothing is said about it
LEAST = ("agreement/tokens",)  # figures whose worst value over several engines is the smallest
# figures of a batch's check that become metrics
BATCH = ("agreement/difference_mean", "agreement/z", "agreement/tokens")


@dataclass(frozen=True, kw_only=True)
class AgreementGate:
    """When engines are probed, and the limit: `max_difference`, the mean in nats a token."""

    probes: Probes
    steps: int  # between checks
    max_difference: float
    decode: Callable[[list[int]], str]

    def due(self, step: int) -> bool:
        """Whether `step` begins with a check."""
        return self.steps > 0 and (step - 1) % self.steps == 0

    def check(self, engine: Engine, learner: Learner, step: int) -> Metrics:
        """Check every engine behind `engine`; the figures of the worst. Raises EngineError.

        Nothing may be under way in the engine.
        """
        members = engine.members if isinstance(engine, EnginePool) else [("engine", engine)]
        found = [self._check(name, member, learner, step) for name, member in members]
        return {
            name: (min if name in LEAST else max)(figures[name] for figures in found)
            for name in found[0]
        }

    def _check(self, name: str, engine: Engine, learner: Learner, step: int) -> Metrics:
        rows: list[Row] = []
        surprise_3_N = np.zeros((3, 0))
        asked = 0  # completions of each prompt
        # on all ranks as many rounds: what the learner computes for them is collective
        while any(learner.gather([too_little(surprise_3_N)])):
            samples = self.probes.samples(surprise_3_N, asked)
            try:
                drawn = self.probes.draw(engine, step, len(rows), samples)
            except EngineError as error:
                raise EngineError(f"{name}: {error}") from error
            asked += samples
            if not drawn:
                raise AgreementError(
                    f"{name} with weights {learner.version()} returned no token for "
                    f"{len(self.probes.asked)} probes; nothing can be compared"
                )
            rows += drawn
            surprise_3_N = np.concatenate([surprise_3_N, learner.surprise(drawn)], axis=1)
        return self._judged(name, rows, surprise_3_N, learner)

    def check_batch(self, groups: Sequence[Group], learner: Learner, step: int) -> Metrics:
        """The same for a batch, before it is learned from; {} if it has too few tokens to tell.

        `groups` are all of this rank's, as they were sampled. Completions of older weights are left
        out, since they say nothing about the current ones. Raises AgreementError.
        """
        rows = self.probes.of_batch(groups, learner.version())
        surprise_3_N = learner.surprise(rows)
        if surprise_3_N.shape[1] < FEWEST:
            return {}
        found = self._judged(
            f"the engine, for the batch of step {step},", rows, surprise_3_N, learner
        )
        return {f"agreement/batch_{name.removeprefix('agreement/')}": found[name] for name in BATCH}

    def _judged(
        self, name: str, rows: Sequence[Row], surprise_3_N: np.ndarray, learner: Learner
    ) -> Metrics:
        """Both questions about the trained tokens of `rows`. Raises AgreementError."""
        logp_N, entropy_N, variance_N = surprise_3_N
        reported = [row.columns["logp_sampler"][row.mask] for row in rows]
        sampler_N = np.concatenate(reported).astype(np.float64)
        difference_N = np.abs(sampler_N - logp_N)
        with np.errstate(all="ignore"):  # a log-prob of -inf or NaN is an error below
            ratio_N = logp_N - sampler_N
            kl = float((np.expm1(ratio_N) - ratio_N).mean())
        deviation = math.sqrt(max(float(variance_N.sum()), 1e-12))
        excess_N = -logp_N - entropy_N
        z = float(excess_N.sum()) / deviation
        without_rare = float(np.sort(excess_N)[:-2].sum()) / deviation
        metrics = {
            "agreement/difference_mean": float(difference_N.mean()),
            "agreement/difference_max": float(difference_N.max()),
            "agreement/kl": kl,
            "agreement/z": abs(z),
            "agreement/tokens": float(len(logp_N)),
            # the relative error of the temperature that a check like this one would find
            "agreement/temperature_seen": (Z_LIMIT + 2) / deviation,
        }
        worst = int(difference_N.argmax())
        if not metrics["agreement/difference_mean"] <= self.max_difference:
            raise AgreementError(
                f"{name} with weights {learner.version()} reports other log-probs than the learner "
                f"computes: mean difference {difference_N.mean():.4f} nats over {len(logp_N)} "
                f"tokens, agreement.max_difference = {self.max_difference}. Worst: "
                f"{self._describe(rows, worst)}, sampler {sampler_N[worst]:.4f}, learner "
                f"{logp_N[worst]:.4f}"
            )
        if not (z >= -Z_LIMIT and without_rare <= Z_LIMIT):
            surprise, entropy = float(-logp_N.mean()), float(entropy_N.mean())
            raise AgreementError(
                f"{name} with weights {learner.version()} does not draw from the distribution it "
                f"reports: mean -log p of {len(logp_N)} sampled tokens is {surprise:.4f} nats, the "
                f"entropy they were drawn at {entropy:.4f} ({abs(z):.1f} standard errors apart); "
                f"samples are too {'random' if z > 0 else 'certain'}, as if the temperature were "
                f"{1 + z / deviation:.2f} times what was asked. Worst: "
                f"{self._describe(rows, int(np.argmax(excess_N)))}"
            )
        return metrics

    def _describe(self, rows: Sequence[Row], place: int) -> str:
        for row in rows:
            trained = np.flatnonzero(row.mask)
            if place < len(trained):
                at = int(trained[place])
                text = self.decode(row.ids[: at + 1].tolist())
                return f"token {int(row.ids[at])} at the end of {text[-60:]!r}"
            place -= len(trained)
        raise AssertionError("a place beyond the probes")
