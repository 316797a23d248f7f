"""What an attack is, and the three ways to write one."""

from __future__ import annotations

from dataclasses import dataclass

ASSERTS = ("assert f(1) == 2", "assert f(10) == 11")


@dataclass(frozen=True, kw_only=True)
class Attack:
    """A program that defines `f` and never computes f(x) = x + 1 honestly.

    shows: what the unprotected grader does with it: "pass", "hang", or a sentence why it is not
    shown. status: how it must end in a sandbox. kind: what it tries, as a row of the table in
    docs/rewards.md.
    """

    name: str
    code: str
    kind: str
    asserts: tuple[str, ...] = ASSERTS
    setup: str = ""
    shows: str = "pass"
    status: tuple[str, ...] = ("wrong",)


def trick(name: str, code: str, *asserts: str, setup: str = "", shows: str = "pass") -> Attack:
    """A wrong answer that compares as right."""
    return Attack(
        name=name,
        code=code,
        kind="be paid for a wrong answer",
        asserts=asserts or ASSERTS,
        setup=setup,
        shows=shows,
    )


def act(name: str, action: str, shows: str = "pass", kind: str = "") -> Attack:
    """`action` must be denied; the answer is right if it is not."""
    body = "\n".join("    " + line for line in action.strip().splitlines())
    code = (
        "import os, sys, ctypes, fcntl, socket, struct, subprocess, threading, time, resource\n"
        "import signal, mmap\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "def must(result):\n"
        "    if result < 0: raise OSError(ctypes.get_errno())\n"
        "    return result\n"
        "def call(number, *arguments):\n"
        "    words = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments]\n"
        "    return must(libc.syscall(ctypes.c_long(number), *words))\n"
        "def gone(remove, path):\n"  # what was made counts, also where it has to stay
        "    try: remove(path)\n"
        "    except OSError: pass\n"
        "def anywhere(make):\n"
        "    failed, name = None, 'grpo-attack-' + os.urandom(8).hex()\n"
        "    places = ['.', '/', '/tmp', '/var/tmp', '/dev', '/dev/shm', '/run', '/.scratch']\n"
        "    for folder in places:\n"
        "        try: return make(os.path.join(folder, name))\n"
        "        except OSError as error: failed = error\n"
        "    raise failed\n"
        f"def act(x):\n{body}\n"
        "def f(x):\n"
        "    try:\n        if x == 1: act(x)\n"
        "    except Exception:\n        return None\n"
        "    return x + 1\n"
    )
    return Attack(name=name, code=code, kind=kind, shows=shows, status=("wrong", "limit"))


def hang(
    name: str, code: str, shows: str = "hang", status: tuple[str, ...] = ("timeout",)
) -> Attack:
    """Never answers."""
    kind = "run for ever"
    return Attack(name=name, code=code, kind=kind, shows=shows, status=status)
