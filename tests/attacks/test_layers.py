"""Each layer by itself, against a process of the same user that an attack would reach without it.

Kernels before 6.12 have a Landlock without scopes (ABI below 6): there seccomp alone keeps signals
and datagrams in. It is built here by asking Landlock for no more than ABI 5 gives.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from grpo.rewards.sandbox import linux

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="confinement is the Linux kernel's")

# Run with the layers, a victim's pid, an address and an attack: a process that confines itself as
# a guest does (but stays this user, so that the victim is within reach) and attacks.
CONFINED = r"""
import ctypes, fcntl, json, os, platform, signal, socket, struct, sys
from grpo.rewards.sandbox import linux, readable, zygote
from grpo.rewards.sandbox.syscalls import REFUSED, TABLES

numbers = TABLES[platform.machine()][1] | REFUSED[platform.machine()]

layers, victim, address, attack = json.loads(sys.argv[1])
zygote._become_nobody = lambda tasks, layers: None
linux.landlock_abi = lambda: 5
limits = {"cpu": 20, "memory": 1 << 30, "files": 64, "tasks": 64}
config = {"layers": layers, "readable": readable.installed(), "mapped": linux.address_space()}
libc = ctypes.CDLL(None, use_errno=True)
if layers:
    zygote.confine(limits, config)

def owned(command, argument, ioctl=False):
    a, b = socket.socketpair()
    if ioctl:
        fcntl.ioctl(a, command, struct.pack("i", argument))
    else:
        fcntl.fcntl(a, command, argument)
    fcntl.fcntl(a, 10, signal.SIGKILL)
    fcntl.fcntl(a, 4, 0x2000)
    b.send(b"x")

def watched():
    fd = os.open("/tmp", os.O_RDONLY)
    fcntl.fcntl(fd, 8, victim)
    fcntl.fcntl(fd, 10, signal.SIGKILL)
    fcntl.fcntl(fd, 1026, 4)  # DN_CREATE
    open(f"/tmp/grpo-attack-{os.getpid()}", "w").close()
    os.unlink(f"/tmp/grpo-attack-{os.getpid()}")

def datagram(kind):
    a, b = socket.socketpair(socket.AF_UNIX, kind)
    a.sendto(b"taken", "\0" + address)

def descriptors():
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", 0))
    a.sendmsg([b"taken"], [rights], 0, "\0" + address)

attacks = {
    "kill": lambda: os.kill(victim, 9),
    "tkill": lambda: libc.syscall(numbers["tkill"], victim, 9),
    "queue": lambda: libc.syscall(
        numbers["rt_sigqueueinfo"], victim, 9, (ctypes.c_int * 32)(0, 0, -1)
    ),
    "pidfd": lambda: signal.pidfd_send_signal(os.pidfd_open(victim), 9),
    "F_SETOWN": lambda: owned(8, victim),
    "F_SETOWN_EX": lambda: owned(15, struct.pack("ii", 1, victim)),
    "FIOSETOWN": lambda: owned(0x8901, victim, True),
    "SIOCSPGRP": lambda: owned(0x8902, victim, True),
    "F_NOTIFY": watched,
    "datagram": lambda: datagram(socket.SOCK_DGRAM),
    "raw": lambda: datagram(socket.SOCK_RAW),
    "flags": lambda: datagram(socket.SOCK_DGRAM | socket.SOCK_NONBLOCK),
    "descriptors": descriptors,
    "high half": lambda: [
        libc.syscall(
            numbers["socketpair"], 1, ctypes.c_ulong(2 | 1 << 32), 0, (v := (ctypes.c_int * 2)())
        ),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM, 0, v[0]).sendto(b"taken", "\0" + address),
    ],
}
try:
    attacks[attack]()
except OSError as error:
    os.write(1, f"refused: {error}".encode())
"""
SIGNALS = ["kill", "F_SETOWN", "F_SETOWN_EX", "FIOSETOWN", "SIOCSPGRP", "F_NOTIFY", "pidfd"]
SIGNALS += ["tkill", "queue"]
DATAGRAMS = ["datagram", "raw", "flags", "descriptors", "high half"]


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "100"])
    yield process
    process.kill()
    process.wait()


def attack(layers: list[str], victim: int, address: str, name: str) -> None:
    if "landlock" in layers:
        try:
            linux.landlock_abi()
        except OSError:
            pytest.skip("the kernel has no Landlock")
    given = json.dumps([layers, victim, address, name])
    done = subprocess.run([sys.executable, "-c", CONFINED, given], capture_output=True, timeout=60)
    assert b"Traceback" not in done.stderr, done.stderr[-2000:]


def killed(process: subprocess.Popen[bytes]) -> bool:
    """Whether a signal has ended it; one that was sent arrives at once."""
    until = time.monotonic() + 0.3
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    return process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("name", SIGNALS)
def test_no_signal_gets_out_where_landlock_has_no_scopes(victim, name):
    attack(["landlock", "seccomp"], victim.pid, "", name)
    assert not killed(victim)


@pytest.mark.parametrize("name", [name for name in SIGNALS if name != "F_NOTIFY"])
def test_signals_get_out_without_the_filter(victim, name):
    attack(["landlock"], victim.pid, "", name)
    assert killed(victim)


# F_NOTIFY needs a folder that may be opened and written to, which Landlock would not have.
def test_a_watched_folder_sends_signals_without_any_layer(victim):
    attack([], victim.pid, "", "F_NOTIFY")
    assert killed(victim)


@pytest.fixture
def listener() -> Iterator[tuple[socket.socket, str]]:
    """A datagram socket of the host, as a log or a desktop bus has."""
    address = f"grpo-attack-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind("\0" + address)
        channel.setblocking(False)
        yield channel, address


@pytest.mark.parametrize("name", DATAGRAMS)
def test_no_datagram_gets_out_where_landlock_has_no_scopes(listener, name):
    channel, address = listener
    attack(["landlock", "seccomp"], 0, address, name)
    with pytest.raises(BlockingIOError):
        channel.recv(8)


@pytest.mark.parametrize("name", DATAGRAMS)
def test_datagrams_get_out_without_the_filter(listener, name):
    channel, address = listener
    attack(["landlock"], 0, address, name)
    assert channel.recv(8) == b"taken"


# What guests need and what the filter must not take for it, as (call, arguments, refused).
FILTERED = r"""
import ctypes, errno, json, os, platform, socket, struct, sys
from grpo.rewards.sandbox import linux, seccomp
from grpo.rewards.sandbox.syscalls import TABLES

