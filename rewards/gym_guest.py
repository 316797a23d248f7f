"""The confined side of `reasoning_gym`: its own scorer on one answer."""

from __future__ import annotations

import importlib
import socket
from collections.abc import Callable
from typing import Any

from grpo.rewards.sandbox.faults import MACHINERY, describe, serve_judge, watch

PACKAGES = ("reasoning_gym", "sympy", "mpmath")
_gym: Any = importlib.import_module("reasoning_gym")


def judge(
    dataset: str, answer: str, entry: dict[str, Any], at_answer: Callable[[], None]
) -> dict[str, Any]:
    """{"score": marks}, or {"unreadable": why} for an answer that the scorer breaks on.

    `at_answer` is called before the answer is read. Raises whatever the scorer raises on the row's
    own answer too (then the row or the scorer is at fault), MemoryError, and MACHINERY or
    GraderFault. An answer that alone makes a scorer raise is wrong, not unscored: unscored
    completions leave the baseline, so a policy would learn to write such answers.
    """
    score = _gym.get_score_answer_fn(dataset)
    at_answer()
    try:
        return {"score": float.__add__(float(score(answer, entry)), 0.0)}
    except (MemoryError, *MACHINERY):
        raise
    except Exception as error:
        score(entry.get("answer"), entry)
        return {"unreadable": describe(error)[:200]}


def trial() -> str:
    """What goes wrong with a scorer that reads its words from a file when it is made, or ""."""
    watch(PACKAGES)
    entry = {"answer": "", "metadata": {"start_word": "COLD", "end_word": "WARM"}}
    for answer, marks in (("COLD,CORD,CARD,WARD,WARM", 1.0), ("COLD,WARM", 0.0)):
        found = judge("word_ladder", answer, entry, lambda: None)
        if found != {"score": marks}:
            return f"word_ladder: {answer!r} came out as {found}"
    return ""


def serve(channel: socket.socket) -> None:
    """Answer `judge`'s dict, or {"fault": why}, to each {"dataset", "answer", "entry"}."""
    serve_judge(channel, PACKAGES, judge)
