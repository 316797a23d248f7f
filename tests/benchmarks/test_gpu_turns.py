"""Contenders in turns: one that fails, one that needs the memory to itself; and their processes."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from gpu import turns
from gpu.section import Setup
from perf import worker
from perf.contest import Contender, Plan, Worker


def setup_of(tmp_path: Any, tiny: bool = False) -> Setup:
    return Setup(device="cpu", tiny=tiny, assets=tmp_path, folder=tmp_path, threads=1)


class Fake:
    """A worker whose settings say what happens: seconds of each answer, or an error."""

    open: ClassVar[set[str]] = set()
    log: ClassVar[list[str]] = []

    def __init__(self, contender: Contender, plan: Plan) -> None:
        self.contender = contender
        self.left = list(contender.settings["seconds"])
        Fake.open.add(contender.name)

    def ready(self) -> dict[str, Any]:
        self._fail("start")
        return {}

    def repeat(self) -> dict[str, Any]:
        Fake.log.append(self.contender.name)
        if self.contender.settings.get("greedy") and len(Fake.open) > 1:
            raise RuntimeError("OutOfMemoryError: CUDA out of memory")
        self._fail("work")
        return {"seconds": self.left.pop(0), "tokens": 60, "needed_flops": 10.0}

    def count(self) -> dict[str, int]:
        self._fail("count")
        return {"synchronizations": 3}

    def close(self) -> None:
        Fake.open.discard(self.contender.name)

    def _fail(self, when: str) -> None:
        if self.contender.settings.get("fails") == when:
            raise RuntimeError(f"ValueError: at {when}")


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "Worker", Fake)
    Fake.open, Fake.log = set(), []


def contender(name: str, **settings: Any) -> Contender:
    settings = {"seconds": [9.0, 3.0, 1.0, 2.0, 2.0], **settings}
    return Contender(name=name, script="none", settings=settings)


def test_turns_after_a_warm_up_with_what_follows_from_them(tmp_path, monkeypatch):
    monkeypatch.setattr(turns, "matrix_rate", lambda *_: 100.0)
    found = turns.contest(setup_of(tmp_path), [contender("a"), contender("b")], count=True)
    assert Fake.log == ["a", "b"] * 4
    assert found["a"]["seconds"] == [3.0, 1.0, 2.0]  # not the 9 s of the warm-up
    assert found["a"]["median"] == 2.0
    assert found["a"]["tokens_per_second"] == 30.0
    assert found["a"]["mfu"] == 0.05  # 10 operations in 2 s, of 100 a second
    assert found["b"]["counts"] == {"synchronizations": 3}
    assert not Fake.open


@pytest.mark.parametrize("when", ["start", "work"])
def test_one_that_fails_costs_the_others_nothing(tmp_path, when):
    found = turns.contest(setup_of(tmp_path), [contender("a", fails=when), contender("b")])
    assert found["a"] == {"failed": f"ValueError: at {when}"}
    assert found["b"]["seconds"] == [3.0, 1.0, 2.0]
    assert "mfu" not in found["b"]  # the card section has not run
    assert not Fake.open


def test_figures_stay_where_counting_fails(tmp_path):
    pair = [contender("a", fails="count"), contender("b")]
    found = turns.contest(setup_of(tmp_path), pair, count=True)
    assert found["a"]["median"] == 2.0
    assert "counts" not in found["a"]
    assert found["b"]["counts"] == {"synchronizations": 3}


def test_what_lacks_memory_beside_others_is_tried_alone(tmp_path):
    found = turns.contest(setup_of(tmp_path), [contender("a", greedy=True), contender("b")])
    assert found["a"]["alone"] is True
    assert found["a"]["median"] == 2.0
    assert "alone" not in found["b"]


def test_what_lacks_memory_by_itself_is_a_result(tmp_path, monkeypatch):
    def full(_: Fake) -> None:
        raise RuntimeError("OutOfMemoryError: CUDA out of memory")

    monkeypatch.setattr(Fake, "repeat", full)
    found = turns.contest(setup_of(tmp_path), [contender("a"), contender("b")])
    assert found["a"] == {"failed": "OutOfMemoryError: CUDA out of memory", "alone": True}


def test_tiny_is_one_repetition(tmp_path):
    found = turns.contest(setup_of(tmp_path, tiny=True), [contender("a")])
    assert found["a"]["seconds"] == [3.0]


def test_a_worker_tells_its_figures_and_its_errors():
    """With processes, by the smallest script there is."""
    plan = Plan(threads=1)
    good = Worker(
        Contender(name="good", script="gemm", settings={"dtype": "float32", "size": 8}), plan
    )
    bad = Worker(Contender(name="bad", script="gemm", settings={"dtype": "float7"}), plan)
    try:
        with pytest.raises(RuntimeError, match=r"bad \(gemm\): AttributeError: .*float7"):
            bad.ready()
        good.ready()
        answer = good.repeat()
        assert answer["flops"] == 2 * 8**3 * 20
        assert answer["seconds"] > 0
        assert "peak_gpu_gib" not in answer  # on a CPU
        assert good.count() is None
    finally:
        good.close()
        bad.close()


def test_the_clock_waits_for_the_card_except_while_waits_are_counted(monkeypatch):
    waits: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append("wait"))
    assert worker.now({}) > 0
    assert not waits  # on a CPU
    assert worker.now({"device": "cuda"}) > 0
    assert waits == ["wait"]
    worker.now({"device": "cuda", "counting": True})
    assert waits == ["wait"]


def test_the_peak_of_the_card_is_told_in_gib(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**29)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 2**31)
    found = worker.peak_gpu_gib({"device": "cuda"})
    assert found == {"peak_gpu_gib": 1.5, "peak_gpu_reserved_gib": 2.0}
    assert worker.peak_gpu_gib({"device": "cpu"}) == {}
