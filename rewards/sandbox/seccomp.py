"""The filter of system calls (seccomp, BPF): what a Python program needs to compute, nothing else.

Calls of `syscalls.TABLES` that no rule mentions are allowed, some by their arguments only; all
others answer ENOSYS. A filter sees the numbers and not what they point to: no path, no structure.

It compares 32 bits at a time. All checked arguments but one are `int` or `unsigned int` in the
kernel, which drops the high half as well (`clone` takes its flags by `lower_32_bits`), so the low
half decides. The address of `sendto` is a pointer: both of its halves are checked.

References: seccomp(2), fcntl(2), and the definitions of the calls (SYSCALL_DEFINE) in the kernel.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from dataclasses import dataclass

from grpo.rewards.sandbox.syscalls import TABLES

_PR_SET_SECCOMP = 22
_ALLOW, _EPERM, _ENOSYS, _KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_ALL = 0xFFFFFFFF

# What pthread_create asks of `clone` (glibc; musl adds CLONE_DETACHED): threads, never processes.
_THREAD_FLAGS = (0x3D0F00, 0x7D0F00)
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # is-a-tty, sizes, FIO*: no signals
_PRCTLS = (15, 16, 0x53564D41)  # thread names, and names of memory areas
_F_DUPFD, _F_GETFD, _F_SETFD, _F_GETFL, _F_SETFL, _F_DUPFD_CLOEXEC = 0, 1, 2, 3, 4, 1030
_O_ASYNC, _O_PATH = 0x2000, 0x200000
_AF_UNIX, _SOCK_STREAM, _SOCK_FLAGS = 1, 1, 0x80800  # SOCK_CLOEXEC | SOCK_NONBLOCK
# EPERM says more to a program than ENOSYS does, and libraries are prepared for it.
_DENIED = frozenset({"fork", "vfork", "execve", "socket", "ptrace", "sendmsg", "chdir", "fchdir"})


@dataclass(frozen=True, kw_only=True, slots=True)
class _Test:
    """Whether an argument's bits under a mask are one of some values."""

    argument: int
    among: tuple[int, ...]
    mask: int = _ALL
    high: bool = False  # the high half of the 64 bits


# Each alternative is a list of tests that must all hold; without one that does, EPERM.
_Rule = tuple[tuple[_Test, ...], ...]


def _rules(pid: int) -> dict[str, _Rule]:
    """The calls that depend on their arguments, for a process `pid`."""
    itself = (0, pid)
    plain = (_F_DUPFD, _F_GETFD, _F_SETFD, _F_GETFL, _F_DUPFD_CLOEXEC)
    return {
        "kill": ((_Test(argument=0, among=(pid,)),),),
        "tgkill": ((_Test(argument=0, among=(pid,)),),),
        "clone": ((_Test(argument=0, among=_THREAD_FLAGS),),),
        "ioctl": ((_Test(argument=1, among=_IOCTLS),),),
        "prctl": ((_Test(argument=0, among=_PRCTLS),),),
        "prlimit64": ((_Test(argument=0, among=itself),),),
        "getpgid": ((_Test(argument=0, among=itself),),),
        "getsid": ((_Test(argument=0, among=itself),),),
        # Not F_SETOWN, F_SETSIG, F_SETLEASE, F_NOTIFY: by them the kernel sends signals to others.
        "fcntl": (
            (_Test(argument=1, among=plain),),
            (_Test(argument=1, among=(_F_SETFL,)), _Test(argument=2, among=(0,), mask=_O_ASYNC)),
        ),
        # Landlock does not look at O_PATH.
        "open": ((_Test(argument=1, among=(0,), mask=_O_PATH | _O_ASYNC),),),
        "openat": ((_Test(argument=2, among=(0,), mask=_O_PATH | _O_ASYNC),),),
        # A datagram socket could be sent to any address of the host's.
        "socketpair": (
            (
                _Test(argument=0, among=(_AF_UNIX,)),
                _Test(argument=1, among=(_SOCK_STREAM,), mask=_ALL ^ _SOCK_FLAGS),
            ),
        ),
        "sendto": ((_Test(argument=4, among=(0,)), _Test(argument=4, among=(0,), high=True)),),
    }


def _statement(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One instruction; the last two say how many to skip after a comparison."""
    return struct.pack("=HBBI", code, if_true, if_false, value & _ALL)


def _compiled(rule: _Rule) -> list[bytes]:
    program: list[bytes] = []
    for tests in rule:
        alternative = [_statement(_RETURN, _ALLOW)]
        for test in reversed(tests):
            past = len(alternative)  # instructions to skip where the test fails
            part = [_statement(_LOAD, _ARGUMENTS + 8 * test.argument + 4 * test.high)]
            if test.mask != _ALL:
                part.append(_statement(_AND, test.mask))
            last = len(test.among) - 1
            for position, value in enumerate(test.among):
                part.append(
                    _statement(_EQUAL, value, last - position, 0 if position < last else past)
                )
            alternative = part + alternative
        program += alternative
    return [*program, _statement(_RETURN, _EPERM)]


def filter_program(pid: int) -> bytes:
    """The filter for a process `pid`.

    Threads may be made, processes may not; signals reach only the process itself, also those that
    the kernel would send for it; no sockets but pairs of streams; `clone3` answers ENOSYS (its
    arguments cannot be read), so libc uses `clone`. Raises OSError on a machine whose table of
    system calls is not known here.
    """
    machine = platform.machine()
    if machine not in TABLES:
        raise OSError(f"no seccomp table for {machine}")
    architecture, table = TABLES[machine]
    rules = _rules(pid)
    program = [
        _statement(_LOAD, _ARCHITECTURE),
        _statement(_EQUAL, architecture, 1, 0),
        _statement(_RETURN, _KILL),
        _statement(_LOAD, _NUMBER),
        _statement(_AT_LEAST, 0x40000000, 0, 1),  # x32 calls would pass under other numbers
        _statement(_RETURN, _KILL),
    ]
    for name, number in table.items():
        if name not in rules:
            answer = _EPERM if name in _DENIED else _ALLOW
            program += [_statement(_EQUAL, number, 0, 1), _statement(_RETURN, answer)]
    for name, rule in rules.items():
        if name in table:
            check = _compiled(rule)
            program += [_statement(_EQUAL, table[name], 0, len(check)), *check]
    return b"".join([*program, _statement(_RETURN, _ENOSYS)])


def install(pid: int) -> None:
    """Filter this thread and everything it starts. Needs `linux.no_new_privileges`.

    Raises OSError where the kernel refuses.
    """
    program = filter_program(pid)
    instructions = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions))
    buffer = ctypes.create_string_buffer(header, len(header))
    mode, zero = ctypes.c_ulong(2), ctypes.c_ulong(0)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, mode, ctypes.byref(buffer), zero, zero) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"seccomp: {os.strerror(code)}")
