"""The first guest of every sandbox: do graders find there what they need?

It reads a sample of the files that have to be readable. Then it calls the `trial` of each loaded
guest module that has one: it judges a right and a wrong answer and says what is wrong ("" for
nothing). The answers are chosen so that graders import late and read files of theirs. A file that
is hidden, unreadable or broken is thus known before the first score, and not from a run of zeros.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable

from grpo.rewards.sandbox import readable, wire
from grpo.rewards.sandbox.faults import describe


def serve(channel: socket.socket) -> None:
    """Answer {"faults": […]} to {"readable": paths, "modules": loaded by the zygote}."""
    given = wire.receive(channel)
    unreadable = readable.unreadable([*given["readable"], *readable.loaded()])
    faults = [f"cannot read {path}" for path in unreadable]
    for module in given["modules"]:
        trial: Callable[[], str] | None = getattr(sys.modules[module], "trial", None)
        try:
            fault = trial() if trial else ""
        except BaseException as error:  # whatever it is, answers would meet it too
            fault = describe(error)
        if fault:
            faults.append(f"{module.removeprefix('grpo.rewards.')}: {fault[:300]}")
    wire.send(channel, {"faults": faults})
