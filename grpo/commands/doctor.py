"""`grpo doctor`: does a sandbox hold on this machine, and do the graders work in it?"""

from __future__ import annotations

from argparse import Namespace

from grpo.outside.terminal.console import Console
from grpo.rewards.known import misjudged
from grpo.rewards.sandbox.probe import Report, reports


def main(_arguments: Namespace) -> int:
    """Print which sandbox holds; 1 if none does or a grader does not work in it."""
    return 0 if print_doctor() else 1


def print_doctor(console: Console | None = None) -> bool:
    """Print what confines model code on this machine; True if something does and graders work.

    A tier is in order if nothing leaks and every verifier, run in it, tells a known right answer
    from a wrong one.
    """
    console = console or Console(soft_wrap=True)
    best: Report | None = None
    sound = True
    for report in reports():
        faults = misjudged(report.tier) if report.holds else []
        good = report.holds and not faults
        console.print(f"{'holds' if good else 'no   '}  {report.tier}", highlight=False)
        said = [report.error] if report.error else []
        said += [f"lets through: {action}" for action in report.leaks]
        said += [f"cannot {action}: {reason}" for action, reason in report.broken.items()]
        for line in [*said, *(f"cannot grade: {fault}" for fault in faults)]:
            console.print(f"         {line}", highlight=False)
        if best is None and report.holds:
            best, sound = report, not faults
    if best is None:
        console.print("no sandbox holds: `math` and `code` refuse unless args say sandbox: unsafe")
        return False
    console.print(f"in use: {best.tier}; denied: {', '.join(best.denied)}")
    if not sound:
        console.print("graders do not work in it: the lines above say what is missing")
    return sound
