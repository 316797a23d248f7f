"""What a GPU without bfloat16 computes in, tried on the CPU: masks, filters and sums hold in it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from grpo.config.schema import Algorithm
from grpo.config.schema import Learner as Config
from grpo.learner.learner import TorchLearner
from grpo.method.weighted_rows import make_rows
from grpo.rollout.collect import collect
from grpo.rollout.embedded.torch_engine import TorchEngine
from grpo.types import Group, Prompt, Request, Rollout, Sampling, Score, Task, Version
from tests.grpo.rows import EOS, tiny_model

PROMPTS = [(3, 4), (5, 6, 7, 8, 9), (10, 11, 12)]
FILTERS = [{}, {"top_k": 9, "top_p": 0.9, "min_p": 0.05, "temperature": 1.2}]


class Letters:
    def decode(self, ids, skip_special_tokens):
        return "".join(map(chr, ids))


def sampled(model, sampling):
    """Rows of groups that an engine in float16 has drawn."""
    engine = TorchEngine(
        model, Letters(), version=Version(step=0, hash=""), max_rows=7, dtype="float16"
    )
    asked = [
        Request(uid=str(i), ids=ids, n=6, sampling=sampling, key=(i,))
        for i, ids in enumerate(PROMPTS)
    ]
    groups = []
    for uid, completions in sorted(collect(engine, asked)):
        prompt = Prompt(task=Task(uid=uid, prompt="?"), text="?", ids=PROMPTS[int(uid)])
        score = Score(value=1.0, status="scored")
        rollouts = [Rollout(prompt=prompt, completion=c, score=score) for c in completions]
        groups.append(Group(prompt=prompt, visit=0, rollouts=tuple(rollouts)))
    advantages = np.tile([1.0, -1.0], (3, 3))
    return make_rows(groups, advantages, loss_type="dapo", max_completion_length=12)


def learner_of(model, dtype, sampling):
    return TorchLearner(
        model,
        algorithm=Algorithm(),
        config=Config(learning_rate=1e-3),
        dtype=dtype,
        temperature=sampling.temperature,
        truncation=sampling if sampling.truncates else None,
    )


@pytest.mark.parametrize("given", FILTERS)
@pytest.mark.parametrize("share", [True, False])
def test_engine_and_learner_agree_and_the_step_is_that_of_float32(given, share, monkeypatch):
    """Prompts shared (attention in parts) or not; with and without filters over the logits."""
    sampling = Sampling(max_tokens=12, eos_ids=(EOS,), **given)
    model = tiny_model(dtype=torch.float32)
    rows = sampled(model, sampling)
    learners = [
        learner_of(tiny_model(dtype=torch.float32), name, sampling)
        for name in ("float16", "float32")
    ]
    for learner in learners:
        assert learner.share_prompts
        learner.share_prompts = share
    half, exact = (np.concatenate(n.logprobs(rows)) for n in learners)
    assert np.abs(half - exact).mean() < 3e-3
    drawn = np.concatenate([row.columns["logp_sampler"] for row in rows])
    assert np.abs(half - drawn).mean() < 3e-3
    assert np.abs(half - drawn).max() < 0.2
    half, exact = (learner.step(rows) for learner in learners)
    assert half["optimizer_steps/overflow"] == 0
    assert half["grad_norm"] == pytest.approx(exact["grad_norm"], rel=0.02)


def test_an_overflow_skips_the_step_and_halves_the_scale():
    sampling = Sampling(max_tokens=12, eos_ids=(EOS,))
    model = tiny_model(dtype=torch.float32)
    rows = sampled(model, sampling)
    learner = learner_of(model, "float16", sampling)
    learner.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    version = learner.version()
    metrics = learner.step(rows)
    assert metrics["optimizer_steps/overflow"] == 1
    assert learner.scaler.get_scale() == 2.0**39
    assert learner.version() == version
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
