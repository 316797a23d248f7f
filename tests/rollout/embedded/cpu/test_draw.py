"""The compiled draw against float64."""

import numpy as np
import pytest
import torch

from grpo.rollout.embedded.cpu.draw import SOURCE, draw

compiled = pytest.mark.skipif(SOURCE.load() is None, reason="no C++ compiler")


def drawn(logits, uniform, factor=1.0):
    factors = np.full(len(logits), factor, dtype=np.float32)
    found = draw(logits, np.asarray(uniform, dtype=np.float64), factors)
    assert found is not None
    return found


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("vocab", "factor"), [(7, 1.0), (256, 0.5), (1031, 1.0), (5000, 1.4)])
def test_draws_are_the_inverse_cdf(dtype, vocab, factor):
    generator = torch.Generator().manual_seed(vocab)
    logits = (torch.randn(400, vocab, generator=generator) * 4).to(dtype)
    uniform = torch.rand(400, generator=generator, dtype=torch.float64).numpy()
    tokens, logp = drawn(logits, uniform, factor)
    exact = torch.log_softmax(logits.double() * np.float32(factor), dim=1)
    want = exact.gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(logp.double(), want, rtol=0, atol=3e-6)
    cdf = exact.exp().cumsum(1)
    after = cdf.gather(1, tokens[:, None])[:, 0].numpy()
    before = after - want.exp().numpy()
    assert (uniform > before - 2e-6).all()
    assert (uniform < after + 2e-6).all()


@compiled
def test_what_is_impossible_is_never_drawn():
    logits = torch.full((6, 600), -torch.inf)
    logits[:, 300] = 1.0
    logits[:, 301] = 1.0 - 200.0  # its probability is 0 in float32
    uniform = [0.0, 1e-300, 0.3, 0.999999, 1 - 2.0**-53, -1.0]
    tokens, logp = drawn(logits, uniform)
    assert tokens.tolist() == [300] * 6
    assert logp.tolist() == [0.0] * 6


@compiled
def test_rounding_never_leads_past_the_last_possible_token():
    """The block's sum in float32 is above the one in float64 for about half of these rows."""
    logits = torch.randn(300, 256, generator=torch.Generator().manual_seed(0))
    logits[:, 200:] = -torch.inf
    tokens, logp = drawn(logits, [1 - 2.0**-53] * 300)
    assert (tokens < 200).all()
    assert torch.isfinite(logp).all()


@compiled
def test_greedy_takes_the_first_of_the_largest():
    logits = torch.zeros(2, 300)
    logits[0, [40, 41, 299]] = 2.0
    tokens, logp = drawn(logits, [-1.0, -1.0])
    assert tokens.tolist() == [40, 0]
    assert logp[1].item() == pytest.approx(-np.log(300))


@compiled
def test_a_broken_model_shows():
    logits = torch.zeros(1, 300)
    logits[0, 7] = torch.nan
    tokens, logp = drawn(logits, [0.4])
    assert 0 <= int(tokens) < 300
    assert torch.isnan(logp).all()
