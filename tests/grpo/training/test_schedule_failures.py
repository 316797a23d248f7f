"""How sampling ahead of learning fails: what reaches the caller, and what is left behind."""

from __future__ import annotations

import _thread
import signal
import threading
import time
from contextlib import closing
from dataclasses import replace

import pytest

from grpo.errors import EngineError, RewardError, WeightsError

from .pacing import (
    MODES,
    Learner,
    SlowEngine,
    Sure,
    plain,
    rollouts,
    spec,
    steps,
)


class Breaks(SlowEngine):
    def __init__(self, where):
        super().__init__(pause=lambda: 0.001)
        self.where, self.calls = where, 0

    def _call(self, name):
        self.calls += name == self.where
        if name == self.where and self.calls > 2:
            raise EngineError(f"{name} is broken")

    def submit(self, requests):
        self._call("submit")
        super().submit(requests)

    def poll(self, timeout=None):
        self._call("poll")
        return super().poll(timeout)

    def load_weights(self, weights, version, in_flight="finish"):
        self._call("load_weights")
        return super().load_weights(weights, version, in_flight)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("where", ["submit", "poll", "load_weights"])
def test_an_engine_that_fails_reaches_the_caller(mode, where):
    learner = Learner()
    with closing(rollouts(Breaks(where), learner, **MODES[mode])) as built:
        with pytest.raises(EngineError, match=f"{where} is broken"):
            steps(built, learner)
        started = time.monotonic()
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("base", [plain, Sure])
def test_a_reward_that_fails_reaches_the_caller(mode, base):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("of a user's")

    reward = broken
    if base is Sure:
        reward = Sure()
        reward.verify = broken
    learner = Learner()
    built = rollouts(SlowEngine(), learner, reward, **MODES[mode])
    with closing(built), pytest.raises(RewardError, match=r"mine.*ZeroDivisionError"):
        steps(built, learner)


@pytest.mark.parametrize("mode", MODES)
def test_an_engine_that_loses_a_request_is_an_error(mode):
    class Forgetful(SlowEngine):
        def submit(self, requests):
            super().submit([r for r in requests if r.uid != "2/1"])

    learner = Learner()
    built = rollouts(Forgetful(), learner, **MODES[mode])
    with closing(built), pytest.raises(EngineError, match=r"lost completions.* \[2"):
        steps(built, learner)


@pytest.mark.parametrize("what", ["other", "twice", "canceled"])
def test_completions_nobody_asked_for_are_errors(what):
    class Generous(SlowEngine):
        def poll(self, timeout=None):
            found = super().poll(timeout)
            if found and what == "twice":
                return [*found, found[0]]
            names = {"other": "9/0", "canceled": "1/77", "twice": ""}
            return [replace(c, request=names[what]) for c in found]

    with (
        closing(rollouts(Generous())) as built,
        pytest.raises(EngineError, match=r"not asked for|came twice"),
    ):
        built.take(1)


@pytest.mark.parametrize("mode", ["one_step_off", "async"])
def test_ctrl_c_while_waiting_leaves_no_thread(mode):
    built = rollouts(SlowEngine(pause=lambda: 0.02, tokens=500), **MODES[mode])
    timer = threading.Timer(0.15, _thread.interrupt_main)
    timer.start()
    with closing(built), pytest.raises(KeyboardInterrupt):
        built.take(1)
    timer.join()


def test_ctrl_c_in_a_reward_is_not_a_score():
    calls = []

    def interrupted(*, completions, **columns):
        calls.append(1)
        signal.raise_signal(signal.SIGINT)  # one of its own would be an error of the reward

    built = rollouts(SlowEngine(pause=lambda: 0.02), reward=interrupted, **MODES["one_step_off"])
    with closing(built), pytest.raises(KeyboardInterrupt):
        built.take(1)
    assert len(calls) == 1


@pytest.mark.parametrize("what", ["of before", "another hash", "another step"])
def test_an_acknowledgment_of_other_weights_is_refused_from_the_thread(what):
    class Stale(SlowEngine):
        def load_weights(self, weights, version, in_flight="finish"):
            ack = super().load_weights(weights, version, in_flight)
            other = {
                "of before": self.loaded[0],
                "another hash": replace(version, hash="of another tensor"),
                "another step": replace(version, step=version.step + 1),
            }
            return ack if version.step < 2 else replace(ack, version=other[what])

    learner = Learner()
    built = rollouts(Stale(), learner, **MODES["one_step_off"])
    with closing(built), pytest.raises(WeightsError, match="acknowledged weights"):
        steps(built, learner)


def test_one_wrong_member_of_a_pool_is_named():
    class Pool(SlowEngine):
        def load_weights(self, weights, version, in_flight="finish"):
            ack = super().load_weights(weights, version, in_flight)
            wrong = replace(ack, engine="worker 1", canary=float("nan"))
            return replace(ack, members=(replace(ack, engine="worker 0"), wrong))

    with pytest.raises(WeightsError, match=r"canary log-prob of worker 1 is nan"):
        rollouts(Pool())


def test_over_sampling_under_a_schedule_cancels_in_the_engine():
    engine, learner = SlowEngine(pause=lambda: 0.001), Learner()
    order = spec(oversample=2.0)
    with closing(rollouts(engine, learner, order=order, **MODES["one_step_off"])) as built:
        batches = steps(built, learner)
    assert len(engine.canceled) == 6 * 3
    trained = [r.completion.request for b in batches for g in b.groups for r in g.rollouts]
    assert not set(trained) & set(engine.canceled)
    assert all(batch.metrics["rollout/canceled_groups"] == 3 for batch in batches)


def test_nothing_runs_on_after_the_last_step():
    engine, learner = SlowEngine(), Learner()
    with closing(rollouts(engine, learner, last=3, **MODES["async"])) as built:
        steps(built, learner, last=3)
        time.sleep(0.1)
        assert built.state()["next"] == 4
        assert built.state()["ready"] == []
