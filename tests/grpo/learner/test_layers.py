"""Layers with a backward pass by hand against the model's own code."""

import copy

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from grpo.learner import layers
from grpo.learner.forward import token_scores
from grpo.learner.layers import fuse_layers
from grpo.learner.packing import micro_batches, place
from grpo.learner.policy import checkpoint_activations
from grpo.method.advantage import reward_matrix
from grpo.method.table import ADVANTAGES
from grpo.method.weighted_rows import make_rows
from grpo.model.adapter import add_adapter
from grpo.model.casts import casts_kept, joined
from grpo.types import LoraSpec
from tests.grpo.rows import V, three_groups, tiny_model


def qwen(dtype):
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=V,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=2,
        rms_norm_eps=1e-6,
    )
    model = Qwen2ForCausalLM(config).to(dtype)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model


def batch():
    groups = three_groups()
    advantages = ADVANTAGES["dr_grpo"].function(reward_matrix(groups))
    rows = make_rows(groups, advantages, loss_type="dapo", max_completion_length=10)
    (found,) = micro_batches(rows, 1000, True, pad_id=0)
    assert found.packs
    return found


def gradients(model, fused, dtype=None):
    model = copy.deepcopy(model)
    if fused:
        fuse_layers(model)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        logp = token_scores(model, place(batch(), model.device), 1.0).logp
    torch.manual_seed(1)
    logp.backward(torch.randn(len(logp)).to(logp.dtype))
    return {name: p.grad.double() for name, p in model.named_parameters() if p.requires_grad}


def distance(found, exact):
    left, right = (torch.cat([g[n].flatten() for n in exact]) for g in (found, exact))
    return float((left - right).norm() / right.norm())


@pytest.fixture
def calls(monkeypatch):
    """How often a layer took the way that is tested here."""
    counted = []
    right = layers.swiglu
    monkeypatch.setattr(layers, "swiglu", lambda *a: counted.append(a) or right(*a))
    return counted


@pytest.mark.parametrize("make", [tiny_model, qwen], ids=["llama", "biases"])
def test_the_gradient_of_every_weight(make, calls):
    model = make(dtype=torch.float32)
    found, exact = gradients(model, True), gradients(model, False)
    assert len(calls) == 2
    for name, gradient in exact.items():
        assert (found[name] - gradient).norm() < 1e-5 * gradient.norm() + 1e-6, name


def test_in_bfloat16_no_further_from_float64_than_the_models_own_code(calls):
    ours = own = 0.0
    for seed in range(4):
        single = tiny_model(seed, dtype=torch.float32)
        double = tiny_model(seed)
        double.load_state_dict(single.state_dict())
        exact = gradients(double, False)
        own += distance(gradients(single, False, torch.bfloat16), exact)
        ours += distance(gradients(single, True, torch.bfloat16), exact)
    assert len(calls) == 8
    assert ours < 1.05 * own


def test_frozen_weights_get_no_gradient(calls):
    model = tiny_model()
    trained = ("q_proj", "gate_proj")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in trained))
    found, exact = gradients(model, True), gradients(model, False)
    assert len(calls) == 2
    assert len(found) == 4
    assert distance(found, exact) < 1e-12


def test_layers_with_an_adapter_are_the_models_own(calls):
    model = tiny_model(dtype=torch.float32)
    fuse_layers(model)
    add_adapter(model, LoraSpec(rank=4))
    token_scores(model, place(batch(), model.device), 1.0)
    assert not calls


def test_weights_are_cast_once():
    weight = torch.nn.Parameter(torch.randn(3, 2))
    with casts_kept(torch.no_grad()):
        first = joined([weight, weight], torch.bfloat16)
        assert joined([weight, weight], torch.bfloat16) is first
    with torch.no_grad():
        weight.add_(1)
    assert torch.equal(joined([weight], torch.bfloat16), weight.bfloat16())
    assert torch.equal(first[3:], (weight - 1).bfloat16())


def test_activations_are_computed_again_where_asked(monkeypatch):
    """Equal gradients do not show it: also a setting without effect has them."""
    runs = []
    compute = layers._computed
    monkeypatch.setattr(layers, "_computed", lambda *args: runs.append(1) or compute(*args))
    model = tiny_model(dtype=torch.float64)
    exact = gradients(model, True)
    once = len(runs)
    checkpoint_activations(model)
    assert distance(gradients(model, True), exact) == 0.0
    assert once > 0
    assert len(runs) == 3 * once
