"""Noise, the inverse CDF and the filters against hand computations and the exact softmax."""

import numpy as np
import pytest
import torch

from grpo.rollout import sampling as module
from grpo.rollout.sampling import (
    filtered_probs,
    inverse_cdf,
    make_plan,
    noise_key,
    sample,
    uniforms,
)
from grpo.types import Sampling

CPU = torch.device("cpu")
PROBS = torch.tensor([[0.05, 0.4, 0.1, 0.25, 0.2]])


def kept(**sampling: float) -> list[float]:
    plan = make_plan([Sampling(**sampling)], 5, CPU)  # type: ignore[arg-type]
    return filtered_probs(PROBS, plan)[0].tolist()


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


def test_top_k_keeps_the_largest():
    assert kept(top_k=2) == pytest.approx([0, 0.4 / 0.65, 0, 0.25 / 0.65, 0])


def test_top_p_keeps_the_token_that_crosses():
    assert kept(top_p=0.5) == pytest.approx([0, 0.4 / 0.65, 0, 0.25 / 0.65, 0])
    assert kept(top_p=0.7) == pytest.approx([0, 0.4 / 0.85, 0, 0.25 / 0.85, 0.2 / 0.85])
    assert kept(top_p=1e-6) == pytest.approx([0, 1, 0, 0, 0])


@pytest.mark.parametrize("spread", [0.5, 4.0])  # needs more than the prefix, and less
def test_top_p_without_a_prefix_keeps_the_same(spread, monkeypatch):
    """A device sorts whole rows, as it would have to wait for whether the prefix is enough."""
    logits = torch.randn(4, 3000, generator=torch.Generator().manual_seed(4)) * spread
    rows = [Sampling(top_p=p) for p in (0.3, 0.9, 0.99, 1.0)]
    args = torch.softmax(logits, -1), make_plan(rows, 3000, CPU)
    want = filtered_probs(*args)
    monkeypatch.setattr(module, "_prefix", lambda *_: None)
    assert torch.equal(filtered_probs(*args), want)


def test_a_plan_says_on_the_host_what_decides_about_operations():
    greedy, warm = Sampling(temperature=0, top_k=3), Sampling(temperature=0.5, top_k=7)
    plan = make_plan([greedy, warm, Sampling(top_k=99), Sampling(top_k=40)], 40, CPU)
    assert (plan.largest, plan.only_greedy) == (7, False)  # 40 and more of 40 filter nothing
    assert plan.top_k is not None
    assert plan.top_k.tolist() == [3, 7, 40, 40]
    assert isinstance(plan.temperature, torch.Tensor)
    assert plan.temperature.tolist() == [[1.0], [0.5], [1.0], [1.0]]
    assert make_plan([greedy, greedy], 40, CPU).only_greedy
    assert make_plan([Sampling()], 40, CPU).largest == 1


def test_min_p_is_relative_to_the_largest():
    assert kept(min_p=0.3) == pytest.approx([0, 0.4 / 0.85, 0, 0.25 / 0.85, 0.2 / 0.85])


def test_filters_apply_one_after_the_other():
    # top-k 3 leaves .4 .25 .2 of .85; half of that needs the first two tokens (.47, .76).
    assert kept(top_k=3, top_p=0.5) == pytest.approx([0, 0.4 / 0.65, 0, 0.25 / 0.65, 0])
    assert kept(top_k=3, top_p=0.5, min_p=0.7) == pytest.approx([0, 1, 0, 0, 0])


def test_rows_have_filters_of_their_own():
    rows = [Sampling(), Sampling(top_k=1), Sampling(top_p=0.5), Sampling(temperature=0)]
    got = filtered_probs(PROBS.repeat(4, 1), make_plan(rows, 5, CPU))
    for row, want in enumerate([PROBS[0].tolist(), kept(top_k=1), kept(top_p=0.5)]):
        assert got[row].tolist() == pytest.approx(want)
    assert got[3].tolist() == pytest.approx(PROBS[0].tolist())


@pytest.mark.parametrize(
    "sampling",
    [{}, {"temperature": 0.7, "top_k": 50}, {"top_p": 0.8}, {"temperature": 1.3, "min_p": 0.05}],
)
def test_filters_equal_transformers(sampling):
    from transformers.generation import logits_process as hf

    logits = torch.randn(6, 2000, generator=torch.Generator().manual_seed(1)) * 3
    warped = logits / sampling.get("temperature", 1.0)
    for name, warper in (
        ("top_k", hf.TopKLogitsWarper),
        ("top_p", hf.TopPLogitsWarper),
        ("min_p", hf.MinPLogitsWarper),
    ):
        if name in sampling:
            warped = warper(sampling[name])(None, warped)
    plan = make_plan([Sampling(**sampling)] * 6, 2000, CPU)
    probs = torch.softmax(logits / plan.temperature, -1)
    torch.testing.assert_close(filtered_probs(probs, plan), torch.softmax(warped, -1))


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
    tokens, logp, _ = sample(logits.repeat(draws, 1), uniforms(keys, np.arange(draws)), plan)
    torch.testing.assert_close(logp.double(), want.log()[tokens], atol=1e-6, rtol=1e-6)
    counts = torch.bincount(tokens, minlength=vocab).double()
    alive = want > 0
    assert bool((counts[~alive] == 0).all())
    chi = ((counts - draws * want) ** 2 / (draws * want))[alive].sum()
    assert chi < 31  # p = 1e-3 at 11 degrees of freedom


def test_greedy_rows_take_the_largest_with_its_plain_logprob():
    logits = torch.randn(3, 9, generator=torch.Generator().manual_seed(3))
    rows = [Sampling(temperature=0), Sampling(temperature=0, top_k=1), Sampling(temperature=2.0)]
    tokens, logp, raw = sample(logits, np.full(3, 0.999), make_plan([*rows[:2], rows[2]], 9, CPU))
    assert tokens[:2].tolist() == logits.argmax(1)[:2].tolist()
    assert raw is None
    plain = torch.log_softmax(logits, -1).gather(1, tokens[:, None]).squeeze(1)
    torch.testing.assert_close(logp[:2], plain[:2])
    assert float(logp[2]) == pytest.approx(float(torch.log_softmax(logits[2] / 2, -1)[tokens[2]]))
