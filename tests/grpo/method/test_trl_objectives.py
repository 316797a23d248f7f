"""Every objective beside the clipped surrogate's own: loss and gradient are TRL's.

As in `test_trl_equality.py`, whose trainer is used: TRL's code on fixed tokens. Here some tokens
come from a tool, the old policy is far enough away that every clip and gate acts, and the sampler
says something else than the learner.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from grpo.config.schema import Algorithm
from grpo.config.schema import Learner as Config
from grpo.learner.learner import TorchLearner
from grpo.method.advantage import reward_matrix
from grpo.method.table import ADVANTAGES, find_objective
from grpo.method.weighted_rows import make_rows
from grpo.types import Segment
from tests.grpo.learner import test_trl_equality as equality
from tests.grpo.rows import group, tiny_model, with_columns

pytestmark = equality.pytestmark
trainer = equality.trainer

CAP = 1.3  # of the correction for the sampler
SAPO = {"sapo_temperature_pos": 3.0, "sapo_temperature_neg": 4.0}
VESPO = {"vespo_k_pos": 1.2, "vespo_lambda_pos": 0.7, "vespo_k_neg": 0.9, "vespo_lambda_neg": 0.4}
SEQUENCE = {"importance_sampling_level": "sequence"}
QUANTILE, BONUS, MASK = (
    {"top_entropy_quantile": 0.3},
    {"entropy_coef": 0.2},
    {"off_policy_mask_threshold": 0.1},
)
# our name, TRL's, our loss_args, other settings of the algorithm
CASES = [
    ("gspo", "grpo", {}, {}),
    ("gspo", "grpo", MASK, {"delta": 1.3}),
    ("dapo", "dapo", SEQUENCE, {}),
    ("luspo", "luspo", {}, {}),
    ("luspo", "luspo", QUANTILE | BONUS, {"sampling_correction": "token_truncate"}),
    ("cispo", "cispo", {}, {"epsilon_high": 1.2}),
    ("cispo", "cispo", SEQUENCE | MASK, {"epsilon_high": 1.05}),
    ("sapo", "sapo", SAPO, {}),
    ("sapo", "sapo", SAPO | SEQUENCE | BONUS, {"sampling_correction": "token_mask"}),
    ("vespo", "vespo", {}, {}),
    ("vespo", "vespo", VESPO | QUANTILE, {}),
    ("vespo", "vespo", VESPO | MASK, {"sampling_correction": "token_truncate"}),
    ("vespo", "vespo", VESPO, {"sampling_correction": "token_mask"}),
    ("grpo", "grpo", MASK, {"sampling_correction": "sequence_truncate"}),
    ("grpo", "grpo", QUANTILE | BONUS, {}),
    ("dr_grpo", "dr_grpo", QUANTILE | MASK | BONUS, {"delta": 1.5}),
    ("dapo", "dapo", BONUS, {}),
    ("dapo", "dapo", {"top_entropy_quantile": 0.0}, {}),
    ("bnpo", "bnpo", QUANTILE | BONUS, {}),
]


@pytest.fixture(scope="module")
def groups():
    """The groups of `test_trl_equality.py`, with two tokens of some completions from a tool."""
    made = [group(i, 3 + i, equality.LENGTHS[i], equality.REWARDS[i]) for i in range(2)]
    for rollout in (r for g in made for r in g.rollouts if len(r.completion.ids) > 4):
        (whole,) = rollout.completion.segments
        parts = tuple(
            Segment(
                ids=whole.ids[part],
                logprobs=whole.logprobs[part],
                version=whole.version,
                source=source,
            )
            for part, source in (
                (slice(0, 2), "model"),
                (slice(2, 4), "tool"),
                (slice(4, None), "model"),
            )
        )
        completion = replace(rollout.completion, segments=parts)
        object.__setattr__(rollout, "completion", completion)
    return made


def padded(values, like):
    found = torch.zeros(like.shape)
    for row, value in zip(found, values, strict=True):
        row[: len(value)] = torch.from_numpy(np.asarray(value))
    return found


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize(("name", "their_name", "loss_args", "settings"), CASES)
def test_loss_and_gradient_equal_trls(
    trainer, groups, monkeypatch, name, their_name, loss_args, settings, beta
):
    settings = {"sampling_correction": "none", "sampling_correction_cap": CAP, **settings}
    algorithm = Algorithm(loss_type=name, loss_args=loss_args, beta=beta, **settings)
    objective = find_objective(name, loss_args)
    learner = TorchLearner(
        tiny_model(dtype=torch.float32, pad_token_id=0),
        algorithm=algorithm,
        config=Config(tokens_per_micro_batch=4096, max_grad_norm=0.0),
        temperature=0.7,
        reference=tiny_model(seed=1, dtype=torch.float32, pad_token_id=0),
    )
    high = algorithm.epsilon if algorithm.epsilon_high is None else algorithm.epsilon_high
    corrected = algorithm.sampling_correction != "none"
    for attribute, value in {
        "loss_type": their_name,
        "beta": beta,
        "epsilon_low": algorithm.epsilon,
        "epsilon_high": high,
        "importance_sampling_level": objective.importance_sampling_level,
        "off_policy_mask_threshold": objective.off_policy_mask_threshold,
        "top_entropy_quantile": objective.top_entropy_quantile,
        "entropy_coef": objective.entropy_coef,
        "_entropy_bonus_enabled": objective.entropy_coef != 0,
    }.items():
        assert hasattr(trainer, attribute)
        monkeypatch.setattr(trainer, attribute, value)
    for attribute in ("delta", *SAPO, *VESPO):
        assert hasattr(trainer.args, attribute)
    monkeypatch.setattr(trainer.args, "delta", algorithm.delta)
    for attribute in loss_args.keys() & {*SAPO, *VESPO}:
        monkeypatch.setattr(trainer.args, attribute, loss_args[attribute])

    generate = trainer._generate
    rollouts = [r for g in groups for r in g.rollouts]
    tool_mask = [r.completion.mask.astype(int).tolist() for r in rollouts]
    monkeypatch.setattr(
        trainer, "_generate", lambda p: (*generate(p)[:2], tool_mask, *generate(p)[3:])
    )
    model = trainer.model
    model.train()
    inputs = trainer._generate_and_score_completions([{"prompt": p} for p in "aaaabbbb"])
    assert (inputs["tool_mask"] == 0).any()

    # Old and sampler's log-probs by token, from a fixed stream; the means drift by completion.
    advantages = ADVANTAGES["grpo"].function(reward_matrix(groups))
    rows = make_rows(groups, advantages, loss_type=name, max_completion_length=equality.MAX_LENGTH)
    now = [np.nan_to_num(x) for x in learner.logprobs(rows)]
    rng = np.random.default_rng(5)
    old = [x + rng.normal(rng.normal(0, 0.3), 0.4, len(x)).astype(np.float32) for x in now]
    sampler = [x + rng.normal(0, 0.4, len(x)).astype(np.float32) for x in old]
    rows = [with_columns(row, logp_sampler=x) for row, x in zip(rows, sampler, strict=True)]
    (prepared,) = learner._prepare(rows, recompute=True)
    batch = prepared.batch
    for place, index in enumerate(batch.rows):
        mine = torch.from_numpy(batch.completions == place)
        prepared.columns["logp_old"][mine] = torch.from_numpy(old[index][rows[index].mask])
    like = inputs["completion_mask"]
    mask = like * inputs["tool_mask"]
    inputs["old_per_token_logps"] = padded(old, like)
    inputs["sampling_per_token_logps"] = padded(sampler, like)
    if corrected:
        monkeypatch.setattr(trainer, "use_vllm", True)
        monkeypatch.setattr(trainer, "vllm_importance_sampling_correction", True)
        difference = (padded(old, like) - padded(sampler, like)) * mask
        level, _, what = algorithm.sampling_correction.partition("_")
        if level == "sequence":
            difference = difference.sum(-1, keepdim=True)
        ratio = difference.exp()
        assert (ratio > CAP).any()
        cut = ratio.clamp(max=CAP) if what == "truncate" else ratio * (ratio <= CAP)
        inputs["importance_sampling_ratio"] = cut

    model.zero_grad()
    theirs = trainer._compute_loss(model, inputs)
    theirs.backward()
    ours, _, metrics = learner.loss(prepared)
    ours.backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    for (parameter, a), (_, b) in zip(
        model.named_parameters(), learner.model.named_parameters(), strict=True
    ):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-5, msg=parameter)

    first = [int(np.argmax(batch.completions == i)) for i in range(len(batch.rows))]
    for metric, values in metrics.items():
        if metric in trainer._metrics["train"] and not metric.startswith("sampling/"):
            # TRL's mean is over completions where it has one number for each
            whole = objective.importance_sampling_level == "sequence" and "clip" in metric
            values = values[first] if whole or metric == "vespo/phi_seq_mean" else values
            expected = trainer._metrics["train"][metric][-1]
            assert float(values.mean()) == pytest.approx(expected, rel=1e-4, abs=1e-6), metric
    for metric, values in metrics.items():
        if "clip" in metric or metric == "off_policy_mask/masked_mean":
            assert values.any() or metric.endswith(("low_mean", "high_mean")), metric
    if name == "vespo":
        assert (metrics["vespo/phi_seq_mean"] < 0.9).any()
