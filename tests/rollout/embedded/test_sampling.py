"""Noise, the inverse CDF and draws against the exact softmax."""

import numpy as np
import pytest
import torch

from grpo.model.filters import filtered_probs, make_plan
from grpo.rollout.embedded.sampling import inverse_cdf, noise_key, sample, uniforms
from grpo.types import Sampling

CPU = torch.device("cpu")


def test_uniforms_are_uniform_and_uncorrelated():
    keys = np.array([noise_key((3, i), j) for i in range(100) for j in range(10)])
    grid = uniforms(np.repeat(keys, 50), np.tile(np.arange(50), 1000)).reshape(1000, 50)
    counts = np.histogram(grid, bins=50, range=(0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 86  # chi-square, 49 degrees of freedom, p = 1e-3
    assert len(np.unique(grid)) == grid.size
    for a, b in ((grid[:, :-1], grid[:, 1:]), (grid[:-1], grid[1:])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.015


def test_keys_tell_order_and_sample_apart():
    seen = {int(noise_key(k, i)) for k in [(1, 2), (2, 1), (1, 2, 0), (-1, 2)] for i in range(4)}
    assert len(seen) == 16


@pytest.mark.parametrize("vocab", [5, 256, 1000])
def test_inverse_cdf_is_the_inverse(vocab):
    probs = torch.rand(64, vocab, generator=torch.Generator().manual_seed(0)) ** 8
    probs[:, ::3] = 0
    probs /= probs.sum(1, keepdim=True)
    uniform = torch.rand(64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    want = (probs.double().cumsum(1) <= uniform[:, None]).sum(1)
    got = inverse_cdf(probs, uniform)
    # Block sums are float32: a uniform within 1e-6 of a boundary may fall on either side.
    boundary = (probs.double().cumsum(1) - uniform[:, None]).abs().amin(1) < 1e-6
    assert torch.equal(got[~boundary], want[~boundary])
    assert boundary.float().mean() < 0.1
    for edge in (0.0, 1 - 2.0**-53):
        at = inverse_cdf(probs, torch.full((64,), edge, dtype=torch.float64))
        assert bool((probs.gather(1, at[:, None]) > 0).all())


@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(temperature=0.5), Sampling(temperature=1.5, top_k=7, min_p=0.05)],
)
def test_samples_follow_the_distribution(sampling):
    draws, vocab = 20_000, 12
    logits = torch.randn(1, vocab, generator=torch.Generator().manual_seed(2)) * 1.5
    plan = make_plan([sampling], vocab, CPU)
    want = filtered_probs(torch.softmax(logits / sampling.temperature, -1), plan)[0].double()
    keys = np.full(draws, noise_key((7,), 0))
    tokens, logp = sample(logits.repeat(draws, 1), uniforms(keys, np.arange(draws)), plan)
    torch.testing.assert_close(logp.double(), want.log()[tokens], atol=1e-6, rtol=1e-6)
    counts = torch.bincount(tokens, minlength=vocab).double()
    alive = want > 0
    assert bool((counts[~alive] == 0).all())
    chi = ((counts - draws * want) ** 2 / (draws * want))[alive].sum()
    assert chi < 31  # p = 1e-3 at 11 degrees of freedom


def test_greedy_rows_take_the_largest_with_its_plain_logprob():
    logits = torch.randn(3, 9, generator=torch.Generator().manual_seed(3))
    rows = [Sampling(temperature=0), Sampling(temperature=0, top_k=1), Sampling(temperature=2.0)]
    tokens, logp = sample(logits, np.full(3, 0.999), make_plan([*rows[:2], rows[2]], 9, CPU))
    assert tokens[:2].tolist() == logits.argmax(1)[:2].tolist()
    plain = torch.log_softmax(logits, -1).gather(1, tokens[:, None]).squeeze(1)
    torch.testing.assert_close(logp[:2], plain[:2])
    assert float(logp[2]) == pytest.approx(float(torch.log_softmax(logits[2] / 2, -1)[tokens[2]]))
