"""The worker that delivers weights: every part is seen, and none twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from perf import deliver

SETTINGS = {
    "model": str(Path(__file__).parents[2] / "recipes/assets/parity-base"),
    "dtype": "bfloat16",
    "engine": "torch",
}


@pytest.fixture(autouse=True)
def _as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the worker watches is given back after the test."""
    for parts in deliver.PARTS.values():
        for owner, name in parts.values():
            monkeypatch.setattr(owner, name, getattr(owner, name))


def test_a_delivery_is_the_sum_of_its_parts():
    found = deliver.prepare(SETTINGS)()
    # 854,400 parameters of two bytes
    assert found["bytes"] == 1_708_800
    parts = found["parts"]
    assert list(parts) == [
        "learner's hash",
        *deliver.PARTS["torch"],
        "learner's canary",
        "the rest",
    ]
    assert sum(parts.values()) == pytest.approx(found["seconds"], abs=1e-3)
    assert all(seconds >= 0 for seconds in parts.values())


def test_an_engine_that_acknowledges_something_else_is_an_error(monkeypatch):
    monkeypatch.setattr(deliver.torch_engine, "resident_hash", lambda *_: "another")
    with pytest.raises(RuntimeError, match="is no acknowledgment of"):
        deliver.prepare(SETTINGS)()
