"""The same batch through TRL's GRPOTrainer: its advantages, its loss and its gradient are ours.

TRL generates, scores and computes its loss with its own code; only the sampled tokens are fixed.
"""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from grpo.config.schema import Algorithm
from grpo.config.schema import Learner as Config
from grpo.learner.learner import TorchLearner
from grpo.method.advantage import reward_matrix
from grpo.method.table import ADVANTAGES, bound_advantage
from grpo.method.weighted_rows import make_rows
from tests.grpo.rows import EOS, V, group, tiny_model, with_columns

trl = pytest.importorskip("trl")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # TRL's and its dependencies' own, none of them ours
]

ADVANTAGE_OF = {"group": "grpo", "batch": "batch", "none": "dr_grpo"}
MAX_LENGTH = 9
LENGTHS = [[4, 7, 2, 5], [3, 9, 6, 1]]
REWARDS = [[1.0, 0.0, 0.0, 0.5], [0.0, 0.25, 1.0, 1.0]]


@pytest.fixture(scope="module")
def groups():
    return [group(i, 3 + i, LENGTHS[i], REWARDS[i]) for i in range(2)]


@pytest.fixture(scope="module")
def trainer(tmp_path_factory, groups):
    """A GRPOTrainer whose generation is replaced by the fixed completions of `groups`."""
    from datasets import Dataset

    tokens = ["<pad>", "<bos>", "<eos>", *[chr(ord("a") + i) for i in range(V - 3)]]
    backend = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
    args = trl.GRPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")),
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=MAX_LENGTH,
        temperature=0.7,
        beta=0.0,  # each case sets its own, and the reference is given below
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    rewards = [r for row in REWARDS for r in row]
    trainer = trl.GRPOTrainer(
        model=tiny_model(dtype=torch.float32, pad_token_id=0),
        reward_funcs=lambda completions, **_: rewards,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": ["a", "b"]}),
        processing_class=tokenizer,
    )
    from trl.trainer.grpo_trainer import add_fused_lm_head

    trainer.ref_model = tiny_model(seed=1, dtype=torch.float32, pad_token_id=0).eval()
    add_fused_lm_head(trainer.ref_model, temperature=args.temperature)
    rollouts = [r for g in groups for r in g.rollouts]

    def generate(prompts):
        return (
            [list(r.prompt.ids) for r in rollouts],
            [r.completion.ids.tolist() for r in rollouts],
            None,
            ["" for _ in rollouts],
            None,
            {},
            None,
            None,
        )

    trainer._generate = generate
    trainer.current_gradient_accumulation_steps = 1
    trainer.args.steps_per_generation = 1
    return trainer


def test_gdpo_is_trls_normalize_then_sum(trainer, groups, monkeypatch):
    second = [0.2, 0.9, 0.1, 0.4, 1.0, 0.0, 0.5, 0.5]
    parts = np.stack([np.concatenate(REWARDS), second])
    monkeypatch.setattr(trainer, "multi_objective_aggregation", "normalize_then_sum")
    monkeypatch.setattr(trainer, "reward_weights", torch.tensor([1.0, 0.3]))
    monkeypatch.setattr(trainer, "reward_func_names", ["first", "second"])
    monkeypatch.setattr(trainer, "reward_funcs", trainer.reward_funcs * 2)
    per_function = torch.from_numpy(parts.astype(np.float32).T.copy())
    monkeypatch.setattr(trainer, "_calculate_rewards", lambda *_, **__: per_function)
    theirs = trainer._generate_and_score_completions([{"prompt": p} for p in "aaaabbbb"])

    named = iter([dict(zip(("first", "second"), part, strict=True)) for part in parts.T.tolist()])
    scored = [
        replace(
            g,
            rollouts=tuple(
                replace(r, score=replace(r.score, parts=next(named))) for r in g.rollouts
            ),
        )
        for g in groups
    ]
    weights = {"first": 1.0, "second": 0.3}
    ours = bound_advantage("gdpo", reward_weights=weights)(reward_matrix(scored), scored)
    np.testing.assert_allclose(ours.reshape(-1), theirs["advantages"], rtol=1e-4, atol=1e-6)


CASES = [
    *itertools.product(["grpo", "dr_grpo", "dapo", "bnpo"], ["group", "batch", "none"], [0.0, 0.1]),
]


