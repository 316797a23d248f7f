"""The learner: invariance of the gradient, master weights, schedules, resume, failures."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo.config.schema import Algorithm
from grpo.config.schema import Learner as Config
from grpo.errors import LearnerError, PluginError, RunError
from grpo.learner.forward import token_scores
from grpo.learner.learner import TorchLearner, learning_rate
from grpo.learner.packing import micro_batches, place
from grpo.method.advantage import reward_matrix
from grpo.method.table import ADVANTAGES, find_objective
from grpo.method.weighted_rows import drop_dead, make_rows
from grpo.types import Learner, Sampling
from tests.grpo.rows import group, three_groups, tiny_model

# With the made-up log-probs of the sampler the masks and the corrections act.
ENTROPY = {"top_entropy_quantile": 0.3, "entropy_coef": 0.2}
LOSSES = [
    {"loss_type": "grpo"},
    {"loss_type": "dr_grpo"},
    {"loss_type": "dapo"},
    {"loss_type": "gspo", "loss_args": {"off_policy_mask_threshold": 0.1}},
    {"loss_type": "luspo", "sampling_correction": "sequence_truncate"},
    {"loss_type": "cispo", "epsilon_high": 5.0},
    {"loss_type": "sapo"},
    {"loss_type": "vespo"},
    {"loss_type": "grpo", "loss_args": ENTROPY},
    {"loss_type": "dapo", "loss_args": {"top_entropy_quantile": 0.15}},
    {"loss_type": "vespo", "loss_args": {"entropy_coef": 0.2}},
]


def rows_of(groups, loss_type="dapo", **kwargs):
    advantages = ADVANTAGES["grpo"].function(reward_matrix(groups))
    return make_rows(groups, advantages, loss_type=loss_type, max_completion_length=10, **kwargs)


def make(
    model=None,
    algorithm=None,
    dtype="float32",
    reference=None,
    temperature=1.0,
    truncation=None,
    **config,
):
    return TorchLearner(
        tiny_model() if model is None else model,
        algorithm=Algorithm(**(algorithm or {})),
        config=Config(**{"learning_rate": 1e-2, "max_grad_norm": 0.0, **config}),
        dtype=dtype,
        reference=reference,
        temperature=temperature,
        truncation=truncation,
    )


def gradient(rows, algorithm=None, **config):
    """The loss and the gradient of one optimizer step, before clipping."""
    learner = make(algorithm=algorithm, reference=tiny_model(seed=1), temperature=0.8, **config)
    found = learner.step(rows)
    return found, [p.grad.clone() for p in learner.model.parameters()]


@settings(max_examples=25)
@given(
    loss=st.sampled_from(LOSSES),
    beta=st.sampled_from([0.0, 0.2]),
    budget=st.integers(10, 120),
    share=st.booleans(),
    order=st.permutations(range(9)),
)
def test_the_cut_does_not_matter(loss, beta, budget, share, order):
    rows = rows_of(three_groups(), loss["loss_type"])
    algorithm = {**loss, "beta": beta}
    whole, expected = gradient(rows, algorithm, tokens_per_micro_batch=1000, share_prompts=False)
    cut, found = gradient(
        [rows[i] for i in order], algorithm, tokens_per_micro_batch=budget, share_prompts=share
    )
    assert cut["loss"] == pytest.approx(whole["loss"], rel=1e-12, abs=1e-14)
    assert cut["entropy"] == pytest.approx(whole["entropy"], rel=1e-12)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_dropping_dead_rows_changes_nothing(loss):
    objective = find_objective(loss["loss_type"], loss.get("loss_args"))
    rows = rows_of(three_groups(), objective)
    kept, _ = drop_dead(rows, beta=0.0, loss_type=objective)
    live = [row for row in rows if row.columns["advantages"].any()]
    _, expected = gradient(rows, loss, share_prompts=False)
    _, found = gradient(kept, loss, share_prompts=False)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)
    if len(kept) == len(rows):  # then dropping would have been wrong
        _, dropped = gradient(live, loss, share_prompts=False)
        assert (
            max(float((a - b).abs().max()) for a, b in zip(dropped, expected, strict=True)) > 1e-6
        )
    else:
        assert len(kept) == len(live)


def test_tokens_chosen_for_their_entropy_are_the_highest_of_the_step():
    rows = rows_of(three_groups())
    loss = {"loss_type": "dapo", "loss_args": {"top_entropy_quantile": 0.25}}
    learner = make(algorithm=loss, tokens_per_micro_batch=20)
    prepared = learner._prepare(rows, recompute=False)
    assert len(prepared) > 2
    entropies, kept = [], []
    for part in prepared:
        _, inputs, _ = learner.loss(part)
        entropies += inputs.entropy.tolist()
        kept += part.columns["high_entropy"].tolist()
    # the 11 highest of 41, and what equals the 11th: a group's first tokens follow one prompt
    highest = sorted(entropies)[-11:]
    assert kept == [float(e >= highest[0] - 1e-9) for e in entropies]
    assert sum(kept) == 12
    assert sorted(entropies)[-12] == pytest.approx(highest[0], abs=1e-12)


def test_is_a_learner():
    assert isinstance(make(), Learner)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_small_step_moves_the_master_weights(dtype):
    model = tiny_model(dtype=torch.float32)
    learner = make(model, dtype=dtype, learning_rate=1e-6)
    before = [p.detach().clone() for p in model.parameters()]
    metrics = learner.step(rows_of(three_groups()))
    assert metrics["optimizer_steps"] == 1
    moved = total = 0
    for old, new in zip(before, model.parameters(), strict=True):
        assert new.dtype == torch.float32
        touched = new.grad != 0
        total += int(touched.sum())
        # where |w| is so large that lr falls under float32's own spacing nothing can move
        moved += int((touched & (new != old)).sum())
    assert total > 1000
    assert moved > 0.99 * total
    assert all(t.dtype == getattr(torch, dtype) for _, t in learner.weights())


def test_float16_scales_its_loss_and_counts_overflows():
    learner = make(tiny_model(dtype=torch.float32), dtype="float16")
    rows = rows_of(three_groups())
    before = learner.version()
    learner.scaler.scale(torch.zeros(()))  # the scaler makes its state on first use
    learner.scaler.update(2.0**120)
    assert learner.step(rows)["optimizer_steps/overflow"] == 1
    assert learner.version() == before
    for _ in range(40):
        learner.scaler.update(2.0**10)
        metrics = learner.step(rows)
    assert metrics["optimizer_steps"] == 1
    assert learner.version().step > 0


def test_a_gradient_that_is_not_finite_stops_the_run():
    learner = make()
    before = learner.version().hash
    bad = rows_of(three_groups())
    bad[0].columns["advantages"][0] = np.nan
    learner.step(rows_of(three_groups()))
    with pytest.raises(LearnerError, match="step 2"):
        learner.step(bad)
    assert learner.version().hash != before


def test_a_batch_of_dead_rows_advances_the_schedule_only():
    learner = make(lr_scheduler_type="linear", max_steps=4, learning_rate=1.0)
    before = learner.version()
    metrics = learner.step([])
    assert metrics["optimizer_steps"] == 0
    assert metrics["optimizer_steps/without_rows"] == 1
    assert learner.version() == before
    assert learner.step([])["learning_rate"] == 0.75


def test_schedules_by_hand():
    def rates(kind):
        config = Config(learning_rate=8.0, warmup_steps=2, max_steps=6, lr_scheduler_type=kind)
        return [learning_rate(config, step) for step in range(6)]

    assert rates("constant") == [4, 8, 8, 8, 8, 8]
    assert rates("linear") == [4, 8, 8, 6, 4, 2]
    np.testing.assert_allclose(rates("cosine"), [4, 8, 8, 4 + 8**0.5, 4, 4 - 8**0.5])


def test_one_step_improves_the_surrogate():
    learner = make(learning_rate=1e-3)
    rows = rows_of(three_groups())
    before = learner.logprobs(rows)
    learner.step(rows)
    gains = [
        float(((after - old) * row.columns["advantages"]).sum())
        for after, old, row in zip(learner.logprobs(rows), before, rows, strict=True)
    ]
    assert sum(gains) > 0


def test_the_gap_to_the_sampler_is_reported():
    learner = make()
    rows = rows_of(three_groups())
    for row, logp in zip(rows, learner.logprobs(rows), strict=True):
        row.columns["logp_sampler"][:] = logp
    rows[0].columns["logp_sampler"][1] += 0.41
    metrics = learner.step(rows)
    assert metrics["sampling/sampling_logp_difference/max"] == pytest.approx(0.41, rel=1e-4)
    assert metrics["sampling/sampling_logp_difference/mean"] == pytest.approx(0.41 / 41, rel=1e-3)


def test_several_updates_measure_the_ratio_from_the_first_policy():
    algorithm = {"num_iterations": 2, "num_minibatches": 2, "epsilon": 1e-6}
    learner = make(algorithm=algorithm, learning_rate=1e-2)
    metrics = learner.step(rows_of(three_groups(), num_minibatches=2))
    # group 1 is dead but kept here: its minibatch steps on a zero gradient
    assert metrics["optimizer_steps"] == 4
    assert metrics["clip_ratio/region_mean"] > 0
    once = make(algorithm={"epsilon": 1e-6}).step(rows_of(three_groups()))
    assert once["clip_ratio/region_mean"] == 0


PLUGIN = """
from grpo.method.objective import Objective

