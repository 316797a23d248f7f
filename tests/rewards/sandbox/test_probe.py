"""The probes find what holds, and notice when something does not."""

from __future__ import annotations

import dataclasses
import io
import os
import sys
from pathlib import Path

import pytest

from grpo.commands import doctor
from grpo.errors import RewardError
from grpo.outside.terminal.console import Console
from grpo.rewards import known as known_answers
from grpo.rewards.sandbox import linux, probe, probe_guest, sandbox, wire, zygote


def has_landlock() -> bool:
    try:
        return linux.landlock_abi() >= 1
    except OSError:
        return False


def test_what_graders_load_is_found_before_any_layer_and_without_bubblewrap():
    """Bubblewrap has to know it; a tier that fails by our own code would only be passed over."""
    config = {"path": sys.path, "preload": sandbox.PRELOAD}
    found = sandbox.Sandbox("bubblewrap")._find(config)
    for module in (wire, zygote):
        assert any(Path(module.__file__).is_relative_to(path) for path in found)


@pytest.mark.skipif(not has_landlock(), reason="the kernel has no Landlock")
def test_landlock_holds_where_the_kernel_has_it():
    report = probe.probe("landlock")
    assert report.holds, report.reason
    assert len(report.denied) >= 32


@pytest.mark.skipif(not has_landlock(), reason="the kernel has no Landlock")
@pytest.mark.parametrize(
    ("layers", "leaks"),
    [
        (
            ("landlock",),
            {
                "start a process",
                "own a socket's signals",
                "own a socket's signals (ioctl)",
                "own a socket's signals (group)",
                "choose a socket's signal",
                "switch on a socket's signals",
                "switch on a socket's signals (ioctl)",
                "have a folder watched",
                "make a pair of datagram sockets",
                "send a descriptor",
                "open a file without reading it",
                "call pidfd_open",
                "call memfd_create",
            },
        ),
        (("seccomp",), {"list a folder", "create a file", "create a file without a name"}),
    ],
)
def test_a_missing_layer_is_noticed_and_refused(monkeypatch, layers, leaks):
    monkeypatch.setitem(sandbox.LAYERS, "landlock", layers)
    report = probe.probe("landlock")
    assert leaks <= set(report.leaks)
    assert not list(Path("/tmp").glob("grpo-probe-*"))
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


def test_doctor_runs_every_verifier_in_a_tier_and_does_not_believe_a_wrong_score(monkeypatch):
    try:
        tier = probe.choose("auto")
    except RewardError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(doctor, "reports", lambda: [probe.probe(tier)])

    def said():
        output = io.StringIO()
        good = doctor.print_doctor(Console(file=output, soft_wrap=True))
        return good, output.getvalue()

    good, text = said()
    assert good, text
    assert f"holds  {tier}\n" in text
    make, package, (known,) = known_answers.KNOWN["math"]
    swapped = dataclasses.replace(known, right=known.wrong, wrong=known.right)
    monkeypatch.setattr(known_answers, "KNOWN", {"math": (make, package, (swapped,))})
    good, text = said()
    assert not good
    assert f"no     {tier}\n" in text
    assert "cannot grade: math, an interval against an inequality: the right answer scored" in text
    assert "graders do not work in it" in text


def test_graders_that_write_while_they_load_work_under_bubblewrap():
    """Matplotlib, which reasoning-gym brings, wants a folder for its cache."""
    if not probe.probe("bubblewrap").holds:
        pytest.skip("bubblewrap does not hold on this machine")
    assert known_answers.misjudged("bubblewrap") == []


def test_doctor_says_why_a_verifier_does_not_start(monkeypatch):
    def make(**_):
        raise RewardError("the sandbox did not start")

    monkeypatch.setitem(known_answers.KNOWN, "math", (make, "math_verify", ()))
    monkeypatch.delitem(known_answers.KNOWN, "code")
    monkeypatch.delitem(known_answers.KNOWN, "reasoning_gym")
    assert known_answers.misjudged("landlock") == ["math: the sandbox did not start"]


def test_what_a_probe_could_make_is_found_and_not_left_behind(tmp_path, monkeypatch):
    """It tries every folder; where one lets it, the machine is not to be littered by that."""
    monkeypatch.setattr(probe_guest, "FOLDERS", (str(tmp_path / "missing"), str(tmp_path)))
    made: list[str] = []
    for make, remove in (
        (probe_guest._create, os.unlink),
        (os.mkdir, os.rmdir),
        (lambda path: os.symlink("elsewhere", path), os.unlink),
        (os.mkfifo, os.unlink),
        (probe_guest._create_socket, os.unlink),
    ):

        def noted(path, make=make):
            make(path)
            made.append(path)
            assert os.path.lexists(path)

        probe_guest._everywhere(noted, "tried", remove)
        assert made.pop() == str(tmp_path / "tried")
        assert not list(tmp_path.iterdir())
    monkeypatch.setattr(probe_guest, "FOLDERS", (str(tmp_path / "missing"),))
    with pytest.raises(OSError, match="No such file"):
        probe_guest._everywhere(os.mkdir, "tried", os.rmdir)
