"""Adapters of every kind of model: what is saved is the policy, or the family is refused by name.

All mixtures of experts, and of the others one for each way in which a layer may be unlike a plain
one: transposed, fused, tied, shared by several places, read inside a kernel.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from grpo.config.schema import Algorithm, Lora, Model, Run, SFTData, SFTLearner, SFTStage
from grpo.config.schema import Learner as Config
from grpo.errors import RecipeError
from grpo.learner.learner import TorchLearner
from grpo.learner.policy import load_with_adapter
from grpo.learner.saved import save_policy
from grpo.model.adapter import adapter_parameters, described
from grpo.model.canary import canary_logits
from grpo.model.quantize import FourBitLinear
from grpo.model.ranks import join
from grpo.outside.terminal.console import Console
from grpo.rollout.embedded.torch_engine import TorchEngine
from grpo.stages.from_scratch import build_tokenizer
from grpo.stages.sft import fine_tune
from grpo.stages.supervised_rows import TokenRow
from grpo.types import LoraSpec, Version

from .families import TEXT, config, quiet, tiny

RANK = 4
SPEC = LoraSpec(rank=RANK)
IDS = torch.arange(2, 26)[None]
# peft reads other names from their files: transformers renames a part of a name that it renamed
OTHERS = ("bloom", "falcon", "gemma2", "gpt2", "gpt_neox", "jamba", "mamba2", "phi3", "zamba")
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


FAMILIES = sorted({*OTHERS, *(f for f in TEXT if _has_experts(f))})


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_merged_and_loaded_by_peft_are_the_policy(family, tmp_path):
    base, out = str(tmp_path / "base"), str(tmp_path / "out")
    with quiet():
        tiny(family).save_pretrained(base)
        if family in REFUSED:
            with pytest.raises(RecipeError, match=REFUSED[family]):
                load_with_adapter(base, SPEC, torch.float32, seed=0)
            return
        model = stirred(load_with_adapter(base, SPEC, torch.float32, seed=0))
        policy = logits(model)
        limit = 1e-5 * max(1.0, float(policy.abs().max()))
        save_policy(model, out, join(), canary_logits(model), lora=SPEC, base=base)
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
    if family == "mixtral":
        assert described(model) == (
            "the adapter is on k_proj, o_proj, q_proj, v_proj; as they are: embed_tokens, "
            "experts.down_proj, experts.gate_up_proj, gate, lm_head"
        )


@pytest.mark.parametrize("family", ["afmoe", "llama"])
def test_with_a_base_in_four_bits(family, tmp_path):
    base, out = str(tmp_path / "base"), str(tmp_path / "out")
    with quiet():
        tiny(family).save_pretrained(base)
        model = stirred(load_with_adapter(base, SPEC, torch.float32, 0, "nf4"))
        assert any(isinstance(m, FourBitLinear) for m in model.modules())
        save_policy(model, out, join(), canary_logits(model), lora=SPEC, base=base)
        merged = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
        policy = logits(model)
        limit = 1e-5 * max(1.0, float(policy.abs().max()))
        torch.testing.assert_close(logits(merged), policy, rtol=0, atol=limit)


@pytest.mark.parametrize("rank", [0, RANK])
def test_learner_engine_and_resumed_learner_hold_the_same_weights(rank, tmp_path):
    def learner():
        return TorchLearner(
            base, algorithm=Algorithm(), config=Config(), lora=LoraSpec(rank=rank) if rank else None
        )

    base, out = str(tmp_path / "base"), str(tmp_path / "out")
    with quiet():
        tiny("glm4_moe").save_pretrained(base)
        first = learner()
        torch.manual_seed(3)
        with torch.no_grad():
            for parameter in first.trained.values():
                parameter.add_(torch.randn_like(parameter) * 0.02)
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        engine = TorchEngine(
            plain,
            None,
            version=Version(step=0, hash=""),
            lora=LoraSpec(rank=rank) if rank else None,
        )
        ack = engine.load_weights(first.weights(), first.version())
        assert ack.version == first.version()
        assert ack.canary == pytest.approx(first.canary(), abs=1e-4)
        first.save(out)
        second = learner()
        assert second.version() != first.version()
        second.load(out)
        assert second.version().hash == first.version().hash


def test_a_fine_tuned_mixture_of_experts(tmp_path):
    base = str(tmp_path / "base")
    tokenizer = build_tokenizer("abcdefgh")
    rows = [TokenRow(prompt_ids=(3, 4), ids=(5, 6, 1)), TokenRow(prompt_ids=(5,), ids=(7, 8, 1))]

    def tune():
        return fine_tune(
            rows,
            stage=SFTStage(
                model=Model(path=base, lora=Lora(rank=2)),
                data=SFTData(path="rows"),
                learner=SFTLearner(batch_size=2, max_steps=2, learning_rate=1e-2),
            ),
            tokenizer=tokenizer,
            run=Run(threads=1, save_steps=1),
            folder=tmp_path,
            console=Console(quiet=True),
        )

    with quiet():
        tiny("glm4_moe").save_pretrained(base)
        out = tune()["model"]
        merged = logits(AutoModelForCausalLM.from_pretrained(out))
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        adapted = PeftModel.from_pretrained(plain, f"{out}/adapter")
        torch.testing.assert_close(logits(adapted), merged, rtol=0, atol=1e-4)
        again = tune()["model"]  # from the last checkpoint, with nothing left to do
        torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(again)), merged)
