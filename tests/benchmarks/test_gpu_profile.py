"""The profile: warm repetitions wait for the card, profiled ones are without the clock's waits."""

from __future__ import annotations

from pathlib import Path

import pytest
from gpu.section import Setup
from gpu.sections import profile
from perf import gen_ours, learn_ours


@pytest.mark.parametrize(("kind", "script"), [("learner", learn_ours), ("decode", gen_ours)])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_clock_waits_for_the_card_until_the_profiler_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, script, device: str
) -> None:
    seen: list[tuple[str, bool]] = []

    def prepare(settings):
        def repetition():
            seen.append((settings["device"], settings.get("counting", False)))
            return {"seconds": 1.0}

        return repetition

    monkeypatch.setattr(script, "prepare", prepare)
    monkeypatch.setattr(profile, "profiled", lambda run, file, **_: run())
    monkeypatch.setattr(profile.trace, "read", lambda _: [])
    monkeypatch.setattr(profile.trace, "write_small", lambda *_: None)
    monkeypatch.setattr(profile, "analyze", lambda _: {"gaps": [], "seconds": 1.0})
    setup = Setup(device=device, tiny=True, assets=tmp_path, folder=tmp_path, threads=1)
    (step,) = [s for s in profile.SECTION.steps(setup) if s.name.startswith(kind)]
    assert step.run(setup)["warm_seconds"] == [1.0]
    assert seen == [(device, False), (device, True), (device, True)]
