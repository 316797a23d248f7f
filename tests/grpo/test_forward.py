"""Log-probs against the model's own, one sequence at a time."""

import numpy as np
import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from grpo import forward
from grpo.advantage import ADVANTAGES, reward_matrix
from grpo.batch import make_rows, micro_batches
from grpo.errors import RecipeError
from grpo.forward import (
    can_share_prompts,
    check_head,
    completion_logprobs,
    completion_surprise,
)
from grpo.learner import TorchLearner
from grpo.rollout.sampling import filtered_probs, make_plan
from grpo.schema import Algorithm
from grpo.schema import Learner as Config
from grpo.types import Sampling

from .rows import V, three_groups, tiny_model

SMALL = {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 2,
    "eos_token_id": 2,
    "bos_token_id": 1,
}


def rows_of(groups):
    advantages = ADVANTAGES["dr_grpo"](reward_matrix(groups))
    return make_rows(groups, advantages, loss_type="dapo", max_completion_length=10)


def plain(model, row, temperature):
    """Log-probs and entropies of one row from the model's own logits."""
    ids = torch.tensor([[*row.prompt_ids, *row.ids.tolist()]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, len(row.prompt_ids) - 1 : -1].double()
    logp = torch.log_softmax(logits / temperature, dim=-1)
    return logp.gather(-1, ids[0, len(row.prompt_ids) :, None])[:, 0], -(logp.exp() * logp).sum(-1)


def check(model, share, temperature=0.7, tolerance=1e-6, budget=64):
    rows = rows_of(three_groups())
    with torch.no_grad():
        for batch in micro_batches(rows, budget, share_prompts=share, pad_id=0):
            logp, entropy = completion_logprobs(model, batch, temperature, True)
            for place, index in enumerate(batch.rows):
                mine = torch.from_numpy(batch.completions == place)
                expected = plain(model, rows[index], temperature)
                torch.testing.assert_close(
                    (logp[mine].double(), entropy[mine].double()),
                    expected,
                    rtol=tolerance,
                    atol=tolerance,
                )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("share", [True, False])
def test_equal_to_the_models_own(share, attention):
    # norms and rotary embeddings compute in float32 whatever the model's type
    check(tiny_model(attn_implementation=attention), share)


def test_equal_in_float32_to_the_tolerance_of_sampling():
    check(tiny_model(dtype=torch.float32), share=True, tolerance=1e-4)


@pytest.mark.parametrize("share", [True, False])
def test_chunks_change_neither_value_nor_gradient(monkeypatch, share):
    model = tiny_model()
    batch = micro_batches(rows_of(three_groups()), 200, share_prompts=share, pad_id=0)[0]

    def run():
        model.zero_grad()
        logp, entropy = completion_logprobs(model, batch, 1.3, True)
        ((logp + 0.3 * entropy) * torch.from_numpy(batch.weights)).sum().backward()
        found = [p.grad.clone() for p in model.parameters()]
        return [logp.detach(), entropy.detach(), *found]

    whole = run()
    monkeypatch.setattr(forward, "CHUNK_ELEMENTS", 4 * V)
    torch.testing.assert_close(run(), whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("config", "architecture"),
    [
        (CohereConfig(**SMALL, logit_scale=0.25), CohereForCausalLM),
        (GraniteConfig(**SMALL, logits_scaling=3.0), GraniteForCausalLM),
        (Gemma2Config(**SMALL, head_dim=4, final_logit_softcapping=0.5), Gemma2ForCausalLM),
    ],
)
def test_what_models_do_to_their_logits(config, architecture):
    torch.manual_seed(0)
    model = architecture(config).eval()
    check_head(model)
    check(model, share=can_share_prompts(model), tolerance=1e-4)


def test_an_unknown_transformation_is_refused():
    model = tiny_model()
    own = model.forward

    def tempered(**kwargs):
        out = own(**kwargs)
        out.logits = out.logits * 1.5
        return out

    model.forward = tempered
    with pytest.raises(RecipeError, match="LlamaForCausalLM"):
        check_head(model)


def test_models_with_windows_do_not_share():
    assert can_share_prompts(tiny_model())
    windowed = MistralForCausalLM(MistralConfig(**SMALL, sliding_window=4))
    assert not can_share_prompts(windowed)
    assert can_share_prompts(MistralForCausalLM(MistralConfig(**SMALL, sliding_window=None)))
    assert not can_share_prompts(Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=4)))
    check(windowed.double().eval(), share=False, tolerance=1e-6)


def test_gradient_of_log_probs_is_that_of_log_softmax():
    torch.manual_seed(0)
    logits = torch.randn(3, V, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[0], [5], [5]])
    upstream = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    plain = torch.log_softmax(logits, dim=-1).gather(-1, targets)[:, 0]
    (expected,) = torch.autograd.grad(plain, logits, upstream)
    fused, _ = forward._TokenLogProbs.apply(logits, targets)
    (found,) = torch.autograd.grad(fused, logits, upstream)
    torch.testing.assert_close(fused, plain)
    torch.testing.assert_close(found, expected)


