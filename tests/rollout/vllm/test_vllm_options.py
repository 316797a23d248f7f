"""LoRA, speculation and SmolLM2 on vLLM: each needs an engine of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from grpo.errors import EngineError, WeightsError
from grpo.model.canary import canary_logprob
from grpo.model.content_hash import content_hash
from grpo.rollout import ENGINES
from grpo.types import EngineSpec, LoraSpec, Request, Sampling, Version
from tests.rollout.tiny_models import drain, full_logprobs, run

from .faults import fault, guard_off
from .test_vllm_engine import BASE, check_logprobs, load, named, prompts, version

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings(r"ignore:.*\s*Encountered the use of a type"),  # numba
]
RANK = 4
SMOLLM2 = Path(__file__).parents[3] / "models/smollm2-135m-instruct"


def made(**settings: Any) -> Any:
    pytest.importorskip("vllm")
    torch.set_num_threads(1)
    spec = {"model": BASE, "max_length": 64, "threads": 1} | settings.pop("spec", {})
    return ENGINES["vllm"](
        spec=EngineSpec(**spec), **{"max_num_seqs": 12, "kv_cache_gib": 0.1} | settings
    )


def adapter(model: Any, seed: int) -> dict[str, torch.Tensor]:
    """A random adapter on every linear layer, merged into `model` by hand: W + 2 B A."""
    generator = torch.Generator().manual_seed(seed)
    plain = dict(load().named_modules())
    tensors: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for name, layer in model.named_modules():
            if isinstance(layer, torch.nn.Linear) and name != "lm_head":
                a = torch.randn(RANK, layer.in_features, generator=generator) * 0.05
                b = torch.randn(layer.out_features, RANK, generator=generator) * 0.05
                tensors[f"base_model.model.{name}.lora_A.weight"] = a
                tensors[f"base_model.model.{name}.lora_B.weight"] = b
                layer.weight.copy_(plain[name].weight + 2 * b @ a)
    return tensors


def test_adapters_are_used_proven_and_replaced():
    engine = made(spec={"lora": LoraSpec(rank=RANK)})
    try:
        model = load()
        requests = prompts(3)
        check_logprobs(model, requests, run(engine, requests))  # the base, before any adapter
        for step in (1, 2):
            tensors = adapter(model, step)
            sent = Version(step=step, hash=content_hash(tensors.items()))
            ack = engine.load_weights(tensors.items(), sent)
            assert (ack.version, ack.tensors) == (sent, len(tensors))
            assert ack.canary == pytest.approx(canary_logprob(model), abs=1e-3)
            check_logprobs(model, requests, run(engine, requests), atol=1e-3)

        engine.submit(requests)
        engine.poll(timeout=0)
        tensors = adapter(model, 3)
        third = Version(step=3, hash=content_hash(tensors.items()))
        engine.load_weights(tensors.items(), third, in_flight="continue")
        for completion in drain(engine).values():
            assert [s.version.step for s in completion.segments] == [2, 3]
        check_logprobs(model, requests, run(engine, requests), atol=1e-3)

        with (
            fault(engine, "adapter_unused"),
            pytest.raises(WeightsError, match="registered but unused"),
        ):
            engine.load_weights(tensors.items(), third)
        with fault(engine, "adapter_unused"), guard_off(engine, lambda: third, lambda: 0.0):
            engine.load_weights(tensors.items(), third)
            check_logprobs(load(), requests, run(engine, requests))  # silently the base
        broken = dict(tensors)
        gone = next(iter(broken))
        del broken[gone]
        with pytest.raises(WeightsError, match=r"1 tensors of the adapter did not arrive.*lora_A"):
            engine.load_weights(broken.items(), third)
    finally:
        engine.close()


def test_speculation_draws_from_the_policy_and_switches_itself_off(monkeypatch):
    """Reported log-probs look right despite the fault of vLLM 0.32; the mean surprise does not."""
    from grpo.rollout.vllm import speculation

    engine = made(speculative_tokens=3)
    try:
        base = load()
        engine.load_weights(named(base), version(base, 0))
        # The text repeats itself here, so that drafts are made and accepted.
        requests = prompts(8, n=12, max_tokens=24, temperature=0.7)
        done = run(engine, requests)
        check_logprobs(base, requests, done)
        metrics = engine.take_metrics()
        assert 0.1 < metrics["rollout/draft_acceptance"] < 1
        assert metrics["rollout/accepted_per_draft"] <= 3
        from grpo.rollout.embedded.torch_engine import TorchEngine

        plain = run(TorchEngine(base, engine.tokenizer, version=version(base, 0)), requests)
        means = [
            np.array([-c.logprobs.mean(dtype=np.float64) for c in d.values()])
            for d in (done, plain)
        ]
        error = np.hypot(*(m.std(ddof=1) / len(m) ** 0.5 for m in means))
        assert abs(means[0].mean() - means[1].mean()) < 3 * error

        engine.speculation.restart(engine.llm)
        monkeypatch.setattr(speculation.Speculation, "gain", lambda _: 0.5)
        monkeypatch.setattr(speculation, "TRIAL", 4)
        run(engine, prompts(3, n=12, max_tokens=24))
        assert not engine.speculation.on
        engine.take_metrics()
        run(engine, prompts(2))
        metrics = engine.take_metrics()
        assert metrics["rollout/draft_on"] == 0.0
        assert "rollout/accepted_per_draft" not in metrics
    finally:
        engine.close()


def test_settings_that_do_nothing_or_cannot_be_are_refused():
    pytest.importorskip("vllm")
    spec = EngineSpec(model=BASE, max_length=64)
    with pytest.raises(EngineError, match="does nothing with speculative_tokens = 0"):
        ENGINES["vllm"](spec=spec, speculative_model="mtp")
    too_wide = EngineSpec(model=BASE, max_length=64, lora=LoraSpec(rank=4000))
    with pytest.raises(EngineError, match=r"lora\.rank = 4000 is more than vLLM serves"):
        ENGINES["vllm"](spec=too_wide)


@pytest.mark.smollm2
@pytest.mark.skipif(not SMOLLM2.exists(), reason="models/smollm2-135m-instruct: make test-smollm2")
def test_smollm2_stays_with_transformers_over_twenty_updates():
    """bfloat16, sampled at temperature 1: 0.040 and 0.033 apart when measured (docs/log.md)."""
    from transformers import AutoTokenizer

    path = str(SMOLLM2)
    engine = made(
        spec={"model": path, "dtype": "bfloat16", "max_length": 160}, max_num_seqs=16,
        kv_cache_gib=0.5,
    )  # fmt: skip
    try:
        model = load(path, torch.bfloat16)
        tokenizer = AutoTokenizer.from_pretrained(path)
        requests = []
        for i in range(2):
            message = {
                "role": "user",
                "content": f"What is {i + 3} * {17 - i}? Think step by step.",
            }
            ids = tokenizer.apply_chat_template(
                [message], add_generation_prompt=True, return_dict=False
            )
            requests.append(
                Request(
                    uid=f"r{i}", ids=tuple(ids), n=4, key=(0, i), sampling=Sampling(max_tokens=32)
                )
            )
        gaps = []
        generator = torch.Generator().manual_seed(0)
        for step in range(1, 21):
            with torch.no_grad():
                for p in model.parameters():
                    noise = torch.randn(p.shape, generator=generator) * 1e-3 * p.float().std()
                    p.add_(noise.to(p.dtype))
            ack = engine.load_weights(named(model), version(model, step))
            assert ack.version == version(model, step)
            if step in (1, 20):
                gap = []
                for (uid, _), c in run(engine, requests).items():
                    prompt = next(r.ids for r in requests if r.uid == uid)
                    gap.append(np.abs(full_logprobs(model, prompt, c.ids, 1.0) - c.logprobs))
                gaps.append(np.concatenate(gap).mean())
        print(f"mean |difference| after 1 and 20 updates: {gaps[0]:.4f} {gaps[1]:.4f}")
        assert gaps[0] <= 0.05
        assert gaps[1] <= 1.3 * gaps[0]
    finally:
        engine.close()
