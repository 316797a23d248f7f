"""The compiled softmax of the head and its derivative, against autograd in float64."""

import pytest
import torch

from grpo.kernels.head import SOURCE, normalize, pull_back_

pytestmark = pytest.mark.skipif(SOURCE.load() is None, reason="no C++ compiler")


def case(dtype, vocab=3001, rows=7, spread=6.0):
    generator = torch.Generator().manual_seed(vocab)
    product = (torch.randn(rows, vocab, generator=generator) * spread).to(dtype)
    targets = torch.randint(0, vocab, (rows,), generator=generator)
    return product, targets


def exact(product, targets, factor):
    logits = (product.double() * factor).requires_grad_()
    logp = torch.log_softmax(logits, dim=1)
    entropy = -(logp.exp() * logp).sum(1)
    variance = (logp.exp() * logp.square()).sum(1) - entropy.square()
    total = logits.logsumexp(1)
    return logits, total, logp.gather(1, targets[:, None])[:, 0], entropy, variance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("factor", [1.0, 0.7, 1.6])
def test_sums_over_the_vocabulary(dtype, factor):
    product, targets = case(dtype)
    found = normalize(product, targets, factor)
    _, *want = exact(product, targets, factor)
    for got, expected in zip(found, want, strict=True):
        torch.testing.assert_close(got.double(), expected.detach(), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("factor", [1.0, 0.7])
def test_the_derivative(dtype, factor):
    product, targets = case(dtype)
    a, b = torch.linspace(-2, 2, 7), torch.linspace(0.5, -0.5, 7)
    logits, total, logp, entropy, _ = exact(product, targets, factor)
    (logp * a.double() + entropy * b.double()).sum().backward()
    want = logits.grad * factor
    rows = torch.stack([total.float(), entropy.float(), a, b]).detach()
    got = pull_back_(product.clone(), targets, rows, factor).double()
    close = 4e-6 if dtype == torch.float32 else 2**-8
    assert (got - want).norm() <= close * want.norm()


def test_a_distribution_that_is_sure_and_one_that_is_flat():
    product = torch.zeros(3, 2000)
    product[0, 5] = 300.0  # all others have probability 0 in float32
    product[2] = -torch.inf
    product[2, :4] = 1.0
    total, logp, entropy, variance = normalize(product, torch.tensor([5, 9, 3]), 1.0)
    assert logp.tolist() == pytest.approx([0.0, -7.6009025, -1.3862944])
    assert entropy.tolist() == pytest.approx([0.0, 7.6009025, 1.3862944])
    assert variance.tolist() == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)
    assert total[0].item() == 300.0


def test_what_is_not_a_number_shows():
    product, targets = case(torch.float32)
    product[2, 77] = torch.nan
    found = normalize(product, targets, 1.0)
    assert torch.isnan(found[1]).tolist() == [row == 2 for row in range(7)]
