"""Every causal family of transformers: what it gets is what `docs/models.md` says, and is right."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from grpo.errors import EngineError, RecipeError
from grpo.model import families
from grpo.model.families import check_causal, check_family, kv_values_per_token, looks_ahead
from grpo.rollout.embedded.decoder import make_decoder
from grpo.rollout.embedded.own_cache import OwnCacheDecoder, ReplayDecoder, rebuilt, reordered
from grpo.rollout.embedded.ways import ways_on
from grpo.types import LoraSpec

from .families import TEXT, config, quiet, tiny
from .family_table import (
    committed,
    engine_of,
    gradients,
    learner_of,
    plain_logprobs,
    refused,
    sampled,
    treatment,
)

# transformers leaves out a bound of the step size where it reads one token at a time
LOOSE = {"nemotron_h": 1e-3, "zamba2": 1e-3}
KV = ("keys", "values")
HYBRIDS = ("qwen3_5_text", "lfm2", "falcon_h1", "mamba", "mamba2")


def gap(found, expected):
    return max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("family", TEXT)
def test_a_family_gets_what_the_page_says_and_its_numbers_are_right(family):
    if (line := refused(family)) is not None:
        assert line.line(family) == committed()[family]
        with pytest.raises(RecipeError, match=family):
            check_family(config(family))
        return
    check_family(config(family))
    with quiet():
        engine, learner = engine_of(tiny(family)), learner_of(tiny(family))
        assert treatment(family, engine, learner).line(family) == committed()[family]
        rows = sampled(engine)
        found, before = learner.logprobs(rows), learner.version()
        tolerance = LOOSE.get(family, 1e-4)
        assert gap(found, [row.columns["logp_sampler"] for row in rows]) < tolerance
        assert gap(found, [plain_logprobs(learner.model, row) for row in rows]) < 2e-5
        if learner.share_prompts:
            alone = learner_of(tiny(family), share=False, budget=1)
            expected = gradients(alone, rows)
            error = (gradients(learner, rows) - expected).norm() / expected.norm()
            assert error < 1e-5
        learner.step(rows)
        version = learner.version()
        assert version.hash != before.hash
        assert engine.load_weights(learner.weights(), version).version == version
        again = sampled(engine)
        assert (
            gap(learner.logprobs(again), [row.columns["logp_sampler"] for row in again]) < tolerance
        )


def test_the_page_has_every_family_and_no_other():
    assert set(committed()) == set(TEXT)


@pytest.mark.parametrize("family", ["qwen3_5_text", "mamba", "bart", "phimoe", "minimax", "lfm2"])
def test_recomputed_activations_change_no_gradient(family):
    with quiet():
        rows = sampled(engine_of(tiny(family)))
        expected = gradients(learner_of(tiny(family)), rows)
        found = gradients(learner_of(tiny(family), recompute=True), rows)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_model_that_cannot_recompute_is_refused_with_the_setting():
    with quiet(), pytest.raises(RecipeError, match=r"gradient_checkpointing.*set it to false"):
        learner_of(tiny("jetmoe"), recompute=True)


@pytest.mark.parametrize("family", ["bert", "roberta", "xlnet", "prophetnet"])
def test_a_model_that_sees_what_comes_is_found_by_its_numbers(family):
    with quiet(), pytest.raises(RecipeError, match="no causal language model"):
        check_causal(tiny(family))
    with quiet():
        assert looks_ahead(tiny("mamba")) < 1e-6


def test_an_engine_refuses_it_too():
    with quiet(), pytest.raises(RecipeError, match="a bert model is an encoder"):
        engine_of(tiny("bert"))


@pytest.mark.parametrize(
    ("family", "pick"),
    [("falcon_h1", reordered), ("deepseek_v4", rebuilt), ("minimax", rebuilt), ("gemma2", rebuilt)],
)
def test_a_cache_is_copied_cut_and_moved(family, pick):
    """Three samples of a prompt; then the last one takes the place of the first, and two go on."""
    with quiet():
        model = tiny(family)
        decoder = OwnCacheDecoder(model, ways_on(model.device), pick)
        prompt, texts = [5, 9, 17, 33, 60, 71], [[44, 52], [8, 80], [31, 7]]
        first = decoder.prefill([prompt], [0])[0]
        decoder.copy([0, 0], [1, 2], [len(prompt)] * 2)
        second = decoder.decode(np.array([t[0] for t in texts]), np.full(3, 6))
        decoder.compact([(2, 0)], 2, 7)
        third = decoder.decode(np.array([texts[2][1], texts[1][1]]), np.full(2, 7))
        for text, logits in [
            ([], first),
            *zip([t[:1] for t in texts], second, strict=True),
            (texts[2], third[0]),
            (texts[1], third[1]),
        ]:
            with torch.no_grad():
                ids = torch.tensor([prompt + text])
                expected = model(input_ids=ids, use_cache=False).logits[0, -1]
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_a_cache_that_lies_is_not_used(monkeypatch):
    """State of the wrong row: found by the probe, and every token is read from the first one on."""
    from grpo.rollout.embedded import decoder

    def stuck(cache, rows, count):
        return reordered(cache, torch.zeros_like(rows), count)

    monkeypatch.setattr(decoder, "reordered", stuck)
    monkeypatch.setattr(decoder, "rebuilt", stuck)
    with quiet():
        model = tiny("qwen3_5_text")
        assert isinstance(make_decoder(model, ways_on(model.device)), ReplayDecoder)


@pytest.mark.parametrize(
    ("family", "dtype", "rank", "most"),
    [(family, "bfloat16", 0, 0.2) for family in HYBRIDS]
    + [(family, "float32", 2, 1e-4) for family in HYBRIDS[:2]],
)
def test_hybrids_learn_in_bfloat16_and_with_an_adapter(family, dtype, rank, most):
    with quiet():
        engine = engine_of(tiny(family), dtype=dtype, lora=LoraSpec(rank=rank) if rank else None)
        learner = learner_of(tiny(family), dtype=dtype, lora=LoraSpec(rank=rank) if rank else None)
        for _ in range(2):
            version = learner.version()
            assert engine.load_weights(learner.weights(), version).version == version
            rows = sampled(engine)
            assert gap(learner.logprobs(rows), [row.columns["logp_sampler"] for row in rows]) < most
            learner.step(rows)


def test_the_plan_counts_keys_and_values_of_layers_that_have_them():
    """Against the caches themselves; never less, but for one family with two widths."""
    with quiet():
        for family in (*HYBRIDS, "llama", "falcon", "deepseek_v3", "gemma4_text", "zamba2"):
            model = tiny(family)
            with torch.no_grad():
                output = model(input_ids=torch.tensor([[5, 9, 17]]), use_cache=True)
            cache = getattr(output, "past_key_values", None) or output.cache_params
            kept = [getattr(layer, name, None) for layer in cache.layers for name in KV]
            measured = sum(t.numel() for t in kept if t is not None) / 3
            assert kv_values_per_token(model.config) == measured, family


def test_a_type_that_a_model_cannot_compute_in_is_one_sentence():
    with quiet(), pytest.raises(EngineError, match=r"cannot compute in bfloat16.*rollout\.dtype"):
        engine_of(tiny("minimax"), dtype="bfloat16")


def test_known_refusals_are_families_of_transformers():
    assert set(families.REFUSED) <= set(CONFIG_MAPPING)
