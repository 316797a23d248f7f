"""The learner's log-prob of a token is the embedded engine's, however the token was drawn."""

import numpy as np
import pytest
import torch

from grpo.config.schema import Algorithm
from grpo.config.schema import Learner as Config
from grpo.errors import WeightsError
from grpo.learner.learner import TorchLearner
from grpo.method.weighted_rows import make_rows
from grpo.rewards.compose import RewardSet
from grpo.rollout.collect import collect
from grpo.rollout.embedded import torch_engine
from grpo.rollout.embedded.engine_weights import copy_weights
from grpo.rollout.embedded.torch_engine import TorchEngine
from grpo.training.schedule import RolloutScheduler
from grpo.types import Group, Prompt, Request, Rollout, Sampling, Score, Task, Version
from tests.grpo.rows import EOS, tiny_model


class Letters:
    def decode(self, ids, skip_special_tokens):
        return "".join(map(chr, ids))


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"temperature": 0.7},
        {"top_p": 0.8},
        {"top_k": 4, "temperature": 1.5},
        {"min_p": 0.2},
        {"top_k": 9, "top_p": 0.9, "min_p": 0.05, "temperature": 1.2},
    ],
)
def test_engine_and_learner_agree_on_ragged_lengths(sampling):
    model = tiny_model(dtype=torch.float32)
    drawn = Sampling(max_tokens=12, eos_ids=(EOS,), **sampling)
    engine = TorchEngine(model, Letters(), version=Version(step=0, hash=""), max_rows=7)
    prompts = [(3, 4), (5, 6, 7, 8, 9), (10, 11, 12)]
    requests = [
        Request(uid=str(i), ids=ids, n=6, sampling=drawn, key=(i,)) for i, ids in enumerate(prompts)
    ]
    groups = []
    for uid, completions in collect(engine, requests):
        ids = prompts[int(uid)]
        prompt = Prompt(task=Task(uid=uid, prompt="?"), text="?", ids=ids)
        score = Score(value=1.0, status="scored")
        rollouts = [Rollout(prompt=prompt, completion=c, score=score) for c in completions]
        groups.append(Group(prompt=prompt, visit=0, rollouts=tuple(rollouts)))
    rows = make_rows(groups, np.ones((3, 6)), loss_type="dapo", max_completion_length=12)
    assert len({len(row.ids) for row in rows}) > 3
    learner = TorchLearner(
        model,
        algorithm=Algorithm(),
        config=Config(learning_rate=1e-2),
        temperature=drawn.temperature,
        truncation=drawn if drawn.truncates else None,
    )
    for row, logp in zip(rows, learner.logprobs(rows), strict=True):
        np.testing.assert_allclose(logp, row.columns["logp_sampler"], atol=1e-4)
    metrics = learner.step(rows)
    assert metrics["sampling/sampling_logp_difference/max"] < 1e-4
    assert metrics["grad_norm"] > 0
    if drawn.truncates:  # and it is the filter that makes them agree
        plain = TorchLearner(
            tiny_model(dtype=torch.float32),
            algorithm=Algorithm(),
            config=Config(),
            temperature=drawn.temperature,
        )
        assert plain.step(rows)["sampling/sampling_logp_difference/max"] > 0.05


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_engine_that_keeps_one_old_tensor_is_found_out(monkeypatch, dtype):
    model = tiny_model(dtype=torch.float32, tie_word_embeddings=True)
    old = Version(step=0, hash="")
    engine = TorchEngine(model, Letters(), version=old, dtype=dtype)
    learner = TorchLearner(model, algorithm=Algorithm(), config=Config(), dtype=dtype)
    with torch.no_grad():
        learner.model.model.norm.weight.mul_(1.01)  # far too little for the canary to tell
    rollouts = RolloutScheduler(None, engine, RewardSet([("none", lambda **_: [], 1.0)]), last=1)
    assert rollouts.deliver(learner, 0) == learner.version()

    def lossy(module, weights):
        return copy_weights(module, [(n, w * 0.99 if "norm" in n else w) for n, w in weights])

    monkeypatch.setattr(torch_engine, "copy_weights", lossy)
    with pytest.raises(WeightsError, match="acknowledged weights"):
        rollouts.deliver(learner, 0)
