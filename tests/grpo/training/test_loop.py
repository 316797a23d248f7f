"""One step on protocols alone: a scripted engine, a learner that only counts, a real reward set."""

from __future__ import annotations

import signal

import numpy as np
import pytest

from grpo.data.source import TaskOrder
from grpo.errors import PluginError, RewardError, WeightsError
from grpo.method.table import bound_advantage
from grpo.method.token_values import checked_advantages
from grpo.rewards.compose import RewardSet
from grpo.rollout.fake import FakeEngine
from grpo.training.drawing import RolloutSpec
from grpo.training.loop import TrainerParts, train
from grpo.training.schedule import RolloutScheduler
from grpo.types import Prompt, Sampling, Score, Task, Version
from tests.grpo.rows import group


class Source:
    def __init__(self, endless=False):
        self.endless = endless

    def size(self, split):
        return None if self.endless else 6

    def task(self, split, index):
        return Task(uid=str(index % 6), prompt=str(index % 6))


class Template:
    """Task 0 is too long."""

    def __init__(self):
        self.counts = {"rendered": 0, "dropped": 0, "truncated": 0}

    def render(self, task):
        self.counts["dropped" if task.uid == "0" else "rendered"] += 1
        return None if task.uid == "0" else Prompt(task=task, text=task.uid, ids=(1, 2))


class Letters:
    def encode(self, text, add_special_tokens):
        return [ord(c) for c in text]

    def decode(self, ids, skip_special_tokens):
        return "".join(map(chr, ids))


class Learner:
    """Remembers its rows; its weights have as many versions as there were steps."""

    rank, num_ranks = 0, 1

    def __init__(self):
        self.seen = []

    def step(self, rows):
        self.seen.append(rows)
        return {"loss": 0.0}

    def gather(self, objects):
        return objects

    def version(self):
        return Version(step=len(self.seen), hash="h")

    def weights(self):
        return []

    def canary(self):
        return 0.0


def reward(*, completions, log_metric, **columns):
    log_metric("letters", len(completions[0]))
    return [float(c == "a") for c in completions]


def parts(engine=None, rewards=None, tasks=None, **overrides):
    letters = "ab"
    scripted = FakeEngine(lambda r, i: letters[i % 2], Letters(), version=Version(step=0, hash="h"))
    spec = RolloutSpec(
        tasks=tasks or TaskOrder(Source(), "train", seed=0),
        template=Template(),
        sampling=Sampling(max_tokens=4),
        prompts_per_step=5,
        num_generations=2,
        seed=0,
    )
    rewards = rewards or RewardSet([("mine", reward, 1.0)])
    settings = {
        "spec": spec,
        "rollouts": RolloutScheduler(spec, engine or scripted, rewards, last=10),
        "learner": Learner(),
        "advantage": bound_advantage("dr_grpo"),
        "loss_type": "dapo",
        "beta": 0.0,
        "mask_truncated": False,
        "num_minibatches": 1,
    }
    built = TrainerParts(**{**settings, **overrides})
    built.rollouts.deliver(built.learner, 0)
    return built


def test_a_step_learns_from_what_was_scored():
    built = parts()
    (step,) = train(built, start=0, max_steps=1)
    (rows,) = built.learner.seen
    assert [float(row.columns["advantages"][0]) for row in rows] == [0.5, -0.5] * 5
    assert step.metrics["reward"] == 0.5
    np.testing.assert_array_equal(step.advantages_P_G, [[0.5, -0.5]] * 5)
    assert built.rollouts.engine.versions[-1] == Version(step=1, hash="h")


def test_prompts_left_out_and_what_rewards_log_reach_the_metrics():
    steps = list(train(parts(), start=0, max_steps=6))  # 30 prompts of 5 in 6 tasks: 6 epochs
    dropped = [step.metrics["prompts/dropped"] for step in steps]
    assert 5 <= sum(dropped) <= 6
    assert max(dropped) <= 2
    assert all(step.metrics["letters"] == 1.0 for step in steps)


def test_a_metric_with_two_sources_is_named():
    def logs_loss(*, completions, log_metric, **columns):
        log_metric("loss", 1.0)
        return [float(c == "a") for c in completions]

    built = parts(rewards=RewardSet([("mine", logs_loss, 1.0)]))
    with pytest.raises(PluginError, match=r"metric 'loss' comes twice.*your reward logs"):
        next(train(built, start=0, max_steps=1))


