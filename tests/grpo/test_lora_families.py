"""Adapters on mixtures of experts: what is saved is the policy, or the family is refused by name."""

from __future__ import annotations

import warnings

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from grpo.adapter import adapter_parameters
from grpo.canary import canary_logits
from grpo.errors import RecipeError
from grpo.policy import load_with_adapter
from grpo.ranks import join
from grpo.saved import save_policy

from .families import TEXT, config, quiet, tiny

RANK = 4
IDS = torch.arange(2, 26)[None]
# peft reads other names from their files: transformers renames a part of a name that it renamed
REFUSED = {"inkling2_text": "Inkling2ForCausalLM", "laguna": "LagunaForCausalLM"}


def _has_experts(family):
    with quiet():
        return "experts" in repr(config(family))


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS, use_cache=False).logits


def stirred(model, std=0.02):
    """`model` with a random adapter, as after some training."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in adapter_parameters(model).values():
            parameter.copy_(torch.randn_like(parameter) * std)
    return model


@pytest.mark.parametrize("family", [f for f in TEXT if _has_experts(f)])
def test_saved_merged_and_loaded_by_peft_are_the_policy(family, tmp_path):
    base, out = str(tmp_path / "base"), str(tmp_path / "out")
    with quiet():
        tiny(family).save_pretrained(base)
        if family in REFUSED:
            with pytest.raises(RecipeError, match=REFUSED[family]):
                load_with_adapter(base, RANK, torch.float32, seed=0)
            return
        model = stirred(load_with_adapter(base, RANK, torch.float32, seed=0))
        policy = logits(model)
        limit = 1e-5 * max(1.0, float(policy.abs().max()))
        save_policy(model, out, join(), canary_logits(model), lora_rank=RANK, base=base)
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        assert (policy - logits(plain)).abs().max() > 1e-3
        merged = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
        torch.testing.assert_close(logits(merged), policy, rtol=0, atol=limit)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # of keys that were missing
            adapted = PeftModel.from_pretrained(plain, f"{out}/adapter")
        torch.testing.assert_close(logits(adapted), policy, rtol=0, atol=limit)
    names = {word for name in adapter_parameters(model) for word in name.split(".")}
    assert not names & {"experts", "router"}
