"""The Linux kernel's own confinement, by ctypes: rlimits, uid drop, Landlock, seccomp, namespaces.

None of it needs root or a package. Each call raises OSError where the kernel refuses, so that
`sandbox.probe` can tell what holds on a machine; nothing here decides that a layer is optional.

References: landlock(7), seccomp(2), user_namespaces(7), and the kernel's syscall tables.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
from collections.abc import Iterable, Sequence

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
CLONE_THREAD = 0x00010000
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_PR_CAPBSET_DROP = 24
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = (
    0x1,
    0x2,
    0x4,
    0x20,
    0x1000,
    0x4000,
    0x40000,
)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _checked(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


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


def limit(name: str, value: int) -> None:
    """Set the soft and hard limit RLIMIT_<name>, or the hard limit in force if that is lower."""
    which: int = getattr(resource, f"RLIMIT_{name}")
    hard = resource.getrlimit(which)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(which, (value, value))


def address_space() -> int:
    """Bytes of address space this process has mapped."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


def drop_user(uid: int) -> None:
    """Become `uid` with no groups, for good. Only root can."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def drop_capabilities() -> None:
    """Clear every capability set, the bounding set included."""
    for capability in range(64):
        try:
            prctl(_PR_CAPBSET_DROP, capability)
        except OSError:
            break  # past the last capability, or not allowed to (then there is none to drop)
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0))
    sets = ctypes.create_string_buffer(24)
    _checked(_libc.capset(header, sets), "capset")


# Landlock (since ABI 1; later ABIs add rights, network and scopes).
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_RIGHTS_BY_ABI = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446


def landlock_abi() -> int:
    """Landlock's ABI version. Raises OSError where the kernel has none."""
    result = _libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    return _checked(result, "landlock")


def landlock(readable: Iterable[str]) -> None:
    """Deny the file system except reading below `readable`, TCP, and signals to the outside."""
    abi = landlock_abi()
    rights = (1 << _RIGHTS_BY_ABI.get(abi, 16)) - 1
    # struct landlock_ruleset_attr: handled_access_fs, handled_access_net (4), scoped (6)
    fields = [rights] + ([3] if abi >= 4 else []) + ([3] if abi >= 6 else [])
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    ruleset = _checked(
        _libc.syscall(
            _CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0)
        ),
        "landlock_create_ruleset",
    )
    try:
        for path in readable:
            try:
                handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue  # a path that is not there needs no rule
            try:
                allowed = _READ_FILE | (_READ_DIR if os.path.isdir(path) else 0)
                rule = struct.pack("=Qi", allowed, handle)
                _checked(
                    _libc.syscall(
                        _ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(1), rule, ctypes.c_uint32(0)
                    ),
                    "landlock_add_rule",
                )
            finally:
                os.close(handle)
        _checked(
            _libc.syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0)),
            "landlock_restrict_self",
        )
    finally:
        os.close(ruleset)


