"""The engine's own layers and its shared prompts, against the model's plain forward pass."""

import copy
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import rms_norm
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from grpo.errors import WeightsError
from grpo.kernels import matmul, native
from grpo.rollout.embedded.cpu.compiled_attention import CompiledAttention
from grpo.rollout.embedded.cpu.fused import fusable
from grpo.rollout.embedded.cpu.group_attention import TorchAttention
from grpo.rollout.embedded.cpu.group_cache import CHUNK, WIDTH, GroupCache
from grpo.rollout.embedded.cpu.packed import PackedLinear, PlainLinear, TiledLinear, packs
from grpo.rollout.embedded.decoder import SlotDecoder, make_decoder
from grpo.rollout.embedded.torch_engine import TorchEngine
from grpo.rollout.embedded.ways import ways_on
from grpo.types import Version
from tests.rollout.tiny_models import (
    SHAPE,
    V0,
    VOCAB,
    Letters,
    full_logprobs,
    ragged,
    request,
    run,
    tiny,
)


@pytest.fixture(params=["compiled", "torch"])
def kernels(request, monkeypatch):
    """Both ways to compute what lies between the products."""
    if request.param == "torch":
        monkeypatch.setattr(native, "library", lambda *_: None)
        return TorchAttention
    if not native.is_on():
        pytest.skip("no C++ compiler")
    return CompiledAttention


def model_of(kind, seed=0):
    if kind != "qwen3":
        return tiny(kind, seed)
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(Qwen3Config(**SHAPE, tie_word_embeddings=True)).eval()
    for layer in model.model.layers:  # norms of 1 would hide that they are left out
        torch.nn.init.normal_(layer.self_attn.q_norm.weight, 1.0, 0.5)
        torch.nn.init.normal_(layer.self_attn.k_norm.weight, 1.0, 0.5)
    return model


def engine(model, max_rows=64, **kwargs):
    return TorchEngine(model, Letters(), version=V0, max_rows=max_rows, **kwargs)


def check(model, requests, got, tolerance=1e-4):
    prompts = {r.uid: r.ids for r in requests}
    assert len(got) == sum(r.n for r in requests)
    for (uid, _), completion in got.items():
        want = full_logprobs(model, prompts[uid], completion.ids, 1.0)
        np.testing.assert_allclose(completion.logprobs, want, atol=tolerance)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral"])
def test_these_models_are_decoded_by_fused_layers(kind, kernels):
    model = model_of(kind)
    eng = engine(model)
    assert type(eng._decoder.attention) is kernels
    # Beyond the sliding window of 8, beyond a chunk of own tokens, groups of several sizes.
    requests = [
        request("a", list(range(1, 20)), n=5, key=1, max_tokens=2 * CHUNK + 3),
        request("b", [4, 4], n=1, key=2, max_tokens=9),
        request("c", [7] * 40, n=3, key=3, max_tokens=CHUNK + 1, eos_ids=(3, 9)),
    ]
    check(model, requests, run(eng, requests))


def test_other_models_are_not():
    assert not any(fusable(tiny(kind)) for kind in ("gemma2", "gpt2", "deepseek"))
    moving = tiny("llama")
    moving.config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    assert not fusable(moving)
    # Whoever shares the model's memory changes it behind the packed copy's back.
    assert isinstance(engine(tiny("llama"), share_storage=True)._decoder, SlotDecoder)


@pytest.mark.parametrize("max_rows", [3, 50])
def test_a_group_larger_than_one_copy_of_its_prompt(max_rows, kernels):
    model = tiny("llama")
    requests = [
        request("big", [5, 6, 7, 8], n=2 * WIDTH + 5, key=1, max_tokens=6, eos_ids=(3, 9, 11)),
        *ragged(count=3, n=4, eos_ids=(3, 4)),
    ]
    eng = engine(model, max_rows)
    check(model, requests, run(eng, requests))
    # A second round meets the groups and slots that the first one left.
    check(model, requests[1:], run(eng, requests[1:]))


