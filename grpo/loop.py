"""GRPO, one step on one screen.

    draw prompts -> sample groups -> score -> advantages -> rows -> learn -> deliver weights

What is left out of the papers' method, and why: no critic (the group is the baseline), no KL in
the reward (it is a term of the loss, off unless `algorithm.beta` > 0), no reward shaping (rewards
are plug-ins). The loop knows protocols only: which engine samples, which rewards judge and which
learner learns is wired in `grpo/stages/wiring.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from grpo.advantage import reward_matrix
from grpo.batch import drop_dead, group_metrics, make_rows
from grpo.data.prompts import PromptTemplate
from grpo.data.source import TaskOrder, stable_hash
from grpo.errors import DataError, PluginError, WeightsError
from grpo.metrics import rollout_metrics
from grpo.rewards.compose import RewardSet
from grpo.rewards.sentinel import sentinel
from grpo.rollout.collect import collect
from grpo.types import (
    Completion,
    Engine,
    Group,
    Learner,
    Metrics,
    Prompt,
    Request,
    Rollout,
    Sampling,
    Score,
    Verifier,
    Version,
)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything a step uses; built once by the composition root."""

    tasks: TaskOrder
    template: PromptTemplate
    engine: Engine
    rewards: RewardSet
    learner: Learner
    advantage: Callable[[np.ndarray], np.ndarray]
    sampling: Sampling
    prompts_per_step: int
    num_generations: int
    loss_type: str
    beta: float
    mask_truncated: bool
    num_minibatches: int
    seed: int
    second: Verifier | None = None  # judges a sample of each step's completions once more


@dataclass(frozen=True, kw_only=True)
class TrainerState:
    """What rewards may know of the run, by TRL's name."""

    global_step: int


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one step did."""

    step: int
    groups: Sequence[Group]
    advantages_P_G: np.ndarray
    metrics: Metrics


def train(parts: Parts, *, start: int, max_steps: int) -> Iterator[Step]:
    """Yield each finished step from `start` + 1 to `max_steps`; the caller logs and saves."""
    for step in range(start + 1, max_steps + 1):
        yield train_step(parts, step)


def train_step(parts: Parts, step: int) -> Step:
    """One step of GRPO: sample, score, compare within groups, learn, hand the weights over."""
    started = time.perf_counter()
    drawn, overlong = draw(parts)
    groups = sample_groups(parts, drawn, step)
    sampled = time.perf_counter()

    rewards_P_G = reward_matrix(groups)
    advantages_P_G = checked(parts.advantage(rewards_P_G), rewards_P_G)
    rows = make_rows(
        groups,
        advantages_P_G,
        loss_type=parts.loss_type,
        max_completion_length=parts.sampling.max_tokens,
        mask_truncated=parts.mask_truncated,
        num_minibatches=parts.num_minibatches,
        all_reduce=parts.learner.all_reduce,
    )
    live, dropped = drop_dead(rows, beta=parts.beta, loss_type=parts.loss_type)
    learned = parts.learner.step(live)
    trained = time.perf_counter()

    deliver(parts.learner, parts.engine)
    finished = time.perf_counter()
    seconds = {
        "step_time": finished - started,
        "time/rollout": sampled - started,
        "time/learn": trained - sampled,
        "time/weights": finished - trained,
    }
    names = [name for name, _, _ in parts.rewards.rewards]
    sampling = rollout_metrics(groups, names) | group_metrics(groups)
    logged = parts.rewards.take_metrics()
    watched = sentinel(groups, parts.second)
    metrics = logged | sampling | watched | overlong | dropped | learned | seconds
    metrics["tokens_per_second"] = metrics["completions/num_tokens"] / seconds["step_time"]
    return Step(step=step, groups=groups, advantages_P_G=advantages_P_G, metrics=metrics)


def checked(advantages_P_G: np.ndarray, rewards_P_G: np.ndarray) -> np.ndarray:
    """The advantages, if they are what a plug-in has to return. Raises PluginError."""
    found = np.asarray(advantages_P_G, dtype=np.float64)
    if found.shape != rewards_P_G.shape or not np.isfinite(found).all():
        raise PluginError(
            f"algorithm.advantage returned shape {found.shape} with "
            f"{int(np.sum(~np.isfinite(found)))} values that are not finite; it has to return "
            f"finite numbers of shape {rewards_P_G.shape}, 0 where the reward is NaN"
        )
    return found


def draw(parts: Parts) -> tuple[list[tuple[Prompt, int]], Metrics]:
    """The next prompts that fit, each with its visit number; how many were too long."""
    drawn: list[tuple[Prompt, int]] = []
    before = dict(parts.template.counts)
    refused = 0
    while len(drawn) < parts.prompts_per_step:
        for task, visit in parts.tasks.take(parts.prompts_per_step - len(drawn)):
            prompt = parts.template.render(task)
            if prompt is None:
                refused += 1
            else:
                drawn.append((prompt, visit))
        if refused > 1000 + 100 * parts.prompts_per_step:
            raise DataError(
                f"{refused} prompts of one step are longer than data.max_prompt_length; raise it, "
                "or set data.overlong=truncate"
            )
    now = parts.template.counts
    return drawn, {f"prompts/{k}": float(now[k] - before[k]) for k in ("dropped", "truncated")}


def sample_groups(parts: Parts, drawn: Sequence[tuple[Prompt, int]], step: int) -> list[Group]:
    """Sample and score one group per prompt.

    A group is scored as soon as it is complete: in a thread, while sampling goes on, if the rewards
    allow it; plain callables run in this one, since some set alarms, which only a main thread may.
    """
    requests = [
        Request(
            uid=f"{place}",
            ids=prompt.ids,
            n=parts.num_generations,
            sampling=parts.sampling,
            key=(parts.seed, 0, stable_hash(prompt.task.uid), visit),
        )
        for place, (prompt, visit) in enumerate(drawn)
    ]
    state = TrainerState(global_step=step)
    finished: dict[int, tuple[Sequence[Completion], Future[list[Score]]]] = {}
    with ThreadPoolExecutor(1, "grpo-rewards") as scorer:
        for uid, completions in collect(parts.engine, requests):
            scores = scorer.submit if parts.rewards.threadsafe else _at_once
            prompt = drawn[int(uid)][0]
            finished[int(uid)] = (
                completions,
                scores(parts.rewards.score, prompt, completions, state),
            )
    groups: list[Group] = []
    for place, (prompt, visit) in enumerate(drawn):
        completions, scores = finished[place]
        rollouts = tuple(
            Rollout(prompt=prompt, completion=completion, score=score)
            for completion, score in zip(completions, scores.result(), strict=True)
        )
        groups.append(Group(prompt=prompt, visit=visit, rollouts=rollouts))
    return groups


def _at_once(call: Callable[..., list[Score]], *arguments: Any) -> Future[list[Score]]:
    future: Future[list[Score]] = Future()
    future.set_result(call(*arguments))
    return future


def deliver(learner: Learner, engine: Engine) -> Version:
    """Hand the policy's weights to the engine and believe nothing but its acknowledgment."""
    version = learner.version()
    ack = engine.load_weights(learner.weights(), version)
    if ack.version != version:
        raise WeightsError(
            f"the engine acknowledged weights {ack.version}, but the learner sent {version}; "
            "rollouts from these weights would train on wrong log-probs"
        )
    expected = learner.canary()
    if abs(ack.canary - expected) > 0.02 * max(1.0, abs(expected)):
        raise WeightsError(
            f"after loading weights {version} the engine's canary log-prob is {ack.canary:.4f}, "
            f"the learner's {expected:.4f}: it computes with other weights"
        )
    return version
