"""No forward pass of the engine asks a GPU's cuDNN for attention, whose plans take long to make."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from grpo.rollout import decoder, own_cache, torch_engine
from grpo.types import Version

from .tiny_models import V0, Letters, ragged, run, tiny


@pytest.mark.parametrize("kind", [decoder.SlotDecoder, own_cache.ReplayDecoder])
def test_every_pass_of_the_model_is_within(monkeypatch, kind):
    open_now, passes = [], []

    @contextmanager
    def attending(device):
        open_now.append(device)
        yield
        open_now.pop()

    for module in (decoder, own_cache, torch_engine):
        monkeypatch.setattr(module, "attending", attending)
    monkeypatch.setattr(decoder, "fusable", lambda _: False)
    model = tiny("llama")
    model.register_forward_pre_hook(lambda *_: passes.append(len(open_now)))
    chosen = decoder.make_decoder(model, packed=False)  # compares it with plain passes
    assert isinstance(chosen, decoder.SlotDecoder)
    monkeypatch.setattr(torch_engine, "make_decoder", lambda *_, **__: kind(model))
    engine = torch_engine.TorchEngine(model, Letters(), version=V0)
    run(engine, ragged())
    engine.load_weights(list(model.named_parameters()), Version(step=1, hash="x"))
    assert len(passes) > 10
    assert set(passes) == {1}
