"""The gate: right samplers pass as often as normal numbers stay small, wrong ones are caught."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from grpo.config.schema import Algorithm
from grpo.config.schema import Learner as Config
from grpo.errors import AgreementError, EngineError
from grpo.learner.learner import TorchLearner
from grpo.rollout.embedded.torch_engine import TorchEngine
from grpo.training import probes
from grpo.training.agreement import AgreementGate
from grpo.types import Ack, Completion, Prompt, Sampling, Segment, Task, Version
from tests.grpo.rows import tiny_model

VOCAB = 96


class Letters:
    def decode(self, ids, skip_special_tokens=True):
        return "".join(chr(33 + i) for i in ids)


def prompts(count=10):
    return [
        Prompt(task=Task(uid=f"t{i}", prompt="?"), text="?", ids=(5 + i, 7, 9))
        for i in range(count)
    ]


def gate(seed=0, count=10, **sampling):
    settings = {"max_tokens": 12, "eos_ids": (2, 3, 4)}
    return AgreementGate(
        probes=probes.Probes(
            prompts=prompts(count), sampling=Sampling(**{**settings, **sampling}), seed=seed
        ),
        steps=5,
        max_difference=0.05,
        decode=lambda ids: Letters().decode(ids),
    )


def pair(engine_class=TorchEngine, sampling=None, **model):
    """An engine and a learner of the same random weights."""
    sampling = sampling or Sampling()
    built = tiny_model(dtype=torch.float32, vocab_size=VOCAB, **model)
    engine = engine_class(built, Letters(), version=Version(step=0, hash="h"))
    learner = TorchLearner(
        built,
        algorithm=Algorithm(),
        config=Config(),
        temperature=sampling.temperature,
        truncation=sampling if sampling.truncates else None,
    )
    return engine, learner


class Hot(TorchEngine):
    """Draws at a tenth more than the temperature asked, and reports log-probs of the one asked."""

    factor = 1.1

    def submit(self, requests):
        self.asked = {r.uid: r for r in requests}
        super().submit(
            [
                replace(
                    r,
                    sampling=replace(r.sampling, temperature=self.factor * r.sampling.temperature),
                )
                for r in requests
            ]
        )

    def poll(self, timeout=None):
        return [self._claimed(c) for c in super().poll(timeout)]

    def _claimed(self, completion):
        request = self.asked[completion.request]
        ids = torch.tensor([[*request.ids, *completion.ids.tolist()]])
        with torch.no_grad():
            logits = self.model(ids).logits[0, len(request.ids) - 1 : -1]
        logp = torch.log_softmax(logits / request.sampling.temperature, dim=-1)
        claimed = logp.gather(1, torch.tensor(completion.ids)[:, None])[:, 0].numpy()
        (segment,) = completion.segments
        return replace(completion, segments=(replace(segment, logprobs=claimed),))


class Cold(Hot):
    factor = 1 / 1.1


@pytest.mark.parametrize(
    ("kind", "word", "low", "high"), [(Hot, "random", 1.05, 1.16), (Cold, "certain", 0.84, 0.95)]
)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_temperature_off_by_a_tenth_is_caught_in_one_check(kind, word, low, high, temperature):
    asked = Sampling(temperature=temperature)
    engine, learner = pair(kind, asked, initializer_range=0.5)
    with pytest.raises(AgreementError, match=f"too {word}") as caught:
        gate(temperature=temperature, max_tokens=64).check(engine, learner, 1)
    said = str(caught.value)
    factor = float(said.partition("the temperature were ")[2].split()[0])
    assert low <= factor <= high
    assert "engine with weights Version(step=0" in said
    assert "Worst: token" in said


SAMPLINGS = [
    {},
    {"temperature": 0.7},
    {"top_p": 0.8},
    {"top_k": 8, "temperature": 1.3},
    {"min_p": 0.1},
]


def zs(sampling, checks, monkeypatch, tokens=200, **model):
    """Signed z of `checks` checks with seeds of their own, each of about `tokens` tokens."""
    monkeypatch.setattr(probes, "TOKENS", tokens)
    engine, learner = pair(sampling=Sampling(**sampling), **model)
    found = []
    surprise = learner.surprise
    seen = []
    learner.surprise = lambda rows: seen.append(surprise(rows)) or seen[-1]
    apart = 0
    for seed in range(checks):
        seen.clear()
        metrics = gate(seed=seed, **sampling).check(engine, learner, 1)
        logp, entropy, variance = np.concatenate(seen, axis=1)
        z = float((-logp - entropy).sum() / math.sqrt(variance.sum()))
        assert metrics["agreement/z"] == pytest.approx(abs(z))
        apart += metrics["agreement/difference_max"] > 1e-3
        found.append(z)
    # A token on the very threshold of a filter may be in for one and out for the other.
    assert apart <= bool(set(sampling) & {"top_p", "top_k", "min_p"})
    return np.array(found)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_z_of_a_right_sampler_is_standard_normal(sampling, monkeypatch):
    checks = 200 if not sampling else 40
    z = zs(sampling, checks, monkeypatch)
    assert abs(z.mean()) < 3.5 / math.sqrt(checks)
    assert abs(z.std() - 1) < 3.5 / math.sqrt(2 * checks)
    assert (np.abs(z) > 4).sum() == 0


# A scripted engine and learner: what the gate makes of numbers


class Scripted:
    """`tokens(rng)` gives the (ids, sampler log-probs) of one completion."""

    def __init__(self, tokens, seed=0):
        self.tokens, self.rng, self.queue = tokens, np.random.default_rng(seed), []
        self.submitted = []

    def submit(self, requests):
        self.submitted += requests
        self.queue += requests

    def poll(self, timeout=None):
        found = []
        for request in self.queue:
            for index in range(request.n):
                ids, logprobs = self.tokens(self.rng)
                segment = Segment(
                    ids=np.array(ids, dtype=np.int64),
                    version=Version(step=0, hash="h"),
                    logprobs=np.array(logprobs, dtype=np.float32),
                )
                found.append(
                    Completion(
                        request=request.uid,
                        index=index,
                        segments=(segment,),
                        text="",
                        finish="length" if len(ids) else "abort",
                    )
                )
        self.queue = []
        return found

    def cancel(self, uids):
        raise AssertionError("nothing is to be canceled")


def coin(rare):
    """A learner over two tokens, 1 with probability `rare` at every place."""
    p = np.array([1 - rare, rare])
    logs = np.log(np.maximum(p, 1e-300))
    entropy = float(-(p * logs).sum())
    variance = float((p * (logs + entropy) ** 2).sum())

    def surprise(rows):
        ids = np.concatenate([row.ids for row in rows])
        return np.stack([logs[ids], np.full(len(ids), entropy), np.full(len(ids), variance)])

    return SimpleNamespace(
        surprise=surprise,
        version=lambda: Version(step=3, hash="h3"),
        gather=list,
        logs=logs,
        p=p,
    )


def coins(learner, drawn_with=None, length=64):
    share = learner.p[1] if drawn_with is None else drawn_with

    def tokens(rng):
        ids = (rng.random(length) < share).astype(np.int64)
        return ids, learner.logs[ids]

    return tokens


@pytest.mark.parametrize("expected", [0.003, 0.02, 0.1, 0.5, 2.0, 8.0])
def test_rare_tokens_of_a_policy_that_is_sure_are_no_alarm(expected):
    # As many rare tokens a check on average; one of 0.02 expected ones stands 7 deviations out.
    learner = coin(expected / probes.TOKENS)
    engine = Scripted(coins(learner))
    plain = 0
    for seed in range(300):
        plain += gate(seed=seed, max_tokens=64).check(engine, learner, 1)["agreement/z"] > 4
    if expected == 0.02:
        assert plain >= 2  # and without its guard the gate would stop runs for it


def test_a_sampler_that_wanders_off_a_sure_policy_is_caught():
    learner = coin(1e-4)
    with pytest.raises(AgreementError, match="too random"):
        gate(max_tokens=64).check(Scripted(coins(learner, drawn_with=0.01)), learner, 1)


def test_greedy_instead_of_sampled_is_caught():
    learner = coin(0.2)
    with pytest.raises(AgreementError, match="too certain"):
        gate(max_tokens=64).check(Scripted(coins(learner, drawn_with=0.0)), learner, 1)


@pytest.mark.parametrize("rare", [0.0, 1e-30])
def test_a_deterministic_policy_passes_and_says_that_nothing_was_seen(rare):
    learner = coin(rare)
    metrics = gate(max_tokens=64).check(Scripted(coins(learner, drawn_with=0.0)), learner, 1)
    assert metrics["agreement/z"] < 1
    assert metrics["agreement/temperature_seen"] > 1000


@pytest.mark.parametrize("wrong", [-5.0, -9.0])
def test_wrong_log_probs_are_caught_with_engine_version_and_token(wrong):
    learner = coin(0.5)
    right = coins(learner)

    def tokens(rng):
        ids, logprobs = right(rng)
        ids[7], logprobs[7] = 1, wrong
        return ids, logprobs

    with pytest.raises(AgreementError) as caught:
        gate(max_tokens=64).check(Scripted(tokens), learner, 1)
    said = str(caught.value)
    assert said.startswith("engine with weights Version(step=3, hash='h3') reports other log-probs")
    assert f"sampler {wrong:.4f}, learner -0.6931" in said
    assert "Worst: token 1 at the end of" in said


@pytest.mark.parametrize("wrong", [math.nan, -math.inf, 0.3])
def test_log_probs_that_are_none_are_caught_before_anything_is_compared(wrong):
    learner = coin(0.5)
    right = coins(learner)

    def tokens(rng):
        ids, logprobs = right(rng)
        logprobs[7] = wrong
        return ids, logprobs

    engine = Scripted(tokens)
    engine.cancel = lambda uids: None
    with pytest.raises(EngineError, match=r"^engine: completion 0 of request 'agreement/0' has "):
        gate(max_tokens=64).check(engine, learner, 1)


@pytest.mark.parametrize("column", [0, 1, 2])
def test_a_learner_that_computes_nan_fails(column):
    learner = coin(0.5)
    right = learner.surprise

    def surprise(rows):
        found = right(rows)
        found[column, 5] = np.nan
        return found

    learner.surprise = surprise
    with pytest.raises(AgreementError):
        gate(max_tokens=64).check(Scripted(coins(learner)), learner, 1)


def test_an_engine_that_aborts_everything_is_an_error_and_not_a_loop():
    learner = coin(0.5)
    with pytest.raises(AgreementError, match="no token"):
        gate().check(Scripted(lambda rng: ([], [])), learner, 1)


def test_completions_without_a_token_are_left_out():
    learner = coin(0.5)
    some = coins(learner)

    def tokens(rng):
        return some(rng) if rng.random() < 0.5 else ([], [])

    metrics = gate(max_tokens=64).check(Scripted(tokens), learner, 1)
    assert metrics["agreement/tokens"] >= probes.TOKENS


# Endings and settings


def test_a_check_ends_at_its_tokens_or_at_enough_information(monkeypatch):
    learner = coin(0.2)
    engine = Scripted(coins(learner, length=8))
    # 32 completions of 8 tokens for each of 8 prompts; then 1.1 times what is missing
    tokens = 8 * 8 * (32 + 36)
    assert gate(max_tokens=8).check(engine, learner, 1)["agreement/tokens"] == tokens
    assert [r.n for r in engine.submitted] == [32] * 8 + [36] * 8
    assert len({r.key for r in engine.submitted}) == 16  # fresh noise
    variance = 0.2 * 0.8 * math.log(4) ** 2
    for information, samples in ((2000, 32), (2500, 32 + 8)):
        monkeypatch.setattr(probes, "INFORMATION", information * variance)
        metrics = gate(max_tokens=8).check(engine, learner, 1)
        tokens = 8 * 8 * samples
        assert metrics["agreement/tokens"] == tokens
        seen = 6 / math.sqrt(tokens * variance)
        assert metrics["agreement/temperature_seen"] == pytest.approx(seen)


def test_short_completions_take_more_of_them_and_not_more_rounds():
    learner = coin(0.2)
    engine = Scripted(lambda rng: coins(learner, length=int(rng.integers(1, 9)))(rng))
    tokens = gate(max_tokens=64).check(engine, learner, 1)["agreement/tokens"]
    assert [r.n for r in engine.submitted[:8]] == [4] * 8
    assert len(engine.submitted) == 16
    assert probes.TOKENS <= tokens <= 1.5 * probes.TOKENS
    for most in (64, 1):
        engine = Scripted(coins(learner, length=1))
        assert gate(max_tokens=most).check(engine, learner, 1)["agreement/tokens"] >= probes.TOKENS
        assert max(r.n for r in engine.submitted) == 128


def test_fewer_prompts_than_a_round_has_and_long_completions():
    learner = coin(0.3)
    engine = Scripted(coins(learner))
    metrics = gate(count=2, max_tokens=500).check(engine, learner, 1)
    assert metrics["agreement/tokens"] == 2 * 64 * (16 + 18)
    assert {r.sampling.max_tokens for r in engine.submitted} == {64}
    assert len({r.key for r in engine.submitted}) == len(engine.submitted) == 4


def test_checks_of_other_steps_draw_other_noise():
    learner = coin(0.3)
    engine = Scripted(coins(learner))
    for step in (1, 6):
        gate(max_tokens=64).check(engine, learner, step)
    assert len({r.key for r in engine.submitted}) == len(engine.submitted) == 32
    assert [step for step in range(1, 13) if gate().due(step)] == [1, 6, 11]


class Pool(Scripted):
    def __init__(self, members):
        self.members = members

    def load_weights(self, weights, version, in_flight="finish"):
        return Ack(version=version, tensors=0, canary=0.0)

    def take_metrics(self):
        return {}

    sleep = wake = close = lambda self: None


def test_each_engine_of_a_pool_is_checked_and_the_wrong_one_is_named():
    learner = coin(0.3)
    right = Scripted(coins(learner))
    wrong = Scripted(coins(learner, drawn_with=0.5))
    with pytest.raises(AgreementError, match=r"^worker 1 with weights"):
        gate(max_tokens=64).check(Pool([("worker 0", right), ("worker 1", wrong)]), learner, 1)

    other = Scripted(coins(learner), seed=1)
    pool = Pool([("worker 0", right), ("worker 1", other)])
    both = gate(max_tokens=64).check(pool, learner, 1)
    right.rng, other.rng = np.random.default_rng(0), np.random.default_rng(1)
    one_by_one = [gate(max_tokens=64).check(engine, learner, 1) for engine in (right, other)]
    assert both["agreement/tokens"] == 8 * 64 * (4 + 5)
    for engine in (right, other):
        assert len(engine.submitted) >= 8
    assert both["agreement/z"] >= min(m["agreement/z"] for m in one_by_one)
