"""The Linux kernel's own confinement, by ctypes: rlimits, uid drop, Landlock, namespaces.

None of it needs root or a package. Each call raises OSError where the kernel refuses, so that
`sandbox.probe` can tell what holds on a machine; nothing here decides that a layer is optional.

The filter of system calls is in `seccomp`. References: landlock(7), user_namespaces(7).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import struct
from collections.abc import Iterable, Sequence
from typing import Any

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_PR_CAPBSET_DROP, _PR_SET_KEEPCAPS = 24, 8
CAP_DAC_READ_SEARCH = 1 << 2
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT = 0x1, 0x2, 0x4, 0x20
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_MNT_DETACH = 2
_OLD_ROOT = "/.old-root"
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _checked(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def _syscall(what: str, number: int, *arguments: Any) -> int:
    return _checked(_libc.syscall(number, *arguments), what)


def prctl(option: int, value: int) -> None:
    """prctl(2) with one argument."""
    zero = ctypes.c_ulong(0)
    _checked(_libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero), f"prctl {option}")


def no_new_privileges() -> None:
    """Neither set-uid programs nor file capabilities count from here on."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def die_with_parent() -> None:
    """SIGKILL when the parent thread ends. A change of uid clears it: call this afterwards."""
    prctl(_PR_SET_PDEATHSIG, 9)


def not_dumpable() -> None:
    """No core dump, and no ptrace or /proc/PID access from processes of the same user."""
    prctl(_PR_SET_DUMPABLE, 0)


def die_first() -> None:
    """Where memory runs out, the kernel ends this process and its children before any other.

    An inherited score (proc(5), oom_score_adj), so it is set before guests are forked; they have
    no /proc to take it back. Where it cannot be written, they are as likely to end as their host.
    """
    with (
        contextlib.suppress(OSError),
        open("/proc/self/oom_score_adj", "w", encoding="ascii") as score,
    ):
        score.write("1000")


def limit(name: str, value: int) -> None:
    """Set the soft and hard limit RLIMIT_<name>, or the hard limit in force if that is lower."""
    which: int = getattr(resource, f"RLIMIT_{name}")
    hard = resource.getrlimit(which)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(which, (value, value))


def address_space() -> int:
    """Bytes of address space this process has mapped; half a GiB where there is no /proc."""
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 1 << 29


def become(uid: int, capabilities: int = 0) -> None:
    """Become `uid` with no groups and only these capabilities (a bit mask), for good.

    Only root can become someone else; with its own uid a process only drops its capabilities.
    """
    for capability in range(64):
        try:
            prctl(_PR_CAPBSET_DROP, capability)
        except OSError:
            break  # past the last capability, or not allowed to (then there is none to drop)
    if uid != os.getuid():
        prctl(_PR_SET_KEEPCAPS, 1)
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0))
    sets = ctypes.create_string_buffer(struct.pack("=6I", capabilities, capabilities, 0, 0, 0, 0))
    _checked(_libc.capset(header, sets), "capset")


def tasks_of(uid: int) -> int:
    """Threads that a user runs now, of those that can be seen: RLIMIT_NPROC counts them all."""
    count = 0
    try:
        entries = os.listdir("/proc")
    except OSError:  # a root of our own, without it
        return count
    for entry in entries:
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{entry}").st_uid == uid:
                    count += len(os.listdir(f"/proc/{entry}/task"))
    return count


# Landlock (since ABI 1; later ABIs add rights, network and scopes).
_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_RIGHTS_BY_ABI = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446


def landlock_abi() -> int:
    """Landlock's ABI version. Raises OSError where the kernel has none."""
    return _syscall("landlock", _CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1))


