"""What a program may try to do to the machine, by kind; and what is not kept from it everywhere.

Each kind is a row of the table in docs/rewards.md. `LEAKS` go through in some tiers, or in all, and
the table says in which: no sandbox here claims to stop them.
"""

# ruff: noqa: E501  (one attack, one line)

from __future__ import annotations

import dataclasses
import platform

from grpo.rewards.sandbox.syscalls import REFUSED, TABLES

from .attack import Attack, act

_NUMBERS = {**TABLES["x86_64"][1], **REFUSED["x86_64"]}
if platform.machine() in TABLES:
    _NUMBERS = {**TABLES[platform.machine()][1], **REFUSED[platform.machine()]}


def n(name: str) -> int:
    """A system call's number here."""
    return _NUMBERS[name]


_PAIR = "a, b = socket.socketpair()\ntarget = os.getppid() or 1\n"
_DATAGRAMS = "a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
_DEBUGGER = "v = (ctypes.c_size_t * 2)(ctypes.addressof(b), 8)\n"

_BY_KIND = {
    "start processes and programs": [
        act("fork", "pid = os.fork()\nif pid == 0: os._exit(0)\nos.waitpid(pid, 0)"),
        act("fork bomb, cut short", "for _ in range(50):\n    if os.fork() == 0: os._exit(0)"),
        act("daemon by double fork", "if os.fork() == 0:\n    os.setsid()\n    os.fork()\n    os._exit(0)"),
        act("fork by C library", "pid = libc.fork()\nif pid == 0: os._exit(0)\nmust(pid)"),
        act("clone by number", f"pid = libc.syscall({n('clone')}, 17, 0, 0, 0, 0)\nif pid == 0: os._exit(0)\nmust(pid)"),
        act("clone that shares memory and is no thread", f"pid = libc.syscall({n('clone')}, 0x4011, 0, 0, 0, 0)\nif pid == 0: libc._exit(0)\nmust(pid)"),
        act("subprocess", "subprocess.run(['/bin/true'], check=True)"),
        act("posix_spawn", "os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)"),
        act("shell", "assert os.system('true') == 0"),
        act("multiprocessing", "import multiprocessing as m\np = m.get_context('fork').Process()\np.start(); p.join()"),
        act("execve", "os.execv('/bin/true', ['true'])"),
        act("execveat", f"fd = os.open('/bin/true', os.O_RDONLY)\nargv = (ctypes.c_char_p * 2)(b'true', None)\ncall({n('execveat')}, fd, b'', argv, 0, 0x1000)"),
        act("survives its parent", "must(libc.prctl(1, 0))"),
        act("dumpable again", "must(libc.prctl(4, 1))"),
    ],
    "exhaust memory, descriptors or threads": [
        act("memory map of 16 GiB", "mmap.mmap(-1, 16 << 30)"),
        act("array of 8 GiB", "import numpy\nnumpy.zeros(1 << 30)"),
        act("shared maps, one after the other", "a = [mmap.mmap(-1, 512 << 20) for _ in range(8)]"),
        act("500 file descriptors", "a = [open('/dev/null') for _ in range(500)]"),
        act("pipes without end", "a = [os.pipe() for _ in range(200)]"),
        act("a larger pipe", "r, w = os.pipe()\nfcntl.fcntl(w, 1031, 1 << 20)"),
        act("a larger socket buffer", "a, b = socket.socketpair()\na.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)"),
        act("500 threads", "e = threading.Event()\nthreading.stack_size(1 << 16)\n"
            "a = [threading.Thread(target=e.wait) for _ in range(500)]\n"
            "try: [t.start() for t in a]\nfinally: e.set()"),
        act("nameless file in memory", "os.ftruncate(os.memfd_create('x'), 1 << 30)"),
        act("shared memory", "from multiprocessing import shared_memory as s\nm = s.SharedMemory(create=True, size=1 << 20)\nm.close(); m.unlink()"),
        act("System V shared memory", "i = libc.shmget(0, 1 << 20, 0o600)\nmust(i)\nmust(libc.shmctl(i, 0, 0))"),
        act("memory that cannot be swapped", "b = ctypes.create_string_buffer(1 << 16)\nmust(libc.mlock(b, 1 << 16))"),
        act("core dump and file size", "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))"),
    ],
    "create or change files": [
        act("file in the working folder", "open('conftest.py', 'w').write('1'); gone(os.unlink, 'conftest.py')"),
        act("100 inodes", "for i in range(100): os.mkdir(f'd{i}')\nfor i in range(100): gone(os.rmdir, f'd{i}')"),
        act("disk", "open('big', 'wb').write(bytes(8 << 20)); gone(os.unlink, 'big')"),
        act("file in /tmp", "import tempfile\ntempfile.NamedTemporaryFile(dir='/tmp').write(b'x')"),
        act("file in /dev/shm", "import tempfile\ntempfile.NamedTemporaryFile(dir='/dev/shm').write(b'x')"),
        act("empty file in any folder", "def make(p):\n    os.close(os.open(p, os.O_CREAT | os.O_EXCL | os.O_WRONLY)); gone(os.unlink, p)\nanywhere(make)"),
        act("folder in any folder", "def make(p):\n    os.mkdir(p); gone(os.rmdir, p)\nanywhere(make)"),
        act("link in any folder", "def make(p):\n    os.symlink('x', p); gone(os.unlink, p)\nanywhere(make)"),
        act("named pipe in any folder", "def make(p):\n    os.mkfifo(p); gone(os.unlink, p)\nanywhere(make)"),
        act("socket in any folder", "def make(p):\n    s = socket.socket(socket.AF_UNIX); s.bind(p); gone(os.unlink, p)\nanywhere(make)"),
        act("file without a name in any folder", "anywhere(lambda p: os.open(os.path.dirname(p), os.O_TMPFILE | os.O_RDWR))"),
        act("sitecustomize beside the library", "p = os.path.join(os.path.dirname(os.__file__), 'grpo_attack.py')\n"
            "open(p, 'w').close(); gone(os.unlink, p)"),
        act("symbolic link", "os.symlink('/etc', 'link'); gone(os.unlink, 'link')"),
        act("named pipe", "os.mkfifo('fifo'); gone(os.unlink, 'fifo')"),
        act("mode of a file changed", "os.chmod('.', 0o755)"),
        act("dates of a file changed", "os.utime('.')"),
        act("file of the library locked", "with open(os.__file__) as s: fcntl.flock(s, fcntl.LOCK_EX)"),
        act("part of a library file locked", "with open(os.__file__) as s: fcntl.lockf(s, fcntl.LOCK_SH)"),
    ],
    "read files": [
        act("reads /etc/passwd", "open('/etc/passwd').read()"),
        act("lists the root folder", "assert 'proc' in os.listdir('/')"),
        act("reads beside the grader", "import importlib.util as u\np = os.path.realpath(u.find_spec('grpo.rewards').submodule_search_locations[0])\nopen(os.path.join(os.path.dirname(p), 'pyproject.toml')).read()",
            shows="only a checkout has it, and the unprotected grader may have an installed one"),
        act("environment of the host", "os.environ['GRPO_SECRET']"),
        act("environment through /proc", "open('/proc/self/environ', 'rb').read()"),
        act("processes through /proc", "open('/proc/1/cmdline', 'rb').read()"),
        act("lists the processes", "assert os.listdir('/proc')"),
        act("opens a folder without reading it", "os.open('/etc', os.O_PATH)"),
        act("opens a file without reading it", "os.open('/etc/passwd', os.O_PATH)"),
        act("goes to another folder", "os.chdir('/etc')"),
        act("goes to a folder by its descriptor", "os.fchdir(os.open('/usr/lib', os.O_RDONLY))"),
        act("file by its handle", f"h = ctypes.create_string_buffer(struct.pack('Ii', 128, 0) + bytes(128))\nm = ctypes.c_int()\ncall({n('name_to_handle_at')}, 2**64 - 100, b'/etc/passwd', h, ctypes.byref(m), 0)",
            shows="not on every file system"),
    ],
    "reach other processes and their memory": [
        act("memory through /proc", "open('/proc/self/mem', 'rb')"),
        act("traced by the parent", "must(libc.ptrace(0, 0, 0, 0))"),
        act("reads another process's memory", f"b = ctypes.create_string_buffer(8)\n{_DEBUGGER}must(libc.process_vm_readv(os.getpid(), v, 1, v, 1, 0))"),
        act("writes another process's memory", f"b = ctypes.create_string_buffer(8)\n{_DEBUGGER}must(libc.process_vm_writev(os.getpid(), v, 1, v, 1, 0))"),
        act("takes a descriptor from a process", f"p = os.pidfd_open(os.getpid())\ncall({n('pidfd_getfd')}, p, 0, 0)"),
        act("compares descriptors of processes", f"call({n('kcmp')}, os.getpid(), os.getpid(), 0, 0, 0)", shows="not in every kernel"),
        act("limits of the parent", "must(libc.prlimit(os.getppid() or 1, 7, None, ctypes.create_string_buffer(16)))"),
        act("session of the parent", "os.getsid(os.getppid() or 1)"),
        act("System V messages", "i = libc.msgget(0, 0o600)\nmust(i)\nmust(libc.msgctl(i, 0, 0))"),
        act("System V semaphores", "i = libc.semget(0, 1, 0o600)\nmust(i)\nmust(libc.semctl(i, 0, 0))"),
        act("POSIX messages", f"must(libc.syscall({n('mq_open')}, b'grpo-attack', 0o102, 0o600, None))\nlibc.mq_unlink(b'/grpo-attack')", shows="not in every kernel"),
    ],
    "use the network": [
        act("TCP server", "s = socket.create_server(('127.0.0.1', 0))"),
        act("TCP client", "socket.socket().connect_ex(('127.0.0.1', 9))"),
        act("UDP packet", "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))"),
        act("netlink socket", "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)"),
        act("socket of the kernel's cryptography", "socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET)", shows="not in every kernel"),
    ],
    "reach sockets of other programs": [
        act("abstract UNIX socket", "s = socket.socket(socket.AF_UNIX)\ns.bind('\\0grpo-attack')"),
        act("pair of datagram sockets", _DATAGRAMS + "a.send(b'x')"),
        act("pair of datagram sockets, with flags", "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)"),
        act("pair of raw sockets", "socket.socketpair(socket.AF_UNIX, socket.SOCK_RAW)"),
        act("pair of packet sockets", "socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)"),
        act("pair of datagram sockets, high half set", f"v = (ctypes.c_int * 2)()\ncall({n('socketpair')}, 1, 2 | 1 << 32, 0, v)"),
        act("pair of another family", "must(libc.socketpair(30, 1, 0, (ctypes.c_int * 2)()))", shows="not in every kernel"),
        act("datagram to an address", "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\ns.bind('\\0grpo-attack-1')\n" + _DATAGRAMS + "a.sendto(b'x', '\\0grpo-attack-1')"),
        act("datagram to an address by sendmsg", "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\ns.bind('\\0grpo-attack-2')\n" + _DATAGRAMS + "a.sendmsg([b'x'], [], 0, '\\0grpo-attack-2')"),
        act("descriptor sent through a socket", _PAIR + "socket.send_fds(a, [b'x'], [a.fileno()])"),
        act("descriptor sent to the tests", "for fd in range(3, 64):\n    try: s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=os.dup(fd))\n    except OSError: continue\n    socket.send_fds(s, [b'x'], [0])\n    break\nelse: raise OSError",
            shows="the unprotected grader has no channel to send it on"),
    ],
    "send signals": [
        act("signal to the parent", "os.kill(os.getppid() or 1, 0)"),
        act("signal to the neighbours", "[os.kill(p, 0) for p in (1, os.getppid() or 1)]"),
        act("signal to everything", "libc.kill.restype = ctypes.c_int\nmust(libc.kill(-os.getpgrp(), 0))"),
        act("signal to a thread", f"call({n('tkill')}, threading.get_native_id(), 0)"),
        act("signal to a thread of the parent", f"call({n('tgkill')}, os.getppid() or 1, os.getppid() or 1, 0)"),
        act("queued signal", f"i = (ctypes.c_int * 32)(0, 0, -1)\ncall({n('rt_sigqueueinfo')}, os.getpid(), 10, i)\n", shows="ends the process that tries it"),
        act("queued signal to a thread", f"i = (ctypes.c_int * 32)(0, 0, -1)\nsignal.signal(10, lambda *a: None)\ncall({n('rt_tgsigqueueinfo')}, os.getpid(), os.getpid(), 10, i)"),
        act("signal through a descriptor", "signal.pidfd_send_signal(os.pidfd_open(os.getpid()), 0)"),
        act("timer with a signal", f"t = ctypes.c_int()\ncall({n('timer_create')}, 0, 0, ctypes.byref(t))"),
        act("F_SETOWN", _PAIR + "fcntl.fcntl(a, 8, target)"),
        act("F_SETOWN to a group", _PAIR + "fcntl.fcntl(a, 8, -os.getpgrp())"),
        act("F_SETOWN, high half set", _PAIR + f"call({n('fcntl')}, a.fileno(), 8 | 1 << 32, target)"),
        act("F_SETOWN_EX", _PAIR + "fcntl.fcntl(a, 15, struct.pack('ii', 1, target))"),
        act("F_SETSIG", _PAIR + "fcntl.fcntl(a, 10, 23)"),
        act("O_ASYNC on a socket", _PAIR + "fcntl.fcntl(a, 4, 0x2000)"),
        act("O_ASYNC on a pipe", "r, w = os.pipe()\nfcntl.fcntl(r, 4, fcntl.fcntl(r, 3) | 0x2000)"),
        act("O_ASYNC on a pipe, high half set", f"r, w = os.pipe()\ncall({n('fcntl')}, r, 4 | 1 << 32, 0x2000 | 1 << 32)"),
        act("signals owned and switched on", _PAIR + "fcntl.fcntl(a, 8, os.getpid())\nfcntl.fcntl(a, 10, 23)\nfcntl.fcntl(a, 4, 0x2000)\nb.send(b'x')"),
        act("FIOASYNC", _PAIR + "fcntl.ioctl(a, 0x5452, struct.pack('i', 1))"),
        act("FIOASYNC, high half set", _PAIR + f"call({n('ioctl')}, a.fileno(), 0x5452 | 1 << 32, ctypes.byref(ctypes.c_int(1)))"),
        act("FIOSETOWN", _PAIR + "fcntl.ioctl(a, 0x8901, struct.pack('i', target))"),
        act("SIOCSPGRP", _PAIR + "fcntl.ioctl(a, 0x8902, struct.pack('i', target))"),
        act("lease on a file", "with open(os.__file__) as s: fcntl.fcntl(s, 1024, fcntl.F_RDLCK)", shows="only its owner may"),
        act("folder watched by signals", "fd = os.open(os.path.dirname(os.__file__), os.O_RDONLY)\nfcntl.fcntl(fd, 1026, 1)"),
        act("folder watched", "must(libc.inotify_init())"),
    ],
    "use more of the kernel than a program needs": [
        act("new user namespace", "must(libc.unshare(0x10000000))"),
        act("namespace of another process", "must(libc.setns(os.open('/proc/self/ns/uts', os.O_RDONLY), 0))", shows="only root may"),
        act("kernel keyring", f"must(libc.syscall({n('keyctl')}, 0, -3, 1))"),
        act("key added", f"must(libc.syscall({n('add_key')}, b'user', b'grpo-attack', b'x', ctypes.c_size_t(1), -2))", shows="not in every kernel"),
        act("io_uring", f"p = ctypes.create_string_buffer(256)\nmust(libc.syscall({n('io_uring_setup')}, 1, p))",
            shows="io_uring is switched off on some kernels"),
        act("asynchronous input and output", f"c = ctypes.c_ulong(0)\ncall({n('io_setup')}, 1, ctypes.byref(c))"),
        act("userfaultfd", f"must(libc.syscall({n('userfaultfd')}, 1))", shows="needs a right on some kernels"),
        act("performance counters", f"b = ctypes.create_string_buffer(struct.pack('II', 1, 112) + bytes(104))\ncall({n('perf_event_open')}, b, 0, 2**64 - 1, 2**64 - 1, 0)", shows="needs a right on some kernels"),
        act("programs in the kernel", f"b = ctypes.create_string_buffer(struct.pack('IIII', 1, 4, 4, 1) + bytes(112))\ncall({n('bpf')}, 0, b, 128)", shows="needs a right on some kernels"),
        act("pages given away", f"r, w = os.pipe()\nv = (ctypes.c_size_t * 2)(ctypes.addressof(ctypes.create_string_buffer(8)), 8)\ncall({n('vmsplice')}, w, v, 1, 0)"),
        act("files opened by rules", f"call({n('openat2')}, 2**64 - 100, b'.', ctypes.create_string_buffer(24), 24)", shows="not in every kernel"),
        act("a tty's input", "fd = os.open('/dev/tty', os.O_RDWR)\nfcntl.ioctl(fd, 0x5412, b'x')", shows="there is no terminal"),
    ],
    "change the machine": [
        act("priority", "os.nice(1)"),
        act("processor affinity", "os.sched_setaffinity(0, os.sched_getaffinity(0))"),
        act("real-time clock set", "time.clock_settime(time.CLOCK_REALTIME, time.time())",
            shows="only root may, and it would move the clock of everything here"),
        act("mount", "must(libc.mount(b'none', b'/tmp', b'tmpfs', 0, b''))",
            shows="only root may, and it would outlive the test"),
        act("host name", "socket.sethostname(socket.gethostname())",
            shows="only root may, and it would rename this machine"),
        act("becomes another user", "os.setgroups([0]); os.setuid(0)", shows="only root may"),
        act("another root folder", "os.chroot('/')", shows="only root may"),
        act("a device", "anywhere(lambda p: (os.mknod(p, 0o20666, os.makedev(1, 3)), gone(os.unlink, p)))", shows="only root may"),
    ],
}  # fmt: skip

_LEAKS_BY_KIND = {
    "see whether a file exists, its size and dates": [
        act("stat", "os.stat('/etc/passwd')"),
        act("access", "assert os.access('/etc/passwd', os.F_OK)"),
        act("stat of a process", "os.stat('/proc/1')"),
    ],
    "read the standard library and installed packages": [
        act("reads the library", "open(os.__file__).read()"),
        act("lists the library", "os.listdir(os.path.dirname(os.__file__))"),
    ],
    "tell time, the machine's load and its free memory": [
        act("clock", "time.perf_counter_ns()"),
        act("free memory and load", "must(libc.sysinfo(ctypes.create_string_buffer(256)))"),
        act("kind of kernel", "os.uname()"),
    ],
    "use processor time and memory up to its limits": [
        act("work", "sum(range(10**6))"),
        act("memory", "bytearray(64 << 20)"),
    ],
}


def _of(kinds: dict[str, list[Attack]]) -> list[Attack]:
    return [dataclasses.replace(a, kind=kind) for kind, attacks in kinds.items() for a in attacks]


ACTIONS = _of(_BY_KIND)
LEAKS = _of(_LEAKS_BY_KIND)