def reinforce(inputs, clip):
    return -inputs.advantages * inputs.logp, {"mine": inputs.logp.detach()}

constant = Objective(token_loss=reinforce, weight=lambda length, totals, budget: 1 / budget)
"""


def test_an_objective_of_the_users_own(tmp_path):
    file = tmp_path / "losses.py"
    file.write_text(PLUGIN)
    # on-policy, the surrogate's gradient is that of A * logp
    for name, builtin, factor in (("reinforce", "dapo", 1.0), ("constant", "dr_grpo", 9.0)):
        spec = f"{file}:{name}"
        _, expected = gradient(rows_of(three_groups(), builtin), {"loss_type": builtin})
        metrics, found = gradient(rows_of(three_groups(), spec), {"loss_type": spec})
        torch.testing.assert_close(found, [factor * g for g in expected], rtol=1e-6, atol=1e-9)
        assert metrics["mine"] < 0
    with pytest.raises(PluginError, match="'losing'"):
        make(algorithm={"loss_type": f"{file}:losing"})


def test_reference_is_loaded_only_for_a_kl_term():
    assert make().ref is None
    learner = make(algorithm={"beta": 0.1})
    first = learner.step(rows_of(three_groups()))
    assert first["kl"] == 0.0
    assert learner.step(rows_of(three_groups()))["kl"] > 0.0


def test_the_policy_is_scored_as_it_was_sampled_and_the_reference_whole():
    """What top_k leaves out goes to the tokens that stay, in the policy's distribution alone."""
    learner = make(algorithm={"beta": 0.1}, truncation=Sampling(top_k=2))
    batch = micro_batches(rows_of(three_groups()), 200, share_prompts=True, pad_id=0)[0]
    placed = place(batch, learner.device)
    whole = token_scores(learner.model, placed, 1.0).logp.detach()
    torch.testing.assert_close(learner.scorer.reference_logp(placed), whole)
    assert (learner.scorer.score_alone(placed).logp > whole + 0.1).all()


