"""The probes find what holds, and notice when something does not."""

from __future__ import annotations

import pytest

from grpo.errors import RewardError
from grpo.rewards import kernel, probe, sandbox


def has_landlock() -> bool:
    try:
        return kernel.landlock_abi() >= 1
    except OSError:
        return False


@pytest.mark.skipif(not has_landlock(), reason="the kernel has no Landlock")
def test_landlock_holds_where_the_kernel_has_it():
    report = probe.probe("landlock")
    assert report.holds, report.reason
    assert len(report.denied) >= 14


@pytest.mark.skipif(not has_landlock(), reason="the kernel has no Landlock")
@pytest.mark.parametrize(
    ("layers", "leaks"),
    [
        (("landlock",), {"start a process"}),
        (("seccomp",), {"list a folder"}),
    ],
)
def test_a_missing_layer_is_noticed_and_refused(monkeypatch, layers, leaks):
    monkeypatch.setitem(sandbox.LAYERS, "landlock", layers)
    report = probe.probe("landlock")
    assert leaks <= set(report.leaks)
    with pytest.raises(RewardError, match="does not hold on this machine: lets through"):
        probe.choose("landlock")


def test_where_nothing_holds_model_code_is_refused(monkeypatch):
    monkeypatch.setattr(
        probe, "probe", lambda tier: probe.Report(tier=tier, leaks=("read a file",))
    )
    probe._strongest.cache_clear()
    try:
        with pytest.raises(RewardError, match="sandbox: unsafe"):
            probe.choose("auto")
        assert probe.choose("unsafe") == "unsafe"
    finally:
        probe._strongest.cache_clear()