def test_groups_end_and_begin_while_others_run(kernels):
    """Prompts of several lengths come and go in five rows; every log-prob stays right."""
    model = tiny("llama")
    rng = np.random.default_rng(3)
    requests = [
        request(
            f"r{i}",
            rng.integers(0, VOCAB, int(rng.integers(1, 60))).tolist(),
            n=int(rng.integers(1, 5)),
            key=i,
            max_tokens=int(rng.integers(1, 40)),
        )
        for i in range(12)
    ]
    eng = engine(model, 5)
    check(model, requests, run(eng, requests))
    assert len(eng._decoder.cache.lengths) == 0  # no group outlives its rows


def test_packed_weights_follow_and_a_stale_copy_is_refused(monkeypatch, kernels):
    new = tiny("llama", seed=1)
    eng = engine(tiny("llama"))
    eng.load_weights(new.named_parameters(), Version(step=1, hash="one"))
    check(new, ragged(), run(eng, ragged()))
    monkeypatch.setattr(PlainLinear, "fill", lambda self: None)
    with pytest.raises(WeightsError, match="packed weights"):
        eng.load_weights(tiny("llama", seed=2).named_parameters(), Version(step=2, hash="two"))
    with pytest.raises(WeightsError, match="load a full set"):
        eng.poll()


def test_a_wrong_layer_is_found_by_the_probe(monkeypatch, caplog):
    monkeypatch.setattr(native, "library", lambda *_: None)
    right = TorchAttention._attend
    monkeypatch.setattr(TorchAttention, "_attend", lambda self, *args: right(self, *args) * 1.01)
    with caplog.at_level(logging.INFO):
        decoder = make_decoder(tiny("llama"), ways_on(torch.device("cpu")))
    assert isinstance(decoder, SlotDecoder)
    assert any("FusedDecoder does not serve" in r.message for r in caplog.records)


def test_bfloat16_is_as_near_to_float32_as_the_plain_forward_pass(kernels):
    if not packs(torch.bfloat16):
        pytest.skip("no bfloat16 products on this CPU")
    exact = tiny("llama").to(torch.bfloat16).float()
    half = tiny("llama").to(torch.bfloat16)
    eng = engine(half)
    assert type(eng._decoder.attention) is kernels
    requests = ragged(n=6, max_tokens=24)
    ours, plain = [], []
    prompts = {r.uid: r.ids for r in requests}
    for (uid, _), completion in run(eng, requests).items():
        want = full_logprobs(exact, prompts[uid], completion.ids, 1.0)
        ours.append(np.abs(completion.logprobs - want))
        plain.append(np.abs(full_logprobs(half, prompts[uid], completion.ids, 1.0) - want))
    assert np.concatenate(ours).mean() < 1.2 * np.concatenate(plain).mean()


def fitting(kind):
    """A bfloat16 model whose layers are whole tiles; three heads share a key head."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 96, "intermediate_size": 64, "vocab_size": 64}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16}
    config = {"llama": LlamaConfig, "qwen2": Qwen2Config, "mistral": MistralConfig}[kind]
    window = {"sliding_window": 8} if kind == "mistral" else {}
    model = AutoModelForCausalLM.from_config(config(**SHAPE | sizes | heads | window)).eval()
    for name, bias in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(bias)
    return model.to(torch.bfloat16)


@pytest.mark.skipif(not matmul.has_tiles(), reason="this processor has no matrix tiles (AMX)")
@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral"])
def test_tiles_are_as_near_to_float32_as_the_plain_forward_pass(kind):
    half = fitting(kind)
    exact = copy.deepcopy(half).float()
    eng = engine(half)
    assert isinstance(eng._decoder.attention, CompiledAttention)
    assert all(isinstance(p, TiledLinear) for x in eng._decoder.layers for p in x.linears)
    requests = [
        request("a", list(range(1, 20)), n=5, key=1, max_tokens=2 * CHUNK + 3),
        request("b", [4, 4], n=1, key=2, max_tokens=9),
        request("c", [7] * 40, n=3, key=3, max_tokens=CHUNK + 1, eos_ids=(3, 9)),
    ]
    prompts = {r.uid: r.ids for r in requests}
    ours, plain = [], []
    for (uid, _), completion in run(eng, requests).items():
        want = full_logprobs(exact, prompts[uid], completion.ids, 1.0)
        ours.append(np.abs(completion.logprobs - want))
        plain.append(np.abs(full_logprobs(half, prompts[uid], completion.ids, 1.0) - want))
    assert np.concatenate(ours).mean() < 1.2 * np.concatenate(plain).mean()


@pytest.mark.skipif(not matmul.has_tiles(), reason="this processor has no matrix tiles (AMX)")
def test_tiles_follow_the_weights_and_a_stale_copy_is_refused(monkeypatch):
    eng, new = engine(fitting("llama")), fitting("llama")
    with torch.no_grad():
        new.model.layers[1].mlp.up_proj.weight[5, 3] += 1
    eng.load_weights(new.named_parameters(), Version(step=1, hash="one"))
    monkeypatch.setattr(TiledLinear, "fill", lambda self: None)
    eng.load_weights(new.named_parameters(), Version(step=2, hash="two"))
    with torch.no_grad():
        new.model.layers[1].mlp.up_proj.weight[5, 3] += 1
    with pytest.raises(WeightsError, match="packed weights"):
        eng.load_weights(new.named_parameters(), Version(step=3, hash="three"))


def test_what_is_left_of_a_broken_model_reaches_nobody():
    """A slot next to a new token's may hold what is no number; nothing of it is read."""
    half = tiny("llama").to(torch.bfloat16)
    eng = engine(half)
    if not isinstance(eng._decoder.attention, CompiledAttention):
        pytest.skip("no C++ compiler")
    good = run(eng, ragged())
    with torch.inference_mode():
        for buffer in eng._decoder.cache.own:
            buffer.fill_(torch.nan)
    again = run(eng, ragged())
    for key, completion in again.items():
        assert np.isfinite(completion.logprobs).all()
        np.testing.assert_array_equal(completion.ids, good[key].ids)


