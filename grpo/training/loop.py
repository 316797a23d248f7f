"""GRPO, one step on one screen.

    take a batch of scored groups -> advantages -> rows -> learn -> deliver weights

What is left out of the papers' method, and why: no critic (the group is the baseline), no KL in
the reward (it is a term of the loss, off unless `algorithm.beta` > 0), no reward shaping (rewards
are plug-ins). The loop knows protocols only: which engine samples, which rewards judge and which
learner learns is wired in `grpo/stages/wiring.py`; whether the next batch is being sampled
meanwhile is the business of `grpo/training/schedule.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from grpo.errors import PluginError, RewardError
from grpo.method.advantage import reward_matrix
from grpo.method.objective import Objective
from grpo.method.token_values import TokenValues, checked_advantages
from grpo.method.weighted_rows import drop_dead, make_rows, rank_share
from grpo.rewards.sentinel import sentinel
from grpo.training.agreement import AgreementGate
from grpo.training.drawing import RolloutSpec, with_temperatures
from grpo.training.gathering import Batch
from grpo.training.rollout_metrics import (
    grader_failure,
    group_metrics,
    part_metrics,
    rollout_metrics,
)
from grpo.training.schedule import RolloutScheduler
from grpo.training.step_limits import StepLimits
from grpo.types import Group, Learner, Metrics, Verifier

FAILURES = 0.1  # share of a batch that graders may fail on without a word


@dataclass(frozen=True, kw_only=True)
class TrainerParts:
    """Everything a step uses; built once by the composition root."""

    spec: RolloutSpec  # what the scheduler asks for
    rollouts: RolloutScheduler
    learner: Learner
    advantage: Callable[[np.ndarray, Sequence[Group]], Any]  # of rewards [P, G] and their groups
    loss_type: str | Objective
    beta: float
    mask_truncated: bool
    num_minibatches: int
    gate: AgreementGate | None = None  # compares the engines with the learner now and then
    limits: StepLimits | None = None  # of every step's gap between sampler and learner
    second: Verifier | None = None  # judges a sample of each step's completions once more


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one step did."""

    step: int
    groups: Sequence[Group]
    advantages_P_G: TokenValues  # of each group, of each completion: a number, or one a token [T]
    metrics: Metrics
    warning: str = ""  # what a person should know of it


def train(
    parts: TrainerParts,
    *,
    start: int,
    max_steps: int,
    begin: Callable[[int], None] = lambda _step: None,
) -> Iterator[Step]:
    """Yield each finished step from `start` + 1 to `max_steps`; the caller logs and saves.

    begin: called with the number of a step before its batch is taken.
    """
    for step in range(start + 1, max_steps + 1):
        begin(step)
        yield train_step(parts, step, first=step == start + 1)


def train_step(parts: TrainerParts, step: int, first: bool = False) -> Step:
    """One step of GRPO: compare within groups, learn, hand the weights over.

    first: nothing was scored before in this process. Raises RewardError then where no grader works.
    """
    started = time.perf_counter()
    spec, rollouts, learner = parts.spec, parts.rollouts, parts.learner
    watched = check_agreement(parts, step)
    batch = rollouts.take(step)
    watched |= check_batch(parts, batch)
    groups = everyones(batch, learner)
    warning = graders_work(groups, step, first)
    if spec.curriculum is not None:
        spec.curriculum.observe(step, learner.gather(batch.outcomes))
    sampled = time.perf_counter()

    advantages_P_G = checked_advantages(parts.advantage(reward_matrix(groups), groups), groups)
    rows = make_rows(
        groups,
        advantages_P_G,
        loss_type=parts.loss_type,
        max_completion_length=spec.max_tokens(step),
        mask_truncated=parts.mask_truncated,
        num_minibatches=parts.num_minibatches,
    )
    live, dropped = drop_dead(rows, beta=parts.beta, loss_type=parts.loss_type)
    share = rank_share(live, learner.rank, learner.num_ranks, parts.num_minibatches)
    learned = learner.step(with_temperatures(share, groups, spec.sampling))
    if parts.limits is not None:
        parts.limits.check(step, learned)
    trained = time.perf_counter()

    rollouts.deliver(learner, step)
    finished = time.perf_counter()
    seconds = {
        "step_time": finished - started,
        "time/rollout": sampled - started,
        "time/learn": trained - sampled,
        "time/weights": finished - trained,
    }
    names = [name for name, _, _ in rollouts.rewards.rewards]
    said = rollout_metrics(groups, names) | group_metrics(groups)
    said |= part_metrics(groups, spec.names)
    metrics = batch.metrics | said | sentinel(groups, parts.second) | dropped
    if taken := sorted(metrics.keys() & learned.keys()):
        raise PluginError(
            f"the metric {taken[0]!r} comes twice: from the learner and from sampling or scoring; "
            "give the one that your loss returns or your reward logs another name"
        )
    metrics |= learned
    metrics |= watched | seconds | rollouts.take_metrics(seconds["step_time"])
    metrics["tokens_per_second"] = metrics["completions/num_tokens"] / seconds["step_time"]
    return Step(
        step=step, groups=groups, advantages_P_G=advantages_P_G, metrics=metrics, warning=warning
    )


def graders_work(groups: Sequence[Group], step: int, first: bool) -> str:
    """A warning where graders failed on much of a batch, "" if not.

    Unscored completions teach nothing and look like a policy that does not move. Graders that fail
    on all of the first batch have never worked: RewardError. Later the cause may pass (an endpoint
    that is down), and a long run is not ended for it.
    """
    share, why = grader_failure(groups)
    if share == 1.0 and first:
        raise RewardError(
            f"step {step}: {why}. Nothing can be learned from that; see `grpo doctor`"
        )
    return why if share >= FAILURES else ""


def everyones(batch: Batch, learner: Learner) -> list[Group]:
    """The groups that all ranks sampled for this step, on every rank, in the order of the tasks.

    Advantages, denominators and figures are of the whole batch then, whoever computes them.
    """
    own = list(zip(batch.positions, batch.groups, strict=True))
    return [group for _, group in sorted(learner.gather(own), key=lambda pair: pair[0])]


def check_agreement(parts: TrainerParts, step: int) -> Metrics:
    """The gate's figures when a check is due before `step`. Raises AgreementError."""
    if parts.gate is None or not parts.gate.due(step):
        return {}
    with parts.rollouts.quiet():
        return parts.gate.check(parts.rollouts.engine, parts.learner, step)


def check_batch(parts: TrainerParts, batch: Batch) -> Metrics:
    """The gate's figures of the batch itself, at the same steps. Raises AgreementError.

    None where groups were chosen after they were sampled: the rest is no sample of the policy's.
    """
    if parts.gate is None or not parts.gate.due(batch.step) or parts.spec.chooses:
        return {}
    return parts.gate.check_batch(batch.groups, parts.learner, batch.step)
