"""What an engine does by its device: whatever is decided reaches every pass of the model."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import _cur_sdpa_kernel_backends as backends

from grpo.rollout.embedded import decoder, own_cache, torch_engine
from grpo.rollout.embedded.ways import ways_on
from grpo.types import Version
from tests.rollout.tiny_models import V0, Letters, ragged, run, tiny

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", [decoder.SlotDecoder, own_cache.ReplayDecoder])
def test_every_pass_of_the_model_is_within(monkeypatch, kind):
    open_now, passes = [], []

    @contextmanager
    def forward():
        open_now.append(1)
        yield
        open_now.pop()

    ways = replace(ways_on(CPU), forward=forward, fused=False)
    monkeypatch.setattr(torch_engine, "ways_on", lambda _: ways)
    model = tiny("llama")
    model.register_forward_pre_hook(lambda *_: passes.append(len(open_now)))
    chosen = decoder.make_decoder(model, ways)  # compares it with plain passes
    assert isinstance(chosen, decoder.SlotDecoder)
    monkeypatch.setattr(torch_engine, "make_decoder", lambda *_, **__: kind(model, ways))
    engine = torch_engine.TorchEngine(model, Letters(), version=V0)
    run(engine, ragged())
    engine.load_weights(list(model.named_parameters()), Version(step=1, hash="x"))
    assert len(passes) > 10
    assert set(passes) == {1}


def test_a_gpu_is_asked_for_no_plans_of_cudnn():
    """Those take long to make, and every token is another shape."""
    plain = [kind.name for kind in backends()]
    with ways_on(torch.device("cuda")).forward():
        assert [kind.name for kind in backends()] == [
            "FLASH_ATTENTION",
            "EFFICIENT_ATTENTION",
            "MATH",
        ]
    with ways_on(CPU).forward():
        assert [kind.name for kind in backends()] == plain


def test_a_gpu_reads_more_prompts_at_once_and_runs_the_models_own_layers():
    here, there = ways_on(CPU), ways_on(torch.device("meta"))
    assert (there.tokens, there.logits) == (4 * here.tokens, 4 * here.logits)
    assert here.fused
    assert not there.fused