@pytest.mark.parametrize("layout", [PlainLinear, PackedLinear])
def test_products(layout):
    torch.manual_seed(0)
    layers = [torch.nn.Linear(24, n) for n in (32, 8, 8)]
    packed = layout(layers)
    x, other = torch.randn(5, 24), torch.randn(5, 48)
    want = torch.cat([layer(x) for layer in layers], dim=1)
    torch.testing.assert_close(packed(x), want)
    norm = SimpleNamespace(weight=torch.rand(24), variance_epsilon=1e-5)
    torch.testing.assert_close(packed(x, norm), packed(rms_norm(x, (24,), norm.weight, 1e-5)))
    torch.testing.assert_close(packed.plus(x, other), want + other)
    assert packed.holds()
    for changed in (layers[2].weight, layers[0].bias):
        with torch.no_grad():
            changed.view(-1)[0] += 1
        assert not packed.holds()
        packed.fill()
        assert packed.holds()


def test_rows_move_before_there_is_room_for_their_own_tokens():
    cache = GroupCache(2, 1, 4, 1)
    cache.reserve(2, 3, torch.zeros(1))
    cache.own[0] += torch.arange(2.0).view(1, 1, 2, 1, 1, 1)
    cache.group = np.arange(4)
    cache.move([3, 1], [2, 0], 3)  # 3 began in this step and ends at its first token
    assert cache.group.tolist() == [1, 1, 3, 3]
    assert cache.own[0][:, :, 0].unique().tolist() == [1.0]
    cache.move([3], [0], 0)
    assert cache.group[0] == 3


@pytest.mark.parametrize("pair", [0, 1, 2])
def test_prompts_keep_their_keys_as_their_room_grows(pair):
    """Also where head size and slots are alike, and nothing but the axis tells them apart."""
    cache = GroupCache(1, 1, 32, 1, pair=pair)
    keys = torch.arange(2 * 31 * 32.0).view(2, 1, 31, 32)
    groups = cache.open([0, 1], [31, 31])
    cache.begin_prefill(torch.tensor(groups))
    cache.update(keys, -keys, 0)
    cache.open([2, 3, 4], [70, 2, 1])
    assert cache.slots == 96
    found = cache.prompts[0]
    if pair:  # [.., D / pair, slots, pair] and [.., slots / pair, D, pair]
        found = (found[0].transpose(2, 3).flatten(3), found[1].transpose(3, 4).flatten(2, 3))
    for group, buffer in zip((keys, -keys), found, strict=True):
        assert torch.equal(buffer[:2, :, :31], group)
        assert not buffer[:2, :, 31:].any()