@pytest.mark.parametrize("off_policy", [False, True])
@pytest.mark.parametrize(("loss_type", "scale_rewards", "beta"), CASES)
def test_loss_and_gradient_equal_trls(trainer, groups, loss_type, scale_rewards, beta, off_policy):
    trainer.loss_type, trainer.scale_rewards, trainer.beta = loss_type, scale_rewards, beta
    trainer.epsilon_low, trainer.epsilon_high, trainer.args.delta = 0.2, 0.28, 1.5
    model = trainer.model
    model.train()
    inputs = trainer._generate_and_score_completions([{"prompt": p} for p in "aaaabbbb"])
    # Old log-probs far enough away that both clips and delta act; by token, from a fixed stream.
    noise = np.random.default_rng(3).normal(0, 0.5, (8, inputs["completion_ids"].shape[1]))
    noise = torch.from_numpy(noise * off_policy).float()

    learner = TorchLearner(
        tiny_model(dtype=torch.float32, pad_token_id=0),
        algorithm=Algorithm(
            loss_type=loss_type,
            beta=beta,
            epsilon=0.2,
            epsilon_high=0.28,
            delta=1.5,
            sampling_correction="none",
        ),
        config=Config(tokens_per_micro_batch=4096, max_grad_norm=0.0),
        temperature=0.7,
        reference=tiny_model(seed=1, dtype=torch.float32, pad_token_id=0),
    )
    advantages = ADVANTAGES[ADVANTAGE_OF[scale_rewards]].function(reward_matrix(groups))
    np.testing.assert_allclose(advantages.reshape(-1), inputs["advantages"], rtol=1e-5)
    rows = make_rows(groups, advantages, loss_type=loss_type, max_completion_length=MAX_LENGTH)
    old = learner.logprobs(rows)
    (prepared,) = learner._prepare(rows, recompute=True)
    if off_policy:
        place = torch.from_numpy(prepared.batch.completions)
        which = torch.tensor(prepared.batch.rows)[place]
        token = torch.cat([torch.arange(len(rows[i].ids)) for i in prepared.batch.rows])
        prepared.columns["logp_old"].add_(noise[which, token])
        padded = torch.zeros_like(noise)
        for i, logp in enumerate(old):
            padded[i, : len(logp)] = torch.from_numpy(logp)
        inputs["old_per_token_logps"] = padded + noise
    else:
        inputs.pop("old_per_token_logps", None)

    model.zero_grad()
    theirs = trainer._compute_loss(model, inputs)
    theirs.backward()
    ours, _, metrics = learner.loss(prepared)
    ours.backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    for (name, a), (_, b) in zip(
        model.named_parameters(), learner.model.named_parameters(), strict=True
    ):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-6, msg=name)
    logged = trainer._metrics["train"]
    assert len(metrics.keys() & logged.keys()) >= 3  # a metric that TRL lacks is compared elsewhere
    for name in metrics.keys() & logged.keys():
        assert float(metrics[name].mean()) == pytest.approx(logged[name][-1], rel=1e-4, abs=1e-6), (
            name
        )
    if off_policy:
        assert metrics["clip_ratio/low_mean"].any()
        assert metrics["clip_ratio/high_mean"].any()
    assert (prepared.batch.targets == EOS).sum() == 8


MODES = ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
CAP = 1.4


@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("mode", MODES)
def test_the_sampling_correction_equals_trls(trainer, groups, monkeypatch, mode, loss_type, beta):
    trainer.loss_type, trainer.scale_rewards, trainer.beta = loss_type, "group", beta
    trainer.epsilon_low, trainer.epsilon_high, trainer.args.delta = 0.2, 0.28, None
    learner = TorchLearner(
        tiny_model(dtype=torch.float32, pad_token_id=0),
        algorithm=Algorithm(
            loss_type=loss_type, beta=beta, sampling_correction=mode, sampling_correction_cap=CAP
        ),
        config=Config(tokens_per_micro_batch=4096, max_grad_norm=0.0),
        temperature=0.7,
        reference=tiny_model(seed=1, dtype=torch.float32, pad_token_id=0),
    )
    advantages = ADVANTAGES["grpo"].function(reward_matrix(groups))
    rows = make_rows(groups, advantages, loss_type=loss_type, max_completion_length=MAX_LENGTH)
    # What the sampler says it drew with: another policy than the learner's, here and there.
    rng = np.random.default_rng(7)
    old = learner.logprobs(rows)
    said = [(x - rng.normal(0.1, 0.5, len(x))).astype(np.float32) for x in old]
    rows = [with_columns(row, logp_sampler=x) for row, x in zip(rows, said, strict=True)]

    generate = trainer._generate
    monkeypatch.setattr(
        trainer,
        "_generate",
        lambda prompts: (
            *generate(prompts)[:4],
            [x.tolist() for x in said],
            *generate(prompts)[5:],
        ),
    )
    monkeypatch.setattr(trainer, "use_vllm", True)
    monkeypatch.setattr(trainer, "vllm_importance_sampling_correction", True)
    monkeypatch.setattr(trainer, "vllm_importance_sampling_mode", mode)
    monkeypatch.setattr(trainer, "vllm_importance_sampling_clip_min", None)
    monkeypatch.setattr(trainer, "vllm_importance_sampling_clip_max", CAP)
    model = trainer.model
    model.train()
    inputs = trainer._generate_and_score_completions([{"prompt": p} for p in "aaaabbbb"])
    ratio = inputs["importance_sampling_ratio"]
    cut = (ratio == 0) if mode.endswith("mask") else (ratio == CAP)
    assert cut.any()
    assert not cut.all()

    model.zero_grad()
    theirs = trainer._compute_loss(model, inputs)
    theirs.backward()
    (prepared,) = learner._prepare(rows, recompute=True)
    ours, _, metrics = learner.loss(prepared)
    ours.backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    for (name, a), (_, b) in zip(
        model.named_parameters(), learner.model.named_parameters(), strict=True
    ):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-6, msg=name)
    if mode.startswith("token"):
        name = "sampling/importance_sampling_ratio/mean"
        expected = trainer._metrics["train"][name][-1]
        assert float(metrics[name].mean()) == pytest.approx(expected, rel=1e-4)
