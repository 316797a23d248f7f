"""Models of the GPU measurements: the published shapes, made once, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from gpu import assets
from gpu.section import Setup

# Parameters that the model cards on the hub state: 0.49B, 1.54B and 0.6B, here to the last one.
PARAMETERS = {
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen3-0.6b": 596_049_920,
}
SMALL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def setup_of(folder: Path, tiny: bool = False) -> Setup:
    return Setup(device="cpu", tiny=tiny, assets=folder, folder=folder, threads=1)


@pytest.mark.parametrize("name", assets.SHAPES)
def test_shapes_have_the_parameters_that_are_published(name):
    kind, shape = assets.SHAPES[name]
    with torch.device("meta"):
        config = getattr(transformers, kind)(**shape)
        model: Any = transformers.AutoModelForCausalLM.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


def test_random_weights_are_the_same_every_time_and_in_bfloat16(tmp_path, monkeypatch):
    monkeypatch.setattr(assets, "SHAPES", {"small": ("Qwen2Config", SMALL)})
    monkeypatch.setattr(assets, "NAMES", ("small",))
    loaded = []
    for part in ("a", "b"):
        (tmp_path / part).mkdir()
        folder = assets.model(setup_of(tmp_path / part), "small")
        transformers.AutoTokenizer.from_pretrained(folder)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        loaded.append(model.state_dict())
    assert {t.dtype for t in loaded[0].values()} == {torch.bfloat16}
    assert all(torch.equal(t, loaded[1][name]) for name, t in loaded[0].items())


def test_a_model_that_was_cut_is_made_anew_and_a_whole_one_is_not(tmp_path, monkeypatch):
    made: list[str] = []

    def save(name: str, out: Path, device: str) -> None:
        assert not out.exists()  # what a cut call left is gone
        out.mkdir()
        if not made:
            made.append("torn")
            (out / "model.safetensors").write_text("half")
            raise KeyboardInterrupt
        made.append(name)
        (out / "model.safetensors").write_text("whole")

    monkeypatch.setattr(assets, "save_random", save)
    with pytest.raises(KeyboardInterrupt):
        assets.model(setup_of(tmp_path), "qwen3-0.6b")
    assert not (tmp_path / "qwen3-0.6b").exists()
    for _ in range(2):
        folder = assets.model(setup_of(tmp_path), "qwen3-0.6b")
        assert (folder / "model.safetensors").read_text() == "whole"
    assert made == ["torn", "qwen3-0.6b"]


def test_tiny_is_the_shipped_model_and_names_are_checked(tmp_path):
    assert assets.model(setup_of(tmp_path, tiny=True), "qwen3-0.6b") == assets.TINY
    with pytest.raises(ValueError, match=r"no model 'gpt'; valid: smollm2-135m, qwen"):
        assets.model(setup_of(tmp_path), "gpt")
    with pytest.raises(FileNotFoundError, match=r"has no SmolLM2-135M\*\.gguf"):
        assets.model(setup_of(tmp_path), assets.SMOLLM2)