def test_entropy_is_not_rounded_where_the_model_computes_in_bfloat16():
    logits = torch.randn(2, 500, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, entropy = forward._TokenLogProbs.apply(logits, torch.tensor([[1], [2]]))
    expected = torch.distributions.Categorical(logits=logits.double()).entropy()
    torch.testing.assert_close(entropy.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("uses", ["both", "logp", "entropy"])
def test_gradients_of_log_probs_and_entropy_against_autograd(uses):
    torch.manual_seed(0)
    logits = (3 * torch.randn(4, 7, dtype=torch.float64)).requires_grad_()
    targets = torch.tensor([[0], [6], [3], [3]])
    factors = torch.randn(2, 4, dtype=torch.float64)

    def gradient(logp, entropy):
        outputs = {"logp": [logp], "entropy": [entropy], "both": [logp, entropy]}[uses]
        return torch.autograd.grad(outputs, logits, list(factors[: len(outputs)]))[0]

    logp = torch.log_softmax(logits, dim=-1)
    expected = gradient(logp.gather(1, targets)[:, 0], -(logp.exp() * logp).sum(-1))
    found = gradient(*forward._TokenLogProbs.apply(logits, targets))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_a_masked_vocabulary_has_an_entropy_with_a_gradient():
    odds = [[0.0, np.log(3.0), -torch.inf]]  # probabilities 1/4, 3/4, 0
    logits = torch.tensor(odds, dtype=torch.float64, requires_grad=True)
    _, entropy = forward._TokenLogProbs.apply(logits, torch.tensor([[1]]))
    assert entropy.item() == pytest.approx(np.log(4) - 0.75 * np.log(3))
    (gradient,) = torch.autograd.grad(entropy.sum(), logits)
    slope = 3 / 16 * np.log(3)  # p (1 - p) times the difference of the log-probs
    assert gradient.tolist()[0] == pytest.approx([slope, -slope, 0.0])


def surprises(model, row, sampling):
    """Log-prob, entropy and variance of -log p of each token, by summing over the vocabulary."""
    ids = torch.tensor([[*row.prompt_ids, *row.ids.tolist()]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, len(row.prompt_ids) - 1 : -1].double()
    found = []
    for logit, token in zip(logits, row.ids.tolist(), strict=True):
        p = torch.softmax(logit / sampling.temperature, dim=-1)
        kept = filtered_probs(p[None], make_plan([sampling], V, p.device))[0] > 0
        kept[token] = True  # the token that was drawn is never left out
        p = (p * kept / (p * kept).sum()).numpy()
        surprise = -np.log(p[p > 0])
        entropy = float((p[p > 0] * surprise).sum())
        variance = float((p[p > 0] * (surprise - entropy) ** 2).sum())
        found.append((np.log(p[token]), entropy, variance))
    return np.array(found).T


FILTERS = [
    {},
    {"temperature": 0.7},
    {"top_k": 5},
    {"top_p": 0.8, "temperature": 1.3},
    {"min_p": 0.1},
]


@pytest.mark.parametrize("sampling", FILTERS, ids=str)
@pytest.mark.parametrize("chunked", [False, True])
def test_surprise_against_sums_over_the_vocabulary(monkeypatch, sampling, chunked):
    if chunked:
        monkeypatch.setattr(forward, "CHUNK_ELEMENTS", 3 * V)
    sampling, model = Sampling(**sampling), tiny_model()
    rows = rows_of(three_groups())
    truncation = sampling if sampling.truncates else None
    learner = TorchLearner(
        model,
        algorithm=Algorithm(),
        config=Config(tokens_per_micro_batch=32),
        temperature=sampling.temperature,
        truncation=truncation,
    )
    # Of all rows, in order, though they are cut into several micro-batches.
    expected = np.concatenate([surprises(model, row, sampling) for row in rows], axis=1)
    np.testing.assert_allclose(learner.surprise(rows), expected, rtol=1e-5, atol=1e-6)
    for batch in micro_batches(rows, 200, share_prompts=True, pad_id=0):
        logp, entropy, variance = completion_surprise(
            model, batch, sampling.temperature, truncation
        )
        assert not logp.requires_grad
        again, entropies = completion_logprobs(model, batch, sampling.temperature, True, truncation)
        torch.testing.assert_close(logp, again)
        torch.testing.assert_close(entropy, entropies)
        assert (variance >= 0).all()


def test_surprise_of_no_rows_and_of_what_cannot_be_otherwise():
    learner = TorchLearner(tiny_model(), algorithm=Algorithm(), config=Config())
    assert learner.surprise([]).shape == (3, 0)
    greedy = TorchLearner(
        tiny_model(), algorithm=Algorithm(), config=Config(), truncation=Sampling(top_k=1)
    )
    rows = rows_of(three_groups())
    found = greedy.surprise(rows)
    sure = found[0] == 0  # the likeliest token was the one drawn
    assert np.isfinite(found).all()
    assert (found[1:, sure] == 0).all()
