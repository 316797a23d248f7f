"""What a guest that judges answers says, and when it ends instead of saying anything."""

from __future__ import annotations

import socket

import pytest

from grpo.rewards.sandbox import faults, wire


def judge(answer, at_answer):
    """What every answer does to it: its own error, after the host was told that it is read."""
    at_answer()
    if answer == "right":
        return {"same": True}
    raise {"value": ValueError("odd"), "grader": faults.GraderFault("gone")}.get(
        answer, MemoryError()
    )


def test_an_answer_that_takes_all_memory_ends_the_guest_and_is_no_fault_of_the_grader(monkeypatch):
    """A fault leaves an answer unscored, and a policy would learn to write such answers."""
    monkeypatch.setattr(faults, "watch", lambda _: None)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for answer in ("right", "value", "grader", "memory"):
            wire.send(ours, {"answer": answer})
        ours.shutdown(socket.SHUT_WR)  # or a guest that goes on would wait for the next
        with pytest.raises(MemoryError):
            faults.serve_judge(theirs, (), judge)
        theirs.close()
        said = [wire.receive(ours) for _ in range(7)]
        with pytest.raises(EOFError):
            wire.receive(ours)
    stage = {"stage": "answer"}
    assert said[::2] == [stage] * 4
    assert said[1::2] == [{"same": True}, {"fault": "ValueError: odd"}, {"fault": "gone"}]
