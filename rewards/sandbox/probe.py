"""Which sandbox tier holds on this machine, found out by trying what must be denied."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from dataclasses import dataclass, field
from functools import cache

from grpo.errors import RewardError, unknown_name
from grpo.rewards.sandbox import probe_guest, readable, wire
from grpo.rewards.sandbox.sandbox import LAYERS, Limits, Sandbox

SANDBOXES = ("auto", *LAYERS)
_lock = threading.Lock()


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What happened when a tier was tried: it holds if nothing leaked and nothing broke."""

    tier: str
    error: str = ""  # why it did not start
    leaks: tuple[str, ...] = ()  # actions that went through and must not
    broken: dict[str, str] = field(default_factory=dict[str, str])  # what should work and does not
    denied: tuple[str, ...] = ()

    @property
    def reason(self) -> str:
        """Why it does not hold, in a few words; "" if it does."""
        if self.leaks:
            return "lets through " + ", ".join(self.leaks)
        broken = [f"cannot {name}: {why}" for name, why in self.broken.items()]
        return self.error or ", ".join(broken)

    @property
    def holds(self) -> bool:
        """Whether model code may run in it."""
        return not (self.error or self.leaks or self.broken)


def probe(tier: str) -> Report:
    """Start the tier and try every action of `probe_guest` in it."""
    sandbox = Sandbox(tier, preload=("grpo.rewards.sandbox.probe_guest",), trial=False)
    with tempfile.TemporaryDirectory() as folder:
        secret = os.path.join(folder, "secret")
        name = f"grpo-probe-{os.path.basename(folder)}"  # nothing has it: what is there is new
        with open(secret, "w", encoding="ascii") as stream:
            stream.write("secret")
        os.chmod(folder, 0o777)
        try:
            guest = sandbox.guest("probe", Limits(cpu=5))
            try:
                paths = readable.samples(readable.installed())
                given = {"secret": secret, "name": name, "pid": os.getpid(), "readable": paths}
                wire.send(guest.channels[0], given)
                answer = wire.receive(guest.channels[0], time.monotonic() + 60)
            finally:
                guest.end()
        except (RewardError, EOFError, OSError, wire.WireError) as error:
            return Report(tier=tier, error=str(error) or type(error).__name__)
        finally:
            sandbox.close()
            _clear(name)
    if "unconfined" in answer:
        return Report(tier=tier, error=answer["unconfined"])
    denied: dict[str, str | None] = answer["denied"]
    works: dict[str, str | None] = answer["works"]
    return Report(
        tier=tier,
        leaks=tuple(name for name, reason in denied.items() if reason is None),
        denied=tuple(name for name, reason in denied.items() if reason is not None),
        broken={name: reason for name, reason in works.items() if reason is not None},
    )


def _clear(name: str) -> None:
    """Remove what a guest could create and not remove, where a tier does not hold."""
    for folder in probe_guest.FOLDERS:
        path = os.path.join(folder, name)
        with contextlib.suppress(OSError):
            if os.path.isdir(path):
                os.rmdir(path)
            else:
                os.unlink(path)


@cache
def _strongest() -> Report:
    reports: list[Report] = []
    for tier in LAYERS:
        if tier == "unsafe":
            continue
        report = probe(tier)
        if report.holds:
            return report
        reports.append(report)
    found = "; ".join(f"{report.tier}: {report.reason}" for report in reports)
    raise RewardError(
        "no sandbox holds on this machine, so model output is not executed. " + found + ". Write "
        "`sandbox: unsafe` in the reward's args to run it without one."
    )


def choose(sandbox: str) -> str:
    """The tier to use for a recipe's `sandbox` argument; "auto" is the strongest that holds.

    Raises RewardError if the tier asked for, or every tier, fails a probe.
    """
    if sandbox not in SANDBOXES:
        raise RewardError(unknown_name("sandbox", sandbox, SANDBOXES))
    if sandbox == "unsafe":
        return sandbox
    with _lock:
        if sandbox == "auto":
            return _strongest().tier
        report = probe(sandbox)
    if not report.holds:
        raise RewardError(f"sandbox {sandbox!r} does not hold on this machine: {report.reason}")
    return sandbox


def reports() -> list[Report]:
    """Every tier's report, strongest first, for `grpo doctor`."""
    return [probe(tier) for tier in LAYERS if tier != "unsafe"]