def test_checkpointing_activations_changes_nothing():
    rows = rows_of(three_groups())
    _, expected = gradient(rows)
    _, found = gradient(rows, gradient_checkpointing=True)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_resume_is_bit_identical(tmp_path, dtype):
    def fresh():
        return make(
            tiny_model(dtype=torch.float32),
            dtype=dtype,
            lr_scheduler_type="cosine",
            warmup_steps=2,
            max_steps=6,
            weight_decay=0.1,
            max_grad_norm=0.5,
        )

    batches = [
        rows_of([group(i, 3, [4, 6, 2], [1.0, 0.0, 0.5], seed=step) for i in range(2)])
        for step in range(5)
    ]
    whole = fresh()
    for index, rows in enumerate(batches):
        whole.step(rows)
        if index == 1:
            whole.save(str(tmp_path))
    resumed = fresh()
    resumed.load(str(tmp_path))
    for rows in batches[2:]:
        resumed.step(rows)
    assert resumed.version() == whole.version()
    for (name, a), (_, b) in zip(
        whole.model.named_parameters(), resumed.model.named_parameters(), strict=True
    ):
        assert torch.equal(a, b), name


def test_a_checkpoint_loads_as_an_ordinary_model(tmp_path):
    from transformers import AutoModelForCausalLM

    learner = make(tiny_model(dtype=torch.float32, tie_word_embeddings=True))
    learner.step(rows_of(three_groups()))
    learner.save(str(tmp_path))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, tensor in learner.weights():
        assert torch.equal(loaded.get_parameter(name), tensor)
    other = make(tiny_model(dtype=torch.float32, hidden_size=32, intermediate_size=16))
    with pytest.raises(RunError, match="another model"):
        other.load(str(tmp_path))
    with pytest.raises(RunError, match="not a whole learner checkpoint"):
        learner.load(str(tmp_path / "nothing"))


@pytest.mark.parametrize("loss_args", [{}, ENTROPY])
def test_ranks_with_fewer_micro_batches_are_filled_up(monkeypatch, loss_args):
    algorithm = {"loss_args": loss_args}
    learner = make(algorithm=algorithm, tokens_per_micro_batch=20)
    twin = make(copy.deepcopy(learner.model), algorithm, tokens_per_micro_batch=20)
    rows = rows_of(three_groups())
    twin.step(rows)

    def gather(objects):  # as if another rank had three more micro-batches, without a token
        return [*objects, *(n + 3 for n in objects if isinstance(n, int))]

    monkeypatch.setattr(learner, "gather", gather)
    prepared = learner._prepare(rows, recompute=False)
    alone = micro_batches(rows, 20, learner.share_prompts, pad_id=0)
    assert len(prepared) == len(alone) + 3
    assert len(learner._prepare([], recompute=False)) == 3
    monkeypatch.undo()
    monkeypatch.setattr(learner, "_prepare", lambda *_, **__: prepared)
    learner.step(rows)
    assert learner.version() == twin.version()


def test_master_weights_of_a_bfloat16_checkpoint_are_float32(tmp_path):
    tiny_model(dtype=torch.bfloat16).save_pretrained(tmp_path)
    learner = make(str(tmp_path), dtype="bfloat16", algorithm={"beta": 0.1})
    assert {p.dtype for p in learner.model.parameters()} == {torch.float32}
    assert learner.step(rows_of(three_groups()))["kl"] == 0.0
