"""Is the run still learning? Two faults in which every number is finite and no step fails.

    collapse    the reward has fallen and stays low, usually because the learning rate is too high
    standstill  from the first step on all completions of a prompt get the same reward, so that
                every advantage is 0

A run that has learned its tasks stands still too: groups that are all right are no fault.
"""

from __future__ import annotations

from grpo.types import Metrics

DEAD = 0.95  # share of groups whose rewards are all equal
SMOOTH = 0.5  # weight of a new step in the running mean
FALL = 1.0  # of the reward, in standard deviations within a batch, where groups still differ
FALL_DEAD = 0.25  # the same where they do not
STEPS = 2  # in a row
STANDSTILL = 3  # steps in a row, from the first
COMPLETIONS = 64  # in these steps at least: a few groups are equal by chance


class Health:
    """Watches the metrics of an rl stage, step after step."""

    def __init__(self) -> None:
        self._mean = 0.0
        self._peak = 0.0  # of the running mean
        self._spread = 0.0  # largest standard deviation of the rewards of a batch
        self._taught = False  # some group had unequal rewards
        self._low: list[float] = []  # completions of the steps in a row that were down
        self._still: list[float] = []  # the same of steps that taught nothing

    def observe(self, metrics: Metrics) -> dict[str, str]:
        """The faults that persist after this step: name -> a sentence with what to do."""
        if "reward" not in metrics or metrics.get("frac_unscored", 0.0) == 1.0:
            return {}
        reward, count = metrics["reward"], metrics.get("num_completions", 0.0)
        dead = metrics.get("frac_reward_zero_std", 0.0)
        right = metrics.get("frac_reward_zero_std/all_right", 0.0)
        first = not self._spread and not self._taught and not self._still
        fall = 0.0 if first else self._peak - reward
        down = fall > (FALL_DEAD if dead >= DEAD else FALL) * self._spread > 0
        self._low = [*self._low, count] if down and right < DEAD else []
        still = dead >= DEAD and right < DEAD and not self._taught
        self._still = [*self._still, count] if still else []
        self._taught |= dead < DEAD
        self._spread = max(self._spread, metrics.get("reward_std", 0.0))
        self._mean = reward if first else self._mean + SMOOTH * (reward - self._mean)
        self._peak = self._mean if first else max(self._peak, self._mean)
        return self._collapse(metrics, reward, dead) | self._standstill(metrics, reward)

    def _collapse(self, metrics: Metrics, reward: float, dead: float) -> dict[str, str]:
        if len(self._low) < STEPS or sum(self._low) < COMPLETIONS:
            return {}
        rate = metrics.get("learning_rate")
        now = f" (now {rate:g})" if rate is not None else ""
        nothing = f", and {dead:.0%} of the groups teach nothing" if dead >= DEAD else ""
        return {
            "collapse": f"the reward was {self._peak:.3g} and has been about {reward:.3g} for "
            f"{len(self._low)} steps{nothing}: the policy has collapsed. Stop, and start again "
            f"with a lower learner.learning_rate{now}, or with algorithm.beta above 0"
        }

    def _standstill(self, metrics: Metrics, reward: float) -> dict[str, str]:
        if len(self._still) < STANDSTILL or sum(self._still) < COMPLETIONS:
            return {}
        wrong = metrics.get("frac_reward_zero_std/all_wrong", 0.0) >= DEAD
        alike = "all completions of a prompt are paid alike"
        what = "every completion is wrong" if wrong else alike
        return {
            "standstill": f"{what} (reward {reward:.3g}) in all {len(self._still)} steps so far, "
            "so that nothing is learned. Read some completions; then try easier tasks, a cold "
            "start (docs/sft.md), more rollout.num_generations, or another reward"
        }
