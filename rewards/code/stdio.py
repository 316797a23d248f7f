"""Programs judged by input and output: run one guest per test, compare the whole output.

Outputs are equal when their lines are, after trailing spaces and trailing empty lines are dropped:
no prefix, no substring. With a tolerance, tokens that are numbers may differ by it.
"""

from __future__ import annotations

import contextlib
import math
import re
import selectors
import signal
import socket
import time
from dataclasses import dataclass

from grpo.rewards.sandbox import wire
from grpo.rewards.sandbox.sandbox import LOST, Limits, Sandbox
from grpo.types import Status

START = 30.0  # seconds that a guest may take to confine itself, before any program runs
OUT_OF_MEMORY = 77  # exit code by which run_script reports a MemoryError


@dataclass(frozen=True, kw_only=True, slots=True)
class ProgramRun:
    """One program run: its output, and why it did not end well ("" if it did)."""

    output: str
    fault: str = ""
    status: Status = "wrong"  # of the fault: wrong, timeout, limit, or grader_error
    lost: bool = False  # the sandbox itself is gone


def same_output(printed: str, expected: str, tolerance: float | None = None) -> bool:
    """Whether two outputs are equal line by line (see above)."""
    left, right = _lines(printed), _lines(expected)
    if left == right:
        return True
    if tolerance is None or len(left) != len(right):
        return False
    pairs = [(a.split(), b.split()) for a, b in zip(left, right, strict=True)]
    return all(
        len(a) == len(b) and all(_close(x, y, tolerance) for x, y in zip(a, b, strict=True))
        for a, b in pairs
    )


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


# float() also reads 1_000, other scripts' digits and names
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def _close(printed: str, expected: str, tolerance: float) -> bool:
    if printed == expected:
        return True
    if not (_NUMBER.fullmatch(printed) and _NUMBER.fullmatch(expected)):
        return False
    a, b = float(printed), float(expected)
    # abs and rel as contest checkers do; inf is close to nothing
    return math.isfinite(a) and abs(a - b) <= tolerance * max(1.0, abs(b))


def run_program(
    sandbox: Sandbox, limits: Limits, source: str, given: str, timeout: float, most: int
) -> ProgramRun:
    """Run a program on `given` as its standard input, for at most `timeout` s and `most` bytes.

    A guest that fails before the program runs is a grader_error; after that it is the program's.
    """
    pairs = [socket.socketpair() for _ in range(3)]
    control, stdin, stdout = ours = [pair[0] for pair in pairs]
    fault: tuple[Status, str] | None = None
    output, ended, started = b"", None, False
    try:
        guest = sandbox.fork("script", limits, [pair[1] for pair in pairs], *ours)
        try:
            first = wire.receive(control, time.monotonic() + START)
            if "confined" not in first:
                return ProgramRun(
                    output="", status="grader_error", fault=str(first["unconfined"])[:200]
                )
            started, deadline = True, time.monotonic() + timeout
            control.settimeout(timeout)
            wire.send(control, source)
            output, fault = _pump(stdin, stdout, given.encode(), most, deadline)
            while fault is None and ended is None:
                ended = guest.poll()
                if ended is None and time.monotonic() > deadline:
                    fault = ("timeout", f"no exit within {timeout} s")
                elif ended is None:
                    time.sleep(0.001)
        except (EOFError, OSError, wire.WireError) as error:
            fault = ("wrong" if started else "grader_error", f"the program cannot be fed: {error}")
        finally:
            lost = guest.end() == LOST
    finally:
        for channel in ours:
            channel.close()
    text = output.decode(errors="surrogateescape")  # bytes that are no text equal no text
    if ended is not None and fault is None:
        fault = _exit_fault(ended)
    if fault is None:
        return ProgramRun(output=text)
    return ProgramRun(output=text, status=fault[0], fault=fault[1], lost=lost)


def _exit_fault(status: int) -> tuple[Status, str] | None:
    """What a wait status means, None for a clean exit."""
    if status == 0:
        return None
    if status == OUT_OF_MEMORY << 8:
        return "limit", "out of memory"
    if status & 0x7F == signal.SIGXCPU:
        return "timeout", "out of processor time"
    return "wrong", f"exit code {status >> 8}, signal {status & 0x7F}"


def _pump(
    stdin: socket.socket, stdout: socket.socket, given: bytes, most: int, deadline: float
) -> tuple[bytes, tuple[Status, str] | None]:
    """Feed standard input and collect standard output until its end, `most` bytes or `deadline`."""
    left = memoryview(given)
    parts: list[bytes] = []
    size = 0
    with selectors.DefaultSelector() as selector:
        for channel in (stdin, stdout):
            channel.setblocking(False)
        selector.register(stdout, selectors.EVENT_READ)
        if left:
            selector.register(stdin, selectors.EVENT_WRITE)
        else:
            stdin.shutdown(socket.SHUT_WR)
        while True:
            wait = deadline - time.monotonic()
            if wait <= 0:
                return b"".join(parts), ("timeout", "out of time")
            for key, _ in selector.select(wait):
                if key.fileobj is stdin:
                    try:
                        left = left[stdin.send(left[: 1 << 16]) :]
                    except (BrokenPipeError, ConnectionResetError):
                        left = left[:0]  # the program closed its input: it need not read it all
                    if not left:
                        selector.unregister(stdin)
                        with contextlib.suppress(OSError):
                            stdin.shutdown(socket.SHUT_WR)
                    continue
                try:
                    part = stdout.recv(1 << 16)
                except ConnectionResetError:
                    part = b""
                if not part:
                    return b"".join(parts), None
                parts.append(part)
                size += len(part)
                if size > most:
                    return b"".join(parts), ("limit", f"more than {most} bytes of output")
