"""What is done before a repetition is timed."""

from __future__ import annotations

from pathlib import Path

from gpu import timing
from gpu.section import Setup


def setup(device: str) -> Setup:
    return Setup(device=device, tiny=True, assets=Path(), folder=Path(), threads=1)


def test_a_card_works_until_its_clocks_are_up(monkeypatch):
    clock = [0.0]

    def run() -> None:
        clock[0] += 0.1

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(timing, "synchronize", lambda _: None)
    monkeypatch.setattr(timing, "_on_card", lambda call: call() or clock[0])
    found = timing.repetitions(setup("cuda"), run, count=2)
    # 0.1 s each: not after the three calls that warm up, but after half a second
    assert found["seconds"][0] > 0.55


def test_a_cpu_is_warm_after_the_calls_asked_for():
    calls: list[int] = []
    found = timing.repetitions(setup("cpu"), lambda: calls.append(1), count=2, warm_up=3)
    assert (len(calls), len(found["seconds"])) == (5, 2)
