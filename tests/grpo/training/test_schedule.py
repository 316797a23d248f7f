"""Sampling ahead of learning: sampled by which weights, on which thread, and how it ends."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import closing

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo.config.schema import Algorithm
from grpo.config.schema import Learner as Config
from grpo.errors import WeightsError
from grpo.learner.learner import TorchLearner
from grpo.method.table import bound_advantage
from grpo.model.canary import canary_logprob
from grpo.model.content_hash import content_hash
from grpo.rollout.embedded.torch_engine import TorchEngine
from grpo.training.loop import TrainerParts, train
from grpo.training.schedule import RolloutScheduler
from grpo.types import Sampling, Version
from tests.grpo.rows import EOS, tiny_model

from .pacing import (
    MODES,
    Learner,
    SlowEngine,
    Sure,
    plain,
    rewards,
    rollouts,
    spec,
    steps,
    threads,
    version,
)


def versions(batch):
    """Of every token."""
    return [
        segment.version.step
        for group in batch.groups
        for rollout in group.rollouts
        for segment in rollout.completion.segments
        for _ in segment.ids
    ]


@pytest.fixture(autouse=True)
def _nothing_is_left_behind():
    yield
    assert threads() == []


# Who does what


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reward", [plain, Sure()])
def test_threads(mode, reward):
    called = set()
    kind = type(reward) if isinstance(reward, Sure) else None

    def spied(*, completions, **columns):
        called.add(threading.get_ident())
        if threading.current_thread() is threading.main_thread():
            signal.setitimer(signal.ITIMER_REAL, 100)  # what a reward that limits itself does
            signal.setitimer(signal.ITIMER_REAL, 0)
        return plain(completions=completions)

    if kind:
        reward.verify = lambda c, t, own=reward: (
            called.add(threading.get_ident()) or kind.verify(own, c, t)
        )
    engine, learner = SlowEngine(), Learner()
    built = rollouts(engine, learner, reward if kind else spied, **MODES[mode])
    with closing(built):
        batches = steps(built, learner)
    main = threading.get_ident()
    assert (engine.threads == {main}) == (mode == "sync")
    assert len(engine.threads - {main}) <= 1
    assert (called == {main}) == (kind is None)
    for batch in batches:
        assert [r.score.value for g in batch.groups for r in g.rollouts] == [1.0, 0.0] * 3


class Letters:
    def decode(self, ids, skip_special_tokens):
        return "".join(chr(97 + i) for i in ids)


def trained(**mode):
    """Weights and metrics after some steps of the real engine and learner."""
    model = tiny_model(dtype=torch.float32)
    order = spec(sampling=Sampling(max_tokens=6, eos_ids=(EOS,)), num_generations=4)
    engine = TorchEngine(model, Letters(), version=Version(step=0, hash=""))

    def even(*, completion_ids, **columns):
        return [float(sum(ids) % 2) for ids in completion_ids]

    built = RolloutScheduler(order, engine, rewards(even), last=4, **mode)
    learner = TorchLearner(model, algorithm=Algorithm(), config=Config(learning_rate=1e-2))
    parts = TrainerParts(
        spec=order,
        rollouts=built,
        learner=learner,
        advantage=bound_advantage("grpo"),
        loss_type="dapo",
        beta=0.0,
        mask_truncated=False,
        num_minibatches=1,
    )
    with closing(built):
        built.deliver(learner, 0)
        found = [s.metrics for s in train(parts, start=0, max_steps=4)]
    weights = b"".join(w.detach().numpy().tobytes() for _, w in learner.weights())
    return weights, [m["loss"] for m in found], [m["staleness/max"] for m in found]


def test_async_without_staleness_is_sync_and_one_step_off_repeats_itself():
    whole, losses, ages = trained()
    assert trained(staleness=0, in_flight="continue") == (whole, losses, ages)
    assert ages == [0, 0, 0, 0]
    off = trained(staleness=1)
    assert off[0] != whole
    assert off[2] == [0, 1, 1, 1]
    assert trained(staleness=1) == off


# Time


def test_one_step_off_overlaps_sleepers():
    generation, learning, count = 0.2, 0.15, 6
    engine = SlowEngine(pause=lambda: generation / 3)
    learner = Learner(pause=lambda step: learning)
    with closing(rollouts(engine, learner, last=count + 1, **MODES["one_step_off"])) as built:
        built.take(1)
        learner.step()
        built.deliver(learner, 1)
        started = time.perf_counter()
        for step in range(2, count + 1):
            built.take(step)
            learner.step()
            built.deliver(learner, step)
        wall = (time.perf_counter() - started) / (count - 1)
        seconds = built.take_metrics(wall)
    assert wall < 0.9 * (generation + learning)
    assert all(0 <= value <= 1 for value in seconds.values())


# Which weights


def test_one_step_off_is_of_one_version_one_step_old_however_quick_the_learner_is():
    # The learner is back before the other thread has begun the next batch.
    class Late(RolloutScheduler):
        def _serve_command(self):
            time.sleep(0.01)
            super()._serve_command()

    engine, learner = SlowEngine(), Learner()
    built = Late(spec(), engine, rewards(), last=20, staleness=1)
    built.deliver(learner, 0)
    with closing(built):
        batches = steps(built, learner, last=20)
    for batch in batches:
        assert set(versions(batch)) == {max(0, batch.step - 2)}
        assert batch.metrics["staleness/mean"] == min(1, batch.step - 1)


@settings(max_examples=12)
@given(seed=st.integers(0, 2**32), staleness=st.integers(1, 3), whole=st.booleans())
def test_no_token_is_older_than_the_bound(seed, staleness, whole):
    rng = np.random.default_rng(seed)
    slow, fast = rng.choice([0.0, 0.002, 0.006], 2)
    engine = SlowEngine(pause=lambda: rng.random() * slow, tokens=3)
    noise = np.random.default_rng(seed + 1)
    learner = Learner(pause=lambda step: noise.random() * fast * 4)
    mode = {"staleness": staleness, "in_flight": "finish" if whole else "continue"}
    with closing(rollouts(engine, learner, last=8, **mode)) as built:
        for batch in steps(built, learner, last=8):
            ages = [batch.step - 1 - v for v in versions(batch)]
            assert min(ages) >= 0
            assert max(ages) <= staleness
            assert batch.metrics["staleness/max"] == max(ages)
            assert batch.metrics["staleness/mean"] == pytest.approx(np.mean(ages))
            assert not whole or len(set(ages)) == 1
    assert engine.loaded == [version(i) for i in range(9)]


class Drifting:
    """A learner whose every step changes the weights a lot; keeps each version."""

    def __init__(self, model):
        self.model, self.steps, self.kept = model, 0, {}

    def step(self):
        self.steps += 1
        torch.manual_seed(self.steps)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))

    def weights(self):
        return iter(self.model.state_dict().items())

    def version(self):
        found = Version(step=self.steps, hash=content_hash(self.weights()))
        self.kept[found] = {n: w.clone() for n, w in self.model.state_dict().items()}
        return found

    def canary(self):
        return canary_logprob(self.model)


class Slow(TorchEngine):
    def _step(self):
        time.sleep(0.01)
        super()._step()


def replayed(completion, prompt, kept):
    """Log-probs of each segment under its own weights, over keys and values of the earlier ones."""
    model = tiny_model(dtype=torch.float32).eval()
    ids = [*prompt, *completion.ids.tolist()]
    cache, read, found = None, 0, []
    for segment in completion.segments:
        model.load_state_dict(kept[segment.version])
        end = len(prompt) + len(found) + len(segment.ids)
        with torch.no_grad():
            out = model(torch.tensor([ids[read : end - 1]]), past_key_values=cache, use_cache=True)
        logp = torch.log_softmax(out.logits[0, -len(segment.ids) :], dim=-1)
        targets = torch.tensor(segment.ids)[:, None]
        found += logp.gather(1, targets)[:, 0].tolist()
        cache, read = out.past_key_values, end - 1
    return found


def test_async_goes_on_under_new_weights_with_the_right_version_at_every_token():
    model = tiny_model(dtype=torch.float32)
    learner = Drifting(model)
    engine = Slow(model, Letters(), version=Version(step=0, hash=""), max_rows=4)
    order = spec(sampling=Sampling(max_tokens=16))
    with closing(rollouts(engine, learner, last=6, order=order, **MODES["async"])) as built:
        batches = steps(built, learner)
    several = 0
    for batch in batches:
        for group in batch.groups:
            for rollout in group.rollouts:
                completion = rollout.completion
                several += len(completion.segments) > 1
                expected = replayed(completion, group.prompt.ids, learner.kept)
                np.testing.assert_allclose(completion.logprobs, expected, atol=2e-4)
    assert several >= 3


def test_tokens_of_weights_never_delivered_or_too_old_are_refused():
    engine = SlowEngine(start=version(7))
    built = rollouts(engine)
    engine.version = version(7)
    with closing(built), pytest.raises(WeightsError, match=r"hash='h7'.*never delivered"):
        built.take(1)

    engine, learner = SlowEngine(), Learner()
    with closing(rollouts(engine, learner)) as built:
        steps(built, learner, last=2)
        engine.version = version(1)  # says it loaded the newest, and samples with others
        with pytest.raises(WeightsError, match="1 steps old; the schedule allows 0"):
            built.take(3)


def test_a_step_without_an_update_ages_nothing():
    engine, learner = SlowEngine(), Learner()
    with closing(rollouts(engine, learner, **MODES["one_step_off"])) as built:
        for step in range(1, 7):
            batch = built.take(step)
            assert batch.metrics["staleness/max"] == 0
            built.deliver(learner, step)  # the same weights again: every row was dead


def test_a_batch_that_is_never_begun_is_not_waited_for():
    built = rollouts(**MODES["one_step_off"])
    with closing(built), pytest.raises(ValueError, match="up to 2"):
        built.take(3)


# Rest


@pytest.mark.parametrize("mode", ["one_step_off", "async"])
def test_inside_quiet_the_engine_is_nobodys(mode):
    class Entered(SlowEngine):
        inside = 0

        def submit(self, requests):
            self.inside += 1
            time.sleep(0.01)  # the moment in which a batch is begun and not yet to be seen
            super().submit(requests)
            self.inside -= 1

    engine, learner = Entered(pause=lambda: 0.001), Learner()
    with closing(rollouts(engine, learner, last=12, **MODES[mode])) as built:
        for step in range(1, 13):
            built.take(step)
            learner.step()
            built.deliver(learner, step)
            if step % 2:
                time.sleep(0.002 * (step % 5))
            with built.quiet():
                before = built.state(), built.position
                assert not engine.inside
                assert not engine.queue
                time.sleep(0.02)
                assert (built.state(), built.position) == before
                drawn = sum(len(entry["groups"]) for entry in before[0]["ready"])
                assert drawn == 3 * (before[0]["next"] - step - 1)


def test_a_restored_schedule_goes_on_as_the_one_that_was_left():
    def run(cut):
        order, engine, learner = spec(), SlowEngine(pause=lambda: 0.001), Learner()
        first = rollouts(engine, learner, order=order, last=8, **MODES["one_step_off"])
        with closing(first):
            batches = steps(first, learner, last=cut)
            with first.quiet():
                saved, position = first.state(), first.position
        if cut == 8:
            return batches
        assert len(saved["ready"]) >= 1  # sampled ahead
        second = RolloutScheduler(spec(), engine, rewards(), last=8, **MODES["one_step_off"])
        second.restore(saved, position)
        second.deliver(learner, cut)
        with closing(second):
            for step in range(cut + 1, 9):
                batches.append(second.take(step))
                learner.step()
                second.deliver(learner, step)
        return batches

    def told(batches):
        return [
            (b.step, b.positions, [g.prompt for g in b.groups], versions(b), b.metrics)
            for b in batches
        ]

    whole = told(run(8))
    assert told(run(3)) == whole
    assert told(run(4)) == whole


# Failures