# seccomp: what a Python program needs to compute, and nothing else. Everything unlisted answers
# ENOSYS. Names that are missing from a table do not exist on that machine.
_X86_64 = dict(
    pair.split("=")
    for pair in (
        "read=0 write=1 open=2 close=3 stat=4 fstat=5 lstat=6 poll=7 lseek=8 mmap=9 "
        "mprotect=10 munmap=11 brk=12 rt_sigaction=13 rt_sigprocmask=14 rt_sigreturn=15 "
        "pread64=17 pwrite64=18 readv=19 writev=20 access=21 pipe=22 select=23 sched_yield=24 "
        "mremap=25 msync=26 mincore=27 madvise=28 dup=32 dup2=33 pause=34 nanosleep=35 "
        "getitimer=36 alarm=37 setitimer=38 getpid=39 sendto=44 recvfrom=45 sendmsg=46 "
        "recvmsg=47 shutdown=48 exit=60 wait4=61 uname=63 fcntl=72 getdents=78 getcwd=79 "
        "chdir=80 fchdir=81 readlink=89 umask=95 gettimeofday=96 getrlimit=97 getrusage=98 "
        "sysinfo=99 times=100 getuid=102 getgid=104 geteuid=107 getegid=108 getppid=110 "
        "getpgrp=111 getgroups=115 getresuid=118 getresgid=120 getpgid=121 getsid=124 "
        "rt_sigpending=127 rt_sigtimedwait=128 rt_sigsuspend=130 sigaltstack=131 statfs=137 "
        "fstatfs=138 sched_getparam=143 sched_getscheduler=145 arch_prctl=158 gettid=186 "
        "futex=202 sched_getaffinity=204 getdents64=217 set_tid_address=218 "
        "restart_syscall=219 fadvise64=221 clock_gettime=228 clock_getres=229 "
        "clock_nanosleep=230 exit_group=231 epoll_wait=232 epoll_ctl=233 openat=257 "
        "newfstatat=262 readlinkat=267 faccessat=269 pselect6=270 ppoll=271 "
        "set_robust_list=273 get_robust_list=274 epoll_pwait=281 eventfd2=290 "
        "epoll_create1=291 dup3=292 pipe2=293 getcpu=309 getrandom=318 membarrier=324 "
        "statx=332 rseq=334 close_range=436 faccessat2=439 "
        "kill=62 tgkill=234 clone=56 ioctl=16 prctl=157 prlimit64=302 socketpair=53 "
        "fork=57 vfork=58 execve=59 socket=41 ptrace=101"
    ).split()
)
_AARCH64 = dict(
    pair.split("=")
    for pair in (
        "getcwd=17 eventfd2=19 epoll_create1=20 epoll_ctl=21 epoll_pwait=22 dup=23 dup3=24 "
        "fcntl=25 statfs=43 fstatfs=44 faccessat=48 chdir=49 fchdir=50 openat=56 close=57 "
        "pipe2=59 getdents64=61 lseek=62 read=63 write=64 readv=65 writev=66 pread64=67 "
        "pwrite64=68 pselect6=72 ppoll=73 readlinkat=78 newfstatat=79 fstat=80 exit=93 "
        "exit_group=94 set_tid_address=96 futex=98 set_robust_list=99 get_robust_list=100 "
        "nanosleep=101 getitimer=102 setitimer=103 clock_gettime=113 clock_getres=114 "
        "clock_nanosleep=115 sched_getscheduler=120 sched_getparam=121 sched_getaffinity=123 "
        "sched_yield=124 restart_syscall=128 sigaltstack=132 rt_sigsuspend=133 rt_sigaction=134 "
        "rt_sigprocmask=135 rt_sigpending=136 rt_sigtimedwait=137 rt_sigreturn=139 times=153 "
        "getpgid=155 getsid=156 getgroups=158 uname=160 getrusage=165 umask=166 getcpu=168 "
        "gettimeofday=169 getpid=172 getppid=173 getuid=174 geteuid=175 getgid=176 getegid=177 "
        "gettid=178 sysinfo=179 sendto=206 recvfrom=207 shutdown=210 sendmsg=211 recvmsg=212 "
        "brk=214 munmap=215 mremap=216 mmap=222 fadvise64=223 mprotect=226 msync=227 mincore=232 "
        "madvise=233 wait4=260 getrandom=278 membarrier=283 statx=291 rseq=293 close_range=436 "
        "faccessat2=439 "
        "kill=129 tgkill=131 clone=220 ioctl=29 prctl=167 prlimit64=261 socketpair=199 "
        "execve=221 socket=198 ptrace=117"
    ).split()
)
_TABLES = {"x86_64": (0xC000003E, _X86_64), "aarch64": (0xC00000B7, _AARCH64)}
_CONDITIONAL = frozenset({"kill", "tgkill", "clone", "ioctl", "prctl", "prlimit64", "socketpair"})
_DENIED = frozenset({"fork", "vfork", "execve", "socket", "ptrace"})
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # is-a-tty, sizes, FIO*: all harmless
_PRCTLS = (15, 16, 0x53564D41)  # thread names, and names of memory areas
_ALLOW, _EPERM, _ENOSYS, _KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
_HIGH_WORDS_END = 16  # struct seccomp_data: nr, arch, instruction pointer, six 64-bit arguments


def _statement(code: int, value: int) -> bytes:
    return struct.pack("=HBBI", code, 0, 0, value & 0xFFFFFFFF)


def _jump(code: int, value: int, if_true: int, if_false: int) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value & 0xFFFFFFFF)


_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06