table = TABLES[platform.machine()][1]
libc = ctypes.CDLL(None, use_errno=True)
r, w = os.pipe()
a, b = socket.socketpair()
linux.no_new_privileges()
seccomp.install(os.getpid())
buffer = ctypes.create_string_buffer(64)
address = ctypes.create_string_buffer(struct.pack("H", 1) + b"\0grpo-attack")
where, path = ctypes.addressof(buffer), ctypes.addressof(ctypes.create_string_buffer(b"/dev/null"))
high = 1 << 32
here = 2**64 - 100  # AT_FDCWD
calls = [
    ("fcntl", [r, 0, 0], False), ("fcntl", [r, 1], False), ("fcntl", [r, 2, 1], False),
    ("fcntl", [r, 3], False), ("fcntl", [r, 4, 0x800], False), ("fcntl", [r, 1030, 0], False),
    ("fcntl", [r, 4, 0x2000], True), ("fcntl", [r, 4, 0x2800], True),
    ("fcntl", [r, 4 | high, 0x2000 | high], True), ("fcntl", [r, 4, 0x2000 | high], True),
    *(("fcntl", [r, n, 0], True) for n in range(5, 17)),
    *(("fcntl", [r, n, 0], True) for n in range(1024, 1040) if n != 1030),
    *(("fcntl", [r, n | high, 0], True) for n in (8, 10, 15, 1024, 1026)),
    *(("fcntl", [r, n - 2**32 & 0xFFFFFFFFFFFFFFFF, 0], True) for n in (8, 10)),
    ("ioctl", [r, 0x541B, where], False), ("ioctl", [a.fileno(), 0x5421, where], False),
    *(("ioctl", [a.fileno(), n, where], True) for n in (0x5452, 0x8901, 0x8902, 0x5412, 0x5410)),
    ("ioctl", [a.fileno(), 0x5452 | high, where], True),
    ("socketpair", [1, 1, 0, where], False), ("socketpair", [1, 0x80801, 0, where], False),
    *(("socketpair", [1, n, 0, where], True) for n in (2, 3, 5, 0x802, 0x80002, 2 | high)),
    ("socketpair", [2, 1, 0, where], True), ("socketpair", [30, 1, 0, where], True),
    ("sendto", [a.fileno(), where, 1, 0, 0, 0], False),
    ("sendto", [a.fileno(), where, 1, 0, ctypes.addressof(address), 13], True),
    ("sendto", [a.fileno(), where, 1, 0, high, 13], True),
    ("sendmsg", [a.fileno(), where, 0], True),
    ("openat", [here, path, 0], False), ("openat", [here, path, 0x200000], True),
    ("openat", [here, path, 0x200000 | high], True), ("openat", [here, path, 0x2000], True),
    ("kill", [os.getpid(), 0], False), ("kill", [os.getpid() | high, 0], False),
    ("kill", [0, 0], True), ("kill", [2**64 - 1, 0], True), ("kill", [high, 0], True),
    ("clone", [0, 0], True), ("clone", [17, 0], True), ("clone", [0x10000, 0], True),
    ("clone", [0x3D0F00 | 0x8000, 0], True), ("clone", [0x3D0F00 | 0x10000000, 0], True),
    ("prctl", [1, 9], True), ("prctl", [4 | high, 1], True), ("prctl", [15, where], False),
    ("prlimit64", [0, 7, 0, where], False), ("prlimit64", [1, 7, 0, where], True),
    ("getsid", [0], False), ("getsid", [1], True), ("getpgid", [1], True), ("chdir", [path], True),
]
wrong = []
for name, arguments, refused in calls:
    ctypes.set_errno(0)
    words = [ctypes.c_ulong(argument) for argument in arguments]
    result = libc.syscall(ctypes.c_long(table[name]), *words)
    if (result < 0 and ctypes.get_errno() in (errno.EPERM, errno.ENOSYS)) != refused:
        wrong.append([name, arguments, result, ctypes.get_errno()])
os.write(1, json.dumps([len(calls), wrong]).encode())
os._exit(0)
"""


def test_the_filter_refuses_by_argument_and_only_what_it_must():
    done = subprocess.run([sys.executable, "-c", FILTERED], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    tried, wrong = json.loads(done.stdout)
    assert wrong == []
    assert tried > 70
