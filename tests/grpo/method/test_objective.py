"""Token losses against numbers worked out by hand, and gradients against finite differences."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo.config.schema import Algorithm
from grpo.errors import PluginError, RecipeError
from grpo.method.losses import (
    Clip,
    LossInputs,
    clipped_surrogate,
    completion_means,
    kl_estimate,
    loss_of,
    loss_of_tokens,
    sampling_weights,
)
from grpo.method.objective import Objective, Totals, keeps_dead_rows
from grpo.method.table import OBJECTIVES, check_settings, find_objective
from grpo.method.weighted_rows import make_rows
from tests.grpo.rows import group


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
    loss, metrics = loss_of_tokens(objective, given, Clip(beta=0.1))
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
        loss, _ = loss_of_tokens(objective, given, Clip(beta=1.0, delta=1.01))
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
        return loss_of_tokens(objective, inputs([1.0] * 5, advantages, ref=ref, logp=values), clip)[
            0
        ]

    assert torch.autograd.gradcheck(loss, (logp,))


def test_weights_by_hand():
    totals = Totals(rows=4, tokens=50)
    weight = {name: o.weight(5, totals, 16) for name, o in OBJECTIVES.items()}
    assert weight["grpo"] == pytest.approx(1 / 20)
    assert weight["dr_grpo"] == pytest.approx(1 / 64)
    assert weight["dapo"] == pytest.approx(1 / 50)
    assert weight["luspo"] == pytest.approx(1 / 4)
    assert weight["gspo"] == weight["sapo"] == weight["grpo"]
    assert weight["cispo"] == weight["vespo"] == weight["dapo"]


def two_completions():
    """Ratios 2, 1/2 | 4, 1 with advantages 1 | -1; sequence-level ratios 1 | 2, products 1 | 4."""
    given = inputs([2.0, 0.5, 4.0, 1.0], [1.0, 1.0, -1.0, -1.0])
    return replace(given, completions=torch.tensor([0, 0, 1, 1]))


def phi(w, k, decay):
    return w**k * math.exp(decay * (1 - w))


SIGMOID = {x: 1 / (1 + math.exp(-x)) for x in (1.0, -0.5, 6.0, 0.0)}
BY_HAND = [
    ("gspo", {}, Clip(), [-1.0, -1.0, 2.0, 2.0]),
    ("luspo", {}, Clip(delta=1.5), [-1.0, -1.0, 1.5, 1.5]),
    # -min(ratio, 3) * A * log pi, with log pi = log ratio - 2
    (
        "cispo",
        {},
        Clip(epsilon_high=3.0),
        [
            -2 * (math.log(2) - 2),
            -0.5 * (math.log(0.5) - 2),
            3 * (math.log(4) - 2),
            -2.0,
        ],
    ),
    (
        "sapo",
        {"sapo_temperature_pos": 1.0, "sapo_temperature_neg": 2.0},
        Clip(),
        [-4 * SIGMOID[1.0], -4 * SIGMOID[-0.5], 2 * SIGMOID[6.0], 2 * SIGMOID[0.0]],
    ),
    (
        "vespo",
        {"vespo_k_neg": 0.5, "vespo_lambda_neg": 0.25},
        Clip(),
        [
            2 - math.log(2),
            2 - math.log(0.5),
            phi(4, 0.5, 0.25) * (math.log(4) - 2),
            phi(4, 0.5, 0.25) * -2,
        ],
    ),
]


@pytest.mark.parametrize(("name", "loss_args", "clip", "expected"), BY_HAND)
def test_token_losses_by_hand(name, loss_args, clip, expected):
    loss, _ = loss_of_tokens(find_objective(name, loss_args), two_completions(), clip)
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("name", ["cispo", "vespo", "sapo", "gspo"])
def test_on_policy_every_objective_has_the_gradient_of_reinforce(name):
    given = inputs([1.0, 1.0], [2.0, -3.0])
    logp = given.logp.clone().requires_grad_()
    loss, _ = loss_of_tokens(
        find_objective(name), replace(given, logp=logp), Clip(epsilon_high=5.0)
    )
    loss.sum().backward()
    torch.testing.assert_close(logp.grad, -given.advantages)


def test_cispo_keeps_the_gradient_that_clipping_loses():
    given = inputs([8.0], [1.0])
    logp = given.logp.clone().requires_grad_()
    found = {}
    for name in ("dapo", "cispo"):
        loss, _ = loss_of_tokens(
            find_objective(name), replace(given, logp=logp), Clip(epsilon_high=5.0)
        )
        (found[name],) = torch.autograd.grad(loss.sum(), logp)
    assert found["dapo"].item() == 0
    assert found["cispo"].item() == pytest.approx(-5.0)


def test_off_policy_completions_are_masked_when_they_are_bad():
    # log pi_sampler - log pi: means 1/2 (bad), 1/2 (good), 0.1 (bad) over completions of 2, 1, 1
    drift = torch.tensor([1.2, -0.2, 0.5, 0.1], dtype=torch.float64)
    given = inputs([1.0] * 4, [-1.0, -1.0, 1.0, -1.0], ref=[-2.0] * 4)
    given = replace(given, completions=torch.tensor([0, 0, 1, 2]), logp_sampler=given.logp + drift)
    objective = find_objective("dapo", {"off_policy_mask_threshold": 0.4})
    loss, metrics = loss_of_tokens(objective, given, Clip())
    assert loss.tolist() == [0.0, 0.0, -1.0, 1.0]
    assert metrics["off_policy_mask/masked_mean"].tolist() == [1, 1, 0, 0]


def test_masks_and_corrections_leave_the_kl_term_alone():
    given = replace(
        inputs([1.0, 1.0], [1.0, 1.0], ref=[-2.0 - math.log(2)] * 2),
        high_entropy=torch.tensor([1.0, 0.0]),
        correction=torch.tensor([0.5, 0.5]),
    )
    loss, _ = loss_of_tokens(find_objective("dapo", {"kl_estimator": "k1"}), given, Clip(beta=0.1))
    kl = 0.1 * math.log(2)
    assert loss.tolist() == pytest.approx([-0.5 + kl, kl])


def test_vespo_takes_the_correction_into_its_ratio():
    given = replace(two_completions(), correction=torch.tensor([0.5, 0.5, 1.0, 1.0]))
    loss, metrics = loss_of_tokens(find_objective("vespo"), given, Clip())
    # products 1 * 1/4 and 4; k = 2, lambda = 3 and k = 3, lambda = 2
    expected = [phi(0.25, 2, 3)] * 2 + [phi(4, 3, 2)] * 2
    assert metrics["vespo/phi_seq_mean"].tolist() == pytest.approx(expected)
    torch.testing.assert_close(
        loss, -torch.tensor(expected).double() * given.advantages * given.logp, rtol=1e-6, atol=0
    )  # and not a second time


def test_the_entropy_bonus_is_a_mean_over_the_step():
    given = replace(
        inputs([1.0, 1.0], [1.0, 0.0]),
        weights=torch.tensor([0.25, 0.25], dtype=torch.float64),
        entropy=torch.tensor([0.4, 1.0], dtype=torch.float64),
        entropy_weights=torch.tensor([0.1, 0.1], dtype=torch.float64),
    )
    loss, _ = loss_of(find_objective("grpo", {"entropy_coef": 0.5}), given, Clip())
    assert loss.item() == pytest.approx(-0.25 - 0.5 * 0.14)


@given(data=st.data())
def test_completions_may_be_dealt_out_in_any_way(data):
    name = data.draw(st.sampled_from(sorted(OBJECTIVES)))
    objective = find_objective(name, {"off_policy_mask_threshold": 0.2, "entropy_coef": 0.3})
    lengths = data.draw(st.lists(st.integers(1, 4), min_size=2, max_size=5))
    part = data.draw(st.lists(st.integers(0, 1), min_size=len(lengths), max_size=len(lengths)))
    completions = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    torch.manual_seed(len(completions))
    noise = torch.randn(7, len(completions), dtype=torch.float64)
    whole = LossInputs(
        logp=noise[0] - 3,
        logp_old=noise[0] - 3 + 0.4 * noise[1],
        logp_sampler=noise[0] - 3 + 0.4 * noise[2],
        logp_ref=noise[3] - 3,
        advantages=noise[4, : len(lengths)][completions],
        weights=noise[5].abs(),
        entropy=noise[6].abs(),
        completions=completions,
        correction=noise[5].exp(),
        high_entropy=(noise[6] > -0.5).double(),
        entropy_weights=torch.full_like(noise[0], 0.1),
    )
    clip = Clip(beta=0.1, epsilon_high=1.5)
    total = 0.0
    for side in (0, 1):
        mine = torch.tensor(part)[completions] == side
        tensors = {n: v[mine] for n, v in vars(whole).items() if isinstance(v, torch.Tensor)}
        _, tensors["completions"] = torch.unique(completions[mine], return_inverse=True)
        total += float(loss_of(objective, replace(whole, **tensors), clip)[0])
    assert total == pytest.approx(float(loss_of(objective, whole, clip)[0]), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(
    ("loss_args", "words"),
    [
        ({"entropy_coeff": 1.0}, "'entropy_coeff'.*'entropy_coef'"),
        ({"sapo_temperature_pos": 1.0}, "loss_type = 'gspo'.*'sapo_temperature_pos'"),
        ({"importance_sampling_level": "token"}, "'importance_sampling_level'"),
        ({"inputs": 1}, "'inputs'"),
        ({"kl_estimator": "k4"}, "algorithm.loss_args.kl_estimator.*'k4'.*k3"),
        ({"top_entropy_quantile": 1.5}, "top_entropy_quantile = 1.5.*from 0 to 1"),
        ({"top_entropy_quantile": True}, "top_entropy_quantile = True"),
        ({"off_policy_mask_threshold": 0}, "off_policy_mask_threshold = 0"),
        ({"entropy_coef": "0.1"}, "entropy_coef = '0.1'"),
    ],
)
def test_arguments_that_are_refused(loss_args, words):
    with pytest.raises(RecipeError, match=words):
        find_objective("gspo", loss_args)


def test_a_plug_in_has_arguments_of_its_own_and_the_shared_ones(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def loss(inputs, clip, scale):\n    return -scale * inputs.logp, {}\n")
    objective = find_objective(f"{file}:loss", {"scale": 3.0, "kl_estimator": "k1"})
    found, metrics = loss_of_tokens(objective, inputs([1.0], [1.0], ref=[-2.5]), Clip(beta=0.1))
    assert found.tolist() == pytest.approx([6.0 + 0.1 * 0.5])
    assert metrics["kl"].item() == pytest.approx(0.5)
    with pytest.raises(PluginError, match="needs 'scale'"):
        find_objective(f"{file}:loss")
    with pytest.raises(RecipeError, match=r"'scal'.*'scale'"):
        find_objective(f"{file}:loss", {"scal": 3.0})


@pytest.mark.parametrize(
    ("token_loss", "said"),
    [
        (lambda i, c: ((-i.logp).mean(), {}), r"returned Tensor of shape \(\); .* shape \(2,\)"),
        (lambda i, c: (-i.logp[:, None], {}), r"returned Tensor of shape \(2, 1\)"),
        (lambda i, c: -i.logp, "returned Tensor; it has to return a loss"),
        (lambda i, c: (-i.logp, None), "returned tuple; it has to return a loss"),
        (lambda i, c: (1.0, {}), "returned float; it has to return a loss"),
        (lambda i, c: (-i.logp, {"m": i.logp[:, None]}), r"Tensor of shape \(2, 1\) as metric 'm'"),
        (lambda i, c: (-i.logp, {"m": [1, 2]}), "list as metric 'm'"),
        (lambda i, c: (-i.logp * i.advantages.clamp_(max=0), {}), r"inputs\.advantages in place"),
        (lambda i, c: (-i.logp * i.columns["own"].add_(1), {}), r"inputs\.own in place"),
        (lambda i, c: (-i.logp_old, {}), r"does not depend on inputs\.logp"),
    ],
)
def test_a_token_loss_that_would_be_summed_as_something_else_is_refused(token_loss, said):
    """A mean or a column of numbers would be broadcast against the weights without a word."""
    own = torch.ones(2, dtype=torch.float64)
    logp = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    given = replace(inputs([1.0, 1.0], [1.0, -1.0], logp=logp), columns={"own": own})
    with pytest.raises(PluginError, match=said):
        loss_of(Objective(token_loss=token_loss), given, Clip())


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("cispo", {}, "needs algorithm.epsilon_high"),  # ratios would be capped at 0.2
        ("cispo", {"epsilon_high": 5.0, "delta": 2.0}, "does not use algorithm.delta = 2.0"),
        ("vespo", {"sampling_correction": "sequence_mask"}, "would do so twice"),
    ],
)
def test_a_plug_in_that_begins_with_a_built_in_keeps_what_that_needs(
    name, settings, said, tmp_path
):
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import replace\n"
        "from grpo.method.objective import per_row\n"
        "from grpo.method.table import OBJECTIVES\n"
        f"own = replace(OBJECTIVES[{name!r}], weight=per_row)\n"
    )
    algorithm = Algorithm(loss_type=f"{file}:own", **settings)
    with pytest.raises(RecipeError, match=said):
        check_settings(algorithm.loss_type, find_objective(algorithm.loss_type), algorithm)


def test_metrics_of_a_token_loss_lose_their_gradient():
    logp = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    objective = Objective(token_loss=lambda i, c: (-i.logp, {"ratio": i.ratio(), "cap": 3.0}))
    _, metrics = loss_of(objective, inputs([1.0, 1.0], [1.0, 1.0], logp=logp), Clip())
    assert not metrics["ratio"].requires_grad
    assert metrics["cap"] == 3.0


def test_what_a_plug_in_raises_is_told_with_its_line(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from grpo.method.objective import Objective\n"
        "def loss(inputs, clip):\n    return inputs.nothing, {}\n"
        "own = Objective(token_loss=loss)\n"
    )
    for name in ("loss", "own"):
        objective = find_objective(f"{file}:{name}")
        with pytest.raises(PluginError, match=rf"mine.py:{name}' raised Attr.*mine\.py:3$"):
            loss_of_tokens(objective, inputs([1.0], [1.0]), Clip())


@pytest.mark.parametrize("weight", [None, math.nan, math.inf, "1", [0.5], 1j])
def test_a_weight_that_is_no_number_is_refused(weight):
    """NaN would end the step without the reason, and under float16 no step would be taken."""
    objective = Objective(token_loss=lambda i, c: (-i.logp, {}), weight=lambda *_: weight)
    with pytest.raises(PluginError, match=r"the objective's weight returned .*; it is a finite"):
        make_rows([group(0, 2, [2], [1.0])], [[1.0]], loss_type=objective, max_completion_length=4)


def test_a_constant_of_one_objective_is_above_0():
    with pytest.raises(RecipeError, match="sapo_temperature_neg = -1"):
        find_objective("sapo", {"sapo_temperature_neg": -1})


def test_dead_rows_matter_where_entropies_do():
    kept = {
        name: keeps_dead_rows(find_objective(name, args), 0.0)
        for name, args in [
            *((name, {}) for name in OBJECTIVES),
            ("grpo", {"entropy_coef": 0.1}),
            ("sapo", {"top_entropy_quantile": 0.5}),
        ]
    }
    assert {name for name, keeps in kept.items() if keeps} == {"bnpo", "grpo", "sapo"}


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