@pytest.mark.parametrize("endless", [False, True])
def test_repeated_prompts_draw_fresh_noise(endless):
    built = parts(tasks=TaskOrder(Source(endless), "train", seed=0))
    list(train(built, start=0, max_steps=6))
    keys = [request.key for request in built.rollouts.engine.requests]
    assert len({key[2] for key in keys}) == 5  # five different prompts
    assert len(set(keys)) == len(keys) == 30


def test_an_engine_with_other_weights_stops_the_run():
    stale = FakeEngine(lambda r, i: "a", Letters(), version=Version(step=0, hash="h"), canary=-1.0)
    with pytest.raises(WeightsError, match="computes with other weights"):
        parts(stale)


def test_a_reward_that_sets_an_alarm_is_called_on_the_main_thread():
    def alarmed(*, completions, **columns):
        signal.setitimer(signal.ITIMER_REAL, 100)  # raises anywhere but on the main thread
        signal.setitimer(signal.ITIMER_REAL, 0)
        return [float(c == "a") for c in completions]

    rewards = RewardSet([("alarmed", alarmed, 1.0)])
    (step,) = train(parts(rewards=rewards), start=0, max_steps=1)
    assert step.metrics["reward"] == pytest.approx(0.5)


def test_the_reward_std_is_the_batchs_as_in_trl():
    (step,) = train(parts(), start=0, max_steps=1)
    values = [r.score.value for group in step.groups for r in group.rollouts]
    assert step.metrics["reward_std"] == pytest.approx(np.std(values, ddof=1))


@pytest.mark.parametrize("broken", [lambda r, _: r[0], lambda r, _: np.full_like(r, np.nan)])
def test_an_advantage_plug_in_that_returns_nonsense_is_named(broken):
    with pytest.raises(PluginError, match=r"algorithm\.advantage returned shape"):
        list(train(parts(advantage=broken), start=0, max_steps=1))


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (lambda r, _: [[0.5], [1.0, 2.0]], "returned list, which is no array of numbers"),
        (lambda r, _: None, "returned NoneType, which is no array of numbers"),
        (lambda r, _: r.astype(complex), "returned ndarray, which is no array of numbers"),
        (lambda r, _: np.full_like(r, 1e300), "10 values that are not finite in float32"),
    ],
)
def test_an_advantage_that_is_no_number_or_none_of_float32_is_named(broken, says):
    with pytest.raises(PluginError, match=says):
        list(train(parts(advantage=broken, mask_truncated=False), start=0, max_steps=1))


def test_an_advantage_for_a_completion_without_a_reward_would_be_learned_from():
    groups = [group(0, 3, [1, 1, 1], [1.0, None, 0.0])]
    np.testing.assert_array_equal(checked_advantages(np.array([[1, 0, -1]]), groups), [[1, 0, -1]])
    with pytest.raises(PluginError, match=r"returned -0\.5 for a completion without a reward"):
        checked_advantages(np.array([[1.0, -0.5, 0.0]]), groups)


class Graded:
    """A verifier that fails on every completion of the first `failing` groups, and says why."""

    def __init__(self, failing):
        self.failing = failing

    def scores(self, *, completions, **columns):
        self.failing -= 1
        if self.failing >= 0:
            why = "worker: ImportError: gone"
            return [Score(value=None, status="grader_error", detail=why) for _ in completions]
        return [Score(value=float(c == "a"), status="correct") for c in completions]


def test_a_first_batch_on_which_every_grader_fails_stops_the_run_before_it_learns():
    built = parts(rewards=RewardSet([("checked", Graded(failing=5), 1.0)]))
    said = r"step 1: a grader failed on 10 of 10 .* checked: worker: ImportError: gone"
    with pytest.raises(RewardError, match=said):
        list(train(built, start=0, max_steps=2))
    assert built.learner.seen == []


def test_graders_that_fail_on_a_part_of_a_batch_are_a_warning():
    built = parts(rewards=RewardSet([("checked", Graded(failing=1), 1.0)]))
    first, second = train(built, start=0, max_steps=2)
    assert first.metrics["frac_unscored"] == pytest.approx(0.2)
    assert first.warning == (
        "a grader failed on 2 of 10 completions, which are unscored; most often: "
        "checked: worker: ImportError: gone"
    )
    assert second.warning == ""


def test_graders_that_fail_in_the_middle_of_a_run_do_not_end_it():
    graded = Graded(failing=0)
    steps = train(parts(rewards=RewardSet([("checked", graded, 1.0)])), start=0, max_steps=3)
    assert next(steps).warning == ""
    graded.failing = 5
    assert "failed on 10 of 10" in next(steps).warning
    assert next(steps).warning == ""
