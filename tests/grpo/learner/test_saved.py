"""A saved model that is not the policy is found at the save, and its tensor or part is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from grpo.config.schema import Algorithm
from grpo.config.schema import Learner as Config
from grpo.errors import LearnerError, RunError
from grpo.learner import policy, saved
from grpo.learner.learner import TorchLearner
from grpo.model import adapter
from grpo.types import LoraSpec
from tests.grpo.rows import tiny_model

DOWN = "model.layers.1.mlp.down_proj.weight"


def make(tmp_path, rank=0, dtype="float32"):
    tiny_model(dtype=torch.float32).save_pretrained(tmp_path / "base")
    learner = TorchLearner(
        str(tmp_path / "base"),
        algorithm=Algorithm(),
        config=Config(),
        lora=LoraSpec(rank=rank) if rank else None,
        dtype=dtype,
    )
    with torch.no_grad():
        for parameter in learner.trained.values():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    return learner


def spoiled(monkeypatch, spoil):
    """From now on `spoil` changes what was written before it is read again."""
    write = saved.write_model

    def both(model, state, path, has_adapter):
        write(model, state, path, has_adapter)
        spoil(Path(path))

    monkeypatch.setattr(saved, "write_model", both)


def change_weights(change):
    def spoil(folder):
        file = folder / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})

    return spoil


def test_another_value(tmp_path, monkeypatch):
    learner = make(tmp_path)
    spoiled(monkeypatch, change_weights(lambda t: t[DOWN][0].mul_(1.0001)))
    with pytest.raises(LearnerError, match=f"{DOWN} differs by"):
        learner.save_model(str(tmp_path / "out"))


def test_a_tensor_that_is_missing(tmp_path, monkeypatch):
    learner = make(tmp_path)
    spoiled(monkeypatch, change_weights(lambda t: t.pop(DOWN)))
    with pytest.raises(RunError, match=f"missing keys, among them {DOWN}"):
        learner.save_model(str(tmp_path / "out"))


def other_positions(folder):
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 7.0
    (folder / "config.json").write_text(json.dumps(config))


def test_rounding_of_a_half_type_is_measured_where_it_is_much(tmp_path, monkeypatch):
    learner = make(tmp_path, rank=4, dtype="bfloat16")
    monkeypatch.setitem(saved.SAME, False, 1e-4)  # as if the model were a deep one
    learner.save_model(str(tmp_path / "out"))
    spoiled(monkeypatch, other_positions)
    with pytest.raises(LearnerError, match="logits of a fixed text differ by"):
        learner.save_model(str(tmp_path / "other"))


def test_what_is_in_no_tensor(tmp_path, monkeypatch):
    learner = make(tmp_path)
    spoiled(monkeypatch, other_positions)
    with pytest.raises(LearnerError, match="logits of a fixed text differ by"):
        learner.save_model(str(tmp_path / "out"))


def test_a_merge_that_loses_a_layer(tmp_path, monkeypatch):
    def without(model, whole):
        for name, make_it in adapter.merged(model, whole):
            tensor = model.get_parameter(DOWN.replace(".weight", ".base_layer.weight"))
            yield name, (lambda t=tensor: t.detach()) if name == DOWN else make_it

    learner = make(tmp_path, rank=4)
    with torch.no_grad():
        for parameter in learner.trained.values():
            parameter.add_(torch.randn_like(parameter))
    monkeypatch.setattr(policy, "merged", without)
    with pytest.raises(LearnerError, match="is not the policy: its logits"):
        learner.save_model(str(tmp_path / "out"))


def test_an_adapter_on_what_is_not_merged(tmp_path):
    learner = make(tmp_path, rank=4)
    layer = learner.model.model.layers[0].self_attn.q_proj
    layer.base_layer.register_parameter("other", layer.base_layer.weight)
    layer.base_layer.weight = None
    with pytest.raises(LearnerError, match=r"0\.self_attn\.q_proj' is on no weight"):
        dict(adapter.merged(learner.model, lambda t: t))


def test_a_tensor_elsewhere_is_compared_without_being_copied(monkeypatch):
    """As on a GPU: by 16 bytes of each; only what differs is fetched, to say by how much."""
    fetched: list[int] = []
    monkeypatch.setattr(torch.Tensor, "cpu", lambda t: fetched.append(t.numel()) or t.clone())
    monkeypatch.setattr(torch.Tensor, "device", property(id))  # each on a device of its own
    monkeypatch.setattr(
        saved, "fingerprints", lambda given: [hash(t.numpy().tobytes()) for t in given]
    )
    held = torch.arange(6.0)
    assert saved._difference("w", held, held.clone()) == ""
    assert fetched == []
    assert saved._difference("w", held, held + torch.eye(6)[2]) == "w differs by 1"
    assert fetched == [6]
