"""Token losses against numbers worked out by hand, and gradients against finite differences."""

import math

import pytest
import torch

from grpo.errors import RecipeError
from grpo.objective import OBJECTIVES, Totals, find_objective
from grpo.token_losses import (
    Clip,
    LossInputs,
    clipped_surrogate,
    completion_means,
    kl_estimate,
    sampling_weights,
)


def inputs(ratios, advantages, ref=None, logp=None, old=None):
    if old is None:
        old = torch.full((len(ratios),), -2.0, dtype=torch.float64)
    if logp is None:
        logp = old + torch.tensor(ratios, dtype=torch.float64).log()
    return LossInputs(
        logp=logp,
        logp_old=old,
        logp_sampler=old,
        logp_ref=None if ref is None else torch.tensor(ref, dtype=torch.float64),
        advantages=torch.tensor(advantages, dtype=torch.float64),
        weights=torch.ones(len(ratios), dtype=torch.float64),
        entropy=None,
        completions=torch.arange(len(ratios)),
    )


def test_clipping_by_hand():
    ratios = [1.0, 1.5, 1.5, 0.5, 0.5, 8.0, 1.25]
    advantages = [2.0, 1.0, -1.0, 1.0, -1.0, -1.0, 1.0]
    clip = Clip(epsilon=0.2, epsilon_high=0.28, delta=4.0)
    loss, metrics = clipped_surrogate(inputs(ratios, advantages), clip)
    # the pessimistic side of each pair; 8.0 is capped at delta; 1.25 lies within 1 + 0.28
    expected = [-2.0, -1.28, 1.5, -0.5, 0.8, 4.0, -1.25]
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64))
    assert metrics["clip_ratio/high_mean"].tolist() == [0, 1, 0, 0, 0, 0, 0]
    assert metrics["clip_ratio/low_mean"].tolist() == [0, 0, 0, 0, 1, 0, 0]
    assert metrics["clip_ratio/region_mean"].tolist() == [0, 1, 0, 0, 1, 0, 0]


def test_without_delta_the_ratio_of_a_bad_token_is_unbounded():
    loss, _ = clipped_surrogate(inputs([8.0], [-1.0]), Clip())
    assert loss.item() == pytest.approx(8.0)


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [("k1", math.log(2)), ("k2", math.log(2) ** 2 / 2), ("k3", 0.5 + math.log(2) - 1)],
)
def test_kl_by_hand(estimator, expected):
    logp = torch.tensor([math.log(0.5)], dtype=torch.float64)
    ref = torch.tensor([math.log(0.25)], dtype=torch.float64)
    assert kl_estimate(logp, ref, estimator).item() == pytest.approx(expected)
    objective = find_objective("dapo", {"kl_estimator": estimator})
    given = inputs([1.0], [0.0], ref=[math.log(0.25)], logp=logp, old=logp)
    loss, metrics = objective(given, Clip(beta=0.1))
    assert loss.item() == pytest.approx(0.1 * expected)
    assert metrics["kl"].item() == pytest.approx(expected)


