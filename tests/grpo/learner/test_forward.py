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

from grpo.config.schema import Algorithm
from grpo.config.schema import Learner as Config
from grpo.errors import RecipeError
from grpo.learner import head
from grpo.learner.forward import can_share_prompts, token_scores
from grpo.learner.head import LEFT_OUT, Transform, check_head, token_logprobs
from grpo.learner.learner import TorchLearner
from grpo.learner.packing import micro_batches, place
from grpo.method.advantage import reward_matrix
from grpo.method.table import ADVANTAGES
from grpo.method.weighted_rows import make_rows
from grpo.model.filters import filtered_probs, make_plan
from grpo.types import Sampling
from tests.grpo.rows import V, three_groups, tiny_model

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
    advantages = ADVANTAGES["dr_grpo"].function(reward_matrix(groups))
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
            logp, entropy, _ = token_scores(model, place(batch, model.device), temperature)
            for number, index in enumerate(batch.rows):
                mine = torch.from_numpy(batch.completions == number)
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
    model = tiny_model(attn_implementation=attention)
    assert can_share_prompts(model) == (attention == "sdpa")
    check(model, share and can_share_prompts(model))


def test_equal_in_float32_to_the_tolerance_of_sampling():
    check(tiny_model(dtype=torch.float32), share=True, tolerance=1e-4)


@pytest.mark.parametrize("share", [True, False])
def test_chunks_change_neither_value_nor_gradient(monkeypatch, share):
    model = tiny_model()
    batch = micro_batches(rows_of(three_groups()), 200, share_prompts=share, pad_id=0)[0]

    def run():
        model.zero_grad()
        logp, entropy, _ = token_scores(model, place(batch, model.device), 1.3)
        ((logp + 0.3 * entropy) * torch.from_numpy(batch.weights)).sum().backward()
        found = [p.grad.clone() for p in model.parameters()]
        return [logp.detach(), entropy.detach(), *found]

    whole = run()
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", 4 * V)
    monkeypatch.setattr(head, "SLICE_ELEMENTS", 3 * V)
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


def parts(dtype=torch.float64, bias=True, rows=5, width=6, vocab=7):
    """A head, hidden states with gradient, and targets."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(width, vocab, bias=bias, dtype=dtype)
    hidden = (2 * torch.randn(rows, width, dtype=dtype)).requires_grad_()
    return layer, hidden, torch.arange(rows) * 3 % vocab


TRANSFORMS = [
    Transform(scale=1.0, cap=None, temperature=1.0, truncation=None),
    Transform(scale=0.3, cap=None, temperature=0.7, truncation=None),
    Transform(scale=1.5, cap=2.0, temperature=0.7, truncation=None),
    Transform(scale=1.0, cap=None, temperature=1.3, truncation=Sampling(top_k=3)),
]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("uses", ["both", "logp", "entropy"])
@pytest.mark.parametrize("chunk", [2, 100])
def test_gradients_of_log_probs_and_entropy_against_autograd(monkeypatch, transform, uses, chunk):
    layer, hidden, targets = parts()
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", chunk * layer.out_features)
    monkeypatch.setattr(head, "SLICE_ELEMENTS", layer.out_features)
    factors = torch.randn(2, len(targets), dtype=torch.float64)
    inputs = [hidden, layer.weight, layer.bias]

    def gradients(logp, entropy):
        outputs = {"logp": [logp], "entropy": [entropy], "both": [logp, entropy]}[uses]
        return torch.autograd.grad(outputs, inputs, list(factors[: len(outputs)]))

    logits = layer(hidden) * transform.scale
    if transform.cap is not None:
        logits = transform.cap * torch.tanh(logits / transform.cap)
    logits = logits / transform.temperature
    if transform.truncation is not None:
        least = logits.detach().topk(transform.truncation.top_k).values[:, -1:]
        out = (logits < least).scatter(1, targets[:, None], False)
        logits = logits.masked_fill(out, LEFT_OUT)
    expected = torch.distributions.Categorical(logits=logits)
    wanted = (expected.log_prob(targets), -(expected.probs * expected.logits).sum(-1))
    found = token_logprobs(layer, hidden, targets, transform)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)
    if uses == "logp":
        factors = factors[:1]
    if uses == "entropy":
        factors = factors[1:]
    torch.testing.assert_close(gradients(*found), gradients(*wanted), rtol=1e-11, atol=1e-13)


def test_a_frozen_head_has_no_gradient_and_costs_none():
    layer, hidden, targets = parts(bias=False)
    layer.weight.requires_grad_(False)
    logp, _ = token_logprobs(layer, hidden, targets, TRANSFORMS[0])
    logp.sum().backward()
    assert layer.weight.grad is None
    assert hidden.grad is not None


def test_entropy_is_not_rounded_where_the_model_computes_in_bfloat16():
    layer, hidden, targets = parts(dtype=torch.float32, bias=False, vocab=500)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, entropy = token_logprobs(layer, hidden, targets, TRANSFORMS[0])
        logits = layer(hidden)
    assert logits.dtype == torch.bfloat16
    expected = torch.distributions.Categorical(logits=logits.double()).entropy()
    torch.testing.assert_close(entropy.double(), expected, rtol=1e-5, atol=0)


def test_gradients_in_bfloat16_add_up_in_float32(monkeypatch):
    layer, hidden, targets = parts(dtype=torch.float32, bias=False, rows=64)
    targets = torch.zeros_like(targets)

    def gradient(dtype):
        layer.weight.grad = None
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
            logp, _ = token_logprobs(layer, hidden, targets, TRANSFORMS[0])
        logp.sum().backward()
        return layer.weight.grad.clone()

    exact = gradient(torch.float32)
    whole = gradient(torch.bfloat16)
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", layer.out_features)
    assert (gradient(torch.bfloat16) - exact).norm() < 1.2 * (whole - exact).norm()


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
        monkeypatch.setattr(head, "CHUNK_ELEMENTS", 3 * V)
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
    for cut in micro_batches(rows, 200, share_prompts=True, pad_id=0):
        batch = place(cut, model.device)
        logp, entropy, variance = token_scores(
            model, batch, sampling.temperature, truncation, ("variance",)
        )
        assert not logp.requires_grad
        again, entropies, _ = token_scores(model, batch, sampling.temperature, truncation)
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