def _argument_in(argument: int, values: Sequence[int]) -> list[bytes]:
    """Allow when the low word of an argument is one of `values`, else EPERM."""
    program = [_statement(_LOAD, _HIGH_WORDS_END + 8 * argument)]
    for position, value in enumerate(values):
        program.append(_jump(_EQUAL, value, len(values) - position, 0))
    return [*program, _statement(_RETURN, _EPERM), _statement(_RETURN, _ALLOW)]


def seccomp_program(pid: int) -> bytes:
    """The BPF filter for a process `pid`: allowed calls, arguments checked where it matters.

    Threads may be made, processes may not; signals reach only the process itself; no sockets but
    socket pairs; `clone3` answers ENOSYS (its arguments cannot be read), so libc uses `clone`.
    Raises OSError on a machine whose syscall table is not known here.
    """
    machine = platform.machine()
    if machine not in _TABLES:
        raise OSError(f"no seccomp table for {machine}")
    architecture, names = _TABLES[machine]
    table = {name: int(number) for name, number in names.items()}
    checks = {
        "kill": _argument_in(0, [pid]),
        "tgkill": _argument_in(0, [pid]),
        "ioctl": _argument_in(1, _IOCTLS),
        "prctl": _argument_in(0, _PRCTLS),
        "prlimit64": _argument_in(0, [0, pid]),
        "socketpair": _argument_in(0, [1]),
        "clone": [
            _statement(_LOAD, _HIGH_WORDS_END),
            _jump(_ANY_BIT, CLONE_THREAD, 1, 0),
            _statement(_RETURN, _EPERM),
            _statement(_RETURN, _ALLOW),
        ],
    }
    program = [
        _statement(_LOAD, 4),
        _jump(_EQUAL, architecture, 1, 0),
        _statement(_RETURN, _KILL),
        _statement(_LOAD, 0),
        _jump(_AT_LEAST, 0x40000000, 0, 1),  # x32 calls would pass under other numbers
        _statement(_RETURN, _KILL),
    ]
    for name, number in table.items():
        if name not in _CONDITIONAL:
            answer = _EPERM if name in _DENIED else _ALLOW
            program += [_jump(_EQUAL, number, 0, 1), _statement(_RETURN, answer)]
    for name, check in checks.items():
        program += [_jump(_EQUAL, table[name], 0, len(check)), *check]
    return b"".join([*program, _statement(_RETURN, _ENOSYS)])


def seccomp(pid: int) -> None:
    """Install the filter on this thread and everything it starts. Needs `no_new_privileges`."""
    program = seccomp_program(pid)
    instructions = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions))
    buffer = ctypes.create_string_buffer(header, len(header))
    mode, zero = ctypes.c_ulong(2), ctypes.c_ulong(0)
    _checked(_libc.prctl(_PR_SET_SECCOMP, mode, ctypes.byref(buffer), zero, zero), "seccomp")


def unshare(flags: int) -> None:
    """unshare(2)."""
    _checked(_libc.unshare(ctypes.c_int(flags)), "unshare")


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
            source.encode(),
            target.encode(),
            kind.encode(),
            ctypes.c_ulong(flags),
            options.encode(),
        ),
        f"mount {target}",
    )


def read_only_root(readable: Sequence[str]) -> None:
    """Replace the root by an empty one that holds read-only views of `readable`, nothing else.

    Needs a mount namespace of one's own. /dev/null and /dev/urandom come along.
    """
    mount("none", "/", "", _MS_REC | _MS_PRIVATE)
    base = "/tmp"
    mount("tmpfs", base, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    for path in [*readable, "/dev/null", "/dev/urandom"]:
        if not os.path.lexists(path):
            continue
        target = base + path
        if os.path.islink(path):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            if not os.path.lexists(target):
                os.symlink(os.readlink(path), target)
            continue
        if os.path.isdir(path):
            os.makedirs(target, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with open(target, "ab"):
                pass
        mount(path, target, "", _MS_BIND | _MS_REC)
        if not path.startswith("/dev/"):
            mount("none", target, "", _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)
    mount("none", base, "", _MS_REMOUNT | _MS_RDONLY | _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    os.chdir(base)
    number = 155 if platform.machine() == "x86_64" else 41  # pivot_root
    _checked(_libc.syscall(number, b".", b"."), "pivot_root")
    _checked(_libc.umount2(b".", 2), "umount of the old root")
    os.chdir("/")
