"""The first guest of every sandbox: do graders find there what they need?

It reads a sample of all that has to be readable and has the graders that the zygote has loaded
judge a right and a wrong answer. Both go where imports are made late, so that files which are
hidden, unreadable or broken are known before the first score and not from a run of zeros.
"""

from __future__ import annotations

import importlib
import socket
from collections.abc import Callable

from grpo.rewards import readable, wire
from grpo.rewards.faults import describe, watch


def serve(channel: socket.socket) -> None:
    """Answer {"faults": […]} to {"readable": paths, "modules": loaded by the zygote}."""
    given = wire.receive(channel)
    faults = [
        f"cannot read {path}"
        for path in readable.unreadable([*given["readable"], *readable.loaded()])
    ]
    for module in given["modules"]:
        trial = TRIALS.get(module)
        try:
            fault = trial() if trial else ""
        except BaseException as error:  # whatever it is, answers would meet it too
            fault = describe(error)
        if fault:
            faults.append(f"{module.rpartition('.')[2].removesuffix('_guest')}: {fault[:300]}")
    wire.send(channel, {"faults": faults})


def _math() -> str:
    from grpo.rewards.math_guest import PACKAGES, judge

    watch(PACKAGES)
    # An identity of sines: SymPy imports modules of sets when it simplifies these.
    gold = "\\sin^2 x"
    for answer, right in (("1-\\cos^2 x", True), ("1-\\cos x", False)):
        found = judge(gold, answer)
        if found != {"gold": True, "answer": True, "same": right}:
            return f"{answer!r} against {gold!r} came out as {found}"
    return ""


def _gym() -> str:
    from grpo.rewards.gym_guest import PACKAGES, judge

    watch(PACKAGES)
    # This scorer reads its words from a file of the package when it is made.
    entry = {"answer": "", "metadata": {"start_word": "COLD", "end_word": "WARM"}}
    for answer, marks in (("COLD,CORD,CARD,WARD,WARM", 1.0), ("COLD,WARM", 0.0)):
        found = judge("word_ladder", answer, entry, lambda: None)
        if found != {"score": marks}:
            return f"word_ladder: {answer!r} came out as {found}"
    return ""


def _code() -> str:
    import numpy

    # Submodules that programs use and that `import numpy` leaves on the disk.
    for name in ("random", "linalg", "fft", "polynomial", "ma"):
        importlib.import_module(f"numpy.{name}")
    drawn = numpy.random.default_rng(0).integers(0, 10, 3).shape  # pyright: ignore
    inverse = numpy.linalg.inv(numpy.array([[2.0, 0.0], [0.0, 4.0]]))
    if drawn != (3,) or inverse.tolist() != [[0.5, 0.0], [0.0, 0.25]]:
        return f"numpy came out as {drawn}, {inverse.tolist()}"
    return ""


TRIALS: dict[str, Callable[[], str]] = {
    "grpo.rewards.math_guest": _math,
    "grpo.rewards.gym_guest": _gym,
    "grpo.rewards.code_guest": _code,
}
