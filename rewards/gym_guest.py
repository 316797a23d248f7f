"""The confined side of `reasoning_gym`: its own scorer on one answer."""

from __future__ import annotations

import importlib
import socket
from typing import Any

from grpo.rewards import wire

_gym: Any = importlib.import_module("reasoning_gym")


def serve(channel: socket.socket) -> None:
    """Answer {"score"} or {"error"} to each {"dataset", "answer", "entry"}."""
    while True:
        request = wire.receive(channel)
        wire.send(channel, {"stage": "score"})
        try:
            score = _gym.get_score_answer_fn(request["dataset"])
            marks = score(request["answer"], request["entry"])
            wire.send(channel, {"score": float.__add__(float(marks), 0.0)})
        except Exception as error:
            wire.send(channel, {"error": f"{type(error).__name__}: {str(error)[:200]}"})