def landlock(readable: Iterable[str]) -> None:
    """Deny the file system except reading below `readable`, TCP, and signals to the outside.

    /dev/null may be written to, where it is readable.
    """
    abi = landlock_abi()
    rights = (1 << _RIGHTS_BY_ABI.get(abi, 16)) - 1
    # struct landlock_ruleset_attr: handled_access_fs, handled_access_net (4), scoped (6)
    fields = [rights] + ([3] if abi >= 4 else []) + ([3] if abi >= 6 else [])
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    size, none = ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0)
    ruleset = _syscall("landlock_create_ruleset", _CREATE_RULESET, attributes, size, none)
    own = ctypes.c_int(ruleset)
    try:
        for path in readable:
            try:
                handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # a path that is not there needs no rule; `trial` finds it missing
            try:
                allowed = _READ_FILE | (_READ_DIR if os.path.isdir(path) else 0)
                if path == "/dev/null":  # programs silence themselves with it, and torch opens it
                    allowed |= _WRITE_FILE
                rule = struct.pack("=Qi", allowed, handle)
                _syscall("landlock_add_rule", _ADD_RULE, own, ctypes.c_int(1), rule, none)
            finally:
                os.close(handle)
        _syscall("landlock_restrict_self", _RESTRICT_SELF, own, none)
    finally:
        os.close(ruleset)


def unshare(flags: int) -> None:
    """unshare(2)."""
    _checked(_libc.unshare(ctypes.c_int(flags)), "unshare")


def counts_alone() -> bool:
    """Have this process's threads counted by themselves, in a user namespace; whether that went.

    RLIMIT_NPROC counts by user and namespace since Linux 5.14 (user_namespaces(7)). No id is
    mapped, so the process loses nothing but its name for itself.
    """
    try:
        unshare(CLONE_NEWUSER)
    except OSError:
        return False
    return True


def enter_namespaces() -> None:
    """New mount, network, IPC, UTS and (for children) process namespaces.

    Root makes them directly and keeps the right to drop to another user later. Anyone else makes
    a user namespace first: outside, the process stays who it was; inside, it has every capability.
    """
    flags = CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWPID
    uid, gid = os.getuid(), os.getgid()
    if uid == 0:
        unshare(flags)
        return
    unshare(flags | CLONE_NEWUSER)
    for path, line in (
        ("/proc/self/setgroups", "deny"),
        ("/proc/self/uid_map", f"{uid} {uid} 1"),
        ("/proc/self/gid_map", f"{gid} {gid} 1"),
    ):
        with open(path, "w", encoding="ascii") as stream:
            stream.write(line)


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """mount(2)."""
    _checked(
        _libc.mount(
            source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode()
        ),
        f"mount {target}",
    )


def read_only_root(readable: Sequence[str]) -> None:
    """Replace the root by an empty one that holds read-only views of `readable`, nothing else.

    Needs a mount namespace of one's own. The new root takes its place first and the views come
    from the old one afterwards, so that no mount of ours can hide what is to be shown: a Python
    below the folder that the new root was mounted on is as visible as any other.
    """
    places = [(path, os.path.realpath(path)) for path in readable]
    mount("none", "/", "", _MS_REC | _MS_PRIVATE)
    mount("tmpfs", "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    umask = os.umask(0o022)  # a guest is another user and has to get through these folders
    os.mkdir(f"/tmp{_OLD_ROOT}")
    os.chdir("/tmp")
    number = 155 if platform.machine() == "x86_64" else 41  # pivot_root
    old = _OLD_ROOT.lstrip("/").encode()
    _syscall("pivot_root", number, b".", old)
    os.chdir("/")
    for path, real in places:
        _show(path, real)
    _checked(_libc.umount2(_OLD_ROOT.encode(), _MNT_DETACH), "umount of the old root")
    os.rmdir(_OLD_ROOT)
    os.umask(umask)
    mount("none", "/", "", _MS_REMOUNT | _MS_RDONLY | _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")


def _show(path: str, real: str) -> None:
    """A read-only view at `path` of what `real`, without links on its way, is in the old root."""
    source = _OLD_ROOT + real
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.isdir(source):
        os.mkdir(path)
    else:
        with open(path, "xb"):
            pass
    mount(source, path, "", _MS_BIND | _MS_REC)
    if not path.startswith("/dev/"):
        # in a user namespace a flag that the original has cannot be taken off again
        kept = os.statvfs(path).f_flag & os.ST_NOEXEC
        flags = _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV
        mount("none", path, "", flags | kept)