def test_k3_expectation_is_the_kl():
    p = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    q = torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)
    exact = (p * (p / q).log()).sum()
    for estimator in ("k1", "k3"):
        torch.testing.assert_close((p * kl_estimate(p.log(), q.log(), estimator)).sum(), exact)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_penalty_has_the_gradient_of_the_kl_off_policy(estimator):
    # every token of a vocabulary of three, each as often as the old policy draws it
    old = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    ref = [math.log(0.3), math.log(0.3), math.log(0.4)]

    def gradient(loss_of):
        logits = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
        loss_of(torch.log_softmax(logits, dim=0)).backward()
        return logits.grad

    def expected_loss(logp):
        given = inputs([1.0] * 3, [0.0] * 3, ref=ref, logp=logp, old=old.log())
        objective = find_objective("dapo", {"kl_estimator": estimator})
        loss, _ = objective(given, Clip(beta=1.0, delta=1.01))
        return (old * loss).sum()

    exact = gradient(lambda logp: (logp.exp() * (logp - torch.tensor(ref))).sum())
    torch.testing.assert_close(gradient(expected_loss), exact, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_gradient_against_finite_differences(estimator):
    # away from the kinks of min and clamp, where no derivative exists
    logp = torch.tensor([-2.1, -1.5, -2.9, -1.9, -0.4], dtype=torch.float64, requires_grad=True)
    advantages = [1.0, 1.0, -1.0, -0.5, -2.0]
    clip = Clip(epsilon=0.2, epsilon_high=0.3, delta=3.0, beta=0.3)
    objective = find_objective("dapo", {"kl_estimator": estimator})

    def loss(values):
        ref = [-2.0, -2.5, -2.0, -1.0, -1.0]
        return objective(inputs([1.0] * 5, advantages, ref=ref, logp=values), clip)[0]

    assert torch.autograd.gradcheck(loss, (logp,))


def test_weights_by_hand():
    totals = Totals(rows=4, tokens=50)
    weight = {name: o.weight(5, totals, 16) for name, o in OBJECTIVES.items()}
    assert weight["grpo"] == pytest.approx(1 / 20)
    assert weight["dr_grpo"] == pytest.approx(1 / 64)
    assert weight["dapo"] == pytest.approx(1 / 50)


def test_completion_means():
    values = torch.tensor([1.0, 5.0, 3.0, 7.0], dtype=torch.float64)
    found = completion_means(values, torch.tensor([0, 2, 0, 2]))
    assert found.tolist() == [2.0, 6.0, 2.0, 6.0]


def test_unknown_name_suggests():
    with pytest.raises(RecipeError, match=r"'dr_grp'.*dr_grpo"):
        find_objective("dr_grp")


# two completions, of three tokens and two; ratios 1.5, 4, 0.5 (product 3) and 2, 0.5 (product 1)
SAMPLED = torch.tensor([1.5, 4.0, 0.5, 2.0, 0.5], dtype=torch.float64).log() - 3
PLACES = torch.tensor([0, 0, 0, 1, 1])


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("none", [1.0, 1.0, 1.0, 1.0, 1.0]),
        ("token_truncate", [1.5, 2.0, 0.5, 2.0, 0.5]),
        ("token_mask", [1.5, 0.0, 0.5, 2.0, 0.5]),  # 2 is not above the cap
        ("sequence_truncate", [2.0, 2.0, 2.0, 1.0, 1.0]),
        ("sequence_mask", [0.0, 0.0, 0.0, 1.0, 1.0]),
    ],
)
def test_sampling_weights_by_hand(mode, expected):
    sampler = torch.full((5,), -3.0, dtype=torch.float64)
    found = sampling_weights(SAMPLED, sampler, PLACES, mode, 2.0 + 1e-12)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("mode", ["token_truncate", "sequence_truncate"])
def test_sampling_weights_make_an_average_that_of_the_policy(mode):
    # Tokens as often as the sampler draws them; without a cap the weighted mean is the policy's.
    sampler = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    policy = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    value = torch.tensor([1.0, -2.0, 7.0], dtype=torch.float64)
    weights = sampling_weights(policy.log(), sampler.log(), torch.arange(3), mode, 1e9)
    torch.testing.assert_close((sampler * weights * value).sum(), (policy * value).sum())
    capped = sampling_weights(policy.log(), sampler.log(), torch.arange(3), mode, 1.0)
    assert capped.max() == 1.0


@pytest.mark.parametrize("mode", ["token_mask", "sequence_truncate"])
def test_sampling_weights_of_no_tokens(mode):
    nothing = torch.zeros(0, dtype=torch.float64)
    assert len(sampling_weights(nothing, nothing, nothing.long(), mode, 2.0)) == 0
