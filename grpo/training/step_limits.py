"""How far the learner's log-probs of a step's tokens may be from the sampler's.

The gate (`grpo/training/agreement.py`) checks now and then. These figures cost nothing, so every
step has limits for them.
"""

from __future__ import annotations

from dataclasses import dataclass

from grpo.errors import AgreementError
from grpo.types import Metrics


@dataclass(frozen=True, kw_only=True)
class StepLimits:
    """The limits of any step. 0 lifts either.

    `difference`: mean |sampler - learner| log-prob in nats a token, for each step that the schedule
    lets the weights differ, and one more. `ess`: effective share of samples under the importance
    ratios, 0 to 1.
    """

    difference: float
    ess: float
    staleness: int = 0

    def check(self, step: int, metrics: Metrics) -> None:
        """Raise AgreementError where a step's `metrics` pass a limit.

        The step is neither delivered nor saved then.
        """
        apart = metrics.get("sampling/sampling_logp_difference/mean", 0.0)
        share = metrics.get("sampling/ess", 1.0)
        lag = 1 + self.staleness
        fault = ""
        if self.difference and not apart <= self.difference * lag:
            times = f" times {lag} for a schedule {self.staleness} steps behind" if lag > 1 else ""
            fault = (
                f"differ from the learner's by {apart:.3f} nats a token "
                f"(agreement.max_step_difference = {self.difference}{times})"
            )
        elif self.ess and not share >= self.ess:
            fault = (
                f"leave an effective sample size of {share:.3f} of the tokens "
                f"(agreement.min_ess = {self.ess})"
            )
        if fault:
            behind = ", or the policy moves too fast for the schedule" if lag > 1 else ""
            raise AgreementError(
                f"step {step}: the log-probs that came with its completions {fault}: the engine "
                f"draws from another policy, or reports another{behind}. This step was neither "
                "delivered nor saved. Look at the engine's settings (precision, cache, "
                f"speculation){', lower learner.learning_rate' if behind else ''}, or set the "
                "limit to 0 to train on all the same"
            )
