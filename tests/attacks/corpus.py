"""Attacks on a code grader: each is a mechanism by which a wrong program could be paid.

An attack defines `f` and never computes f(x) = x + 1 honestly. It either tricks the comparison, or
does something to the host and returns x + 1 only if that went through. So with the protection off
(`unprotected.py`: the usual exec-style grader) the tests pass, and with it on they must not.

`shows` says what the unprotected grader does: "pass", "hang", or a sentence why it is not shown.
"""

# ruff: noqa: E501  (one attack, one line)

from __future__ import annotations

from dataclasses import dataclass

ASSERTS = ("assert f(1) == 2", "assert f(10) == 11")


@dataclass(frozen=True, kw_only=True)
class Attack:
    name: str
    code: str
    asserts: tuple[str, ...] = ASSERTS
    setup: str = ""
    shows: str = "pass"
    status: tuple[str, ...] = ("wrong",)


def trick(name: str, code: str, *asserts: str, setup: str = "", shows: str = "pass") -> Attack:
    """A wrong answer that compares as right."""
    return Attack(name=name, code=code, asserts=asserts or ASSERTS, setup=setup, shows=shows)


def act(name: str, action: str, shows: str = "pass") -> Attack:
    """`action` must be denied; the answer is right if it is not."""
    body = "\n".join("    " + line for line in action.strip().splitlines())
    code = (
        "import os, sys, ctypes, socket, subprocess, threading, time, resource, signal, mmap\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "def must(result):\n"
        "    if result < 0: raise OSError(ctypes.get_errno())\n"
        f"def act(x):\n{body}\n"
        "def f(x):\n"
        "    try:\n        if x == 1: act(x)\n"
        "    except Exception:\n        return None\n"
        "    return x + 1\n"
    )
    return Attack(name=name, code=code, shows=shows, status=("wrong", "limit"))


def hang(
    name: str, code: str, shows: str = "hang", status: tuple[str, ...] = ("timeout",)
) -> Attack:
    """Never answers."""
    return Attack(name=name, code=code, shows=shows, status=status)


_EQUAL = "__eq__ = lambda a, b: True\n    __hash__ = lambda a: 2"

TRICKS = [
    trick("always-equal object", f"class E:\n    {_EQUAL}\ndef f(x): return E()"),
    trick("int subclass", f"class E(int):\n    {_EQUAL}\ndef f(x): return E(0)"),
    trick("str subclass", f"class E(str):\n    {_EQUAL}\ndef f(x): return E('')"),
    trick("float subclass", f"class E(float):\n    {_EQUAL}\ndef f(x): return E(0)"),
    trick("list subclass", f"class E(list):\n    {_EQUAL}\ndef f(x): return E()"),
    trick("tuple subclass", f"class E(tuple):\n    {_EQUAL}\ndef f(x): return E()"),
    trick("dict subclass", f"class E(dict):\n    {_EQUAL}\ndef f(x): return E()"),
    trick("set subclass", f"class E(frozenset):\n    {_EQUAL}\ndef f(x): return E()"),
    trick(
        "class with an equal metaclass",
        f"class M(type):\n    {_EQUAL}\nclass E(metaclass=M): pass\ndef f(x): return E",
    ),
    trick(
        "comparison that answers a truthy object",
        "class E:\n    def __eq__(s, o): return [1]\ndef f(x): return E()",
    ),
    trick(
        "element of a list that is always equal",
        f"class E:\n    {_EQUAL}\ndef f(x): return [E(), E()]",
        "assert f(1) == [1, 2]",
    ),
    trick("unequal by name only", "class E:\n    __ne__ = lambda a, b: False\ndef f(x): return E()",
          "assert not (f(1) != 2)"),
    trick("lying repr", "class E:\n    __repr__ = lambda s: '2'\ndef f(x): return E()",
          "assert repr(f(1)) == '2'"),
    trick("lying str", "class E:\n    __str__ = lambda s: '2'\ndef f(x): return E()",
          "assert str(f(1)) == '2'"),
    trick("lying class", "class E:\n    __class__ = property(lambda s: int)\ndef f(x): return E()",
          "assert isinstance(f(1), int)"),
    trick("lying hash in a set", f"class E:\n    {_EQUAL}\ndef f(x): return E()",
          "assert f(1) in {2}"),
    trick("lying length", "class E:\n    __len__ = lambda s: 2\ndef f(x): return E()",
          "assert len(f(1)) == 2"),
    trick("truthy object", "def f(x): return object()", "assert f(1)"),
    trick("contains everything", "class E:\n    __contains__ = lambda s, x: True\n"
          "def f(x): return E()", "assert 2 in f(1)"),
    trick(
        "arithmetic that always fits",
        "class E:\n    __sub__ = __rsub__ = lambda s, o: s\n    __abs__ = lambda s: s\n"
        "    __lt__ = __le__ = lambda s, o: True\ndef f(x): return E()",
        "assert abs(f(1) - 2) < 1e-9",
    ),
    trick("any attribute", "class E:\n    def __getattr__(s, n): return lambda *a: True\n"
          "def f(x): return E()", "assert f(1).isdigit()"),
    trick("indexable by anything", "class E:\n    __getitem__ = lambda s, i: 2\n"
          "def f(x): return E()", "assert f(1)[0] == 2"),
    trick("_exit at import", "import os\nos._exit(0)"),
    trick("SystemExit at import", "import sys\nsys.exit(0)"),
    trick("SystemExit in the call", "def f(x): raise SystemExit(0)"),
    trick("exit by exception hook", "import os, sys\nsys.excepthook = lambda *a: os._exit(0)\n"
          "def f(x): return None"),
    trick("exit by atexit", "import atexit, os\natexit.register(os._exit, 0)\n"
          "def f(x): return None"),
    trick("exit by C library", "import ctypes\ndef f(x): ctypes.CDLL(None)._exit(0)"),
    trick("exit by tracing", "import os, sys\nsys.settrace(lambda *a: os._exit(0))\n"
          "def f(x): return None"),
    trick("fake verdict on standard output", "print('PASS')\ndef f(x): return None"),
    trick(
        "fake verdicts on every descriptor",
        "import os, json, struct\n"
        "for m in ({'passed': 9, 'total': 9, 'detail': ''}, {'loaded': True}):\n"
        "    b = json.dumps(m).encode()\n"
        "    for fd in range(0, 64):\n"
        "        try: os.write(fd, struct.pack('=I', len(b)) + b); os.write(fd, b'PASS\\n')\n"
        "        except OSError: pass\n"
        "def f(x): return None",
    ),
    trick(
        "forged answers on the channel",
        "import os, json, struct\n"
        "b = json.dumps({'returned': True, 'passed': 1, 'total': 1, 'detail': ''}).encode()\n"
        "for fd in range(3, 64):\n"
        "    try: [os.write(fd, struct.pack('=I', len(b)) + b) for _ in range(9)]\n"
        "    except OSError: pass\n"
        "def f(x): return None",
        shows="the unprotected grader has no channel to forge answers on",
    ),
    trick("builtin exec replaced", "import builtins\nbuiltins.exec = lambda *a: None\n"
          "def f(x): return None"),
    trick("builtin abs replaced", "import builtins\nbuiltins.abs = lambda x: 0\n"
          "def f(x): return 9", "assert abs(f(1) - 2) < 1e-9"),
    trick("abs shadowed in the module", "abs = lambda x: 0\ndef f(x): return 9",
          "assert abs(f(1) - 2) < 1e-9"),
    trick("helper of the tests redefined", "def helper(x): return None\ndef f(x): return None",
          "assert f(1) == helper(1)", setup="def helper(x): return x + 1"),
    trick("math.isclose patched", "import math\nmath.isclose = lambda *a, **k: True\n"
          "def f(x): return 9", "import math\nassert math.isclose(f(1), 2)"),
    trick("numpy.allclose patched", "import numpy\nnumpy.allclose = lambda *a, **k: True\n"
          "def f(x): return 9", "import numpy\nassert numpy.allclose(f(1), 2)"),
    trick("module replaced", "import sys, types\nm = types.ModuleType('math')\n"
          "m.isclose = lambda *a: True\nsys.modules['math'] = m\ndef f(x): return 9",
          "import math\nassert math.isclose(f(1), 2)"),
    trick("tests cleared through frames", "import sys\nframe = sys._getframe()\n"
          "while frame:\n    t = frame.f_globals.get('tests')\n    frame = frame.f_back\n"
          "    if t: t.clear()\ndef f(x): return None"),
    trick("tests cleared through the garbage collector", "import gc\n"
          "for o in gc.get_objects():\n"
          "    if type(o) is list and o and type(o[0]) is str and o[0].startswith('assert f'):\n"
          "        o.clear()\ndef f(x): return None"),
    trick("tests cleared through __main__", "import __main__\n"
          "getattr(__main__, 'tests', []).clear()\ndef f(x): return None"),
    trick(
        "expected values read from memory",
        "import gc\ndef f(x):\n"
        "    for o in gc.get_objects():\n"
        "        if type(o) is list:\n"
        "            for t in o:\n"
        "                if type(t) is str and t.startswith(f'assert f({x}) == '):\n"
        "                    return int(t.rpartition(' ')[2])\n",
    ),
    trick(
        "expected values read from the caller's constants",
        "import sys\ndef f(x):\n"
        "    c = [k for k in sys._getframe(1).f_code.co_consts if isinstance(k, int) and k != x]\n"
        "    return c[-1]",
    ),
    trick("integers changed in memory", "import ctypes\n"
          "ctypes.c_uint32.from_address(id(200) + 24).value = 77\ndef f(x): return 77",
          "assert f(199) == 200"),
    trick("mutated arguments", "def f(xs):\n    xs.clear()\n    return []",
          "xs = [3, 1, 2]\nassert f(xs) == sorted(xs)"),
    trick("StopIteration ends the loop of tests", "def f(x): raise StopIteration",
          "for a, b in zip(map(f, [1, 10]), [2, 11]): assert a == b"),
    trick("lying pickle", "class E:\n    def __reduce__(s): return (int, (2,))\n"
          "def f(x): return E()",
          shows="the unprotected grader compares in place and pickles nothing"),
    trick("value that executes when it is evaluated",
          "class E:\n    __repr__ = lambda s: \"__import__('os')._exit(0)\"\ndef f(x): return E()",
          "assert eval(repr(f(1))) == 2"),
    trick("answers to equality with everything in numpy",
          "import numpy\nclass E(numpy.ndarray):\n    __eq__ = lambda a, b: True\n"
          "def f(x): return numpy.zeros(()).view(E)"),
    trick("self-containing list", "def f(x):\n    a = []\n    a.append(a)\n    return a",
          shows="harmless to a grader that only compares"),
    trick("value nested without end", "def f(x):\n    a = []\n    for _ in range(10**5): a = [a]\n"
          "    return a", shows="harmless to a grader that only compares"),
    trick("50 MB answer", "def f(x): return 'a' * (50 << 20)",
          shows="harmless to a grader that only compares"),
    Attack(name="stack overflow in C", code="import sys\nsys.setrecursionlimit(10**9)\n"
           "class E:\n    __repr__ = lambda s: repr([s])\ndef f(x): return repr(E())",
           shows="crashes the grader's process: no verdict at all", status=("wrong", "timeout")),
]  # fmt: skip

ACTIONS = [
    act("fork", "pid = os.fork()\nif pid == 0: os._exit(0)\nos.waitpid(pid, 0)"),
    act("fork bomb, cut short", "for _ in range(50):\n    if os.fork() == 0: os._exit(0)"),
    act("daemon by double fork", "if os.fork() == 0:\n    os.setsid()\n    os.fork()\n    os._exit(0)"),
    act("fork by C library", "pid = libc.fork()\nif pid == 0: os._exit(0)\nmust(pid)"),
    act("clone by number", "pid = libc.syscall(56, 17, 0, 0, 0, 0)\nif pid == 0: os._exit(0)\nmust(pid)"),
    act("subprocess", "subprocess.run(['/bin/true'], check=True)"),
    act("posix_spawn", "os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)"),
    act("shell", "assert os.system('true') == 0"),
    act("multiprocessing", "import multiprocessing as m\np = m.get_context('fork').Process()\np.start(); p.join()"),
    act("execve", "os.execv('/bin/true', ['true'])"),
    act("memory map of 16 GiB", "mmap.mmap(-1, 16 << 30)"),
    act("array of 8 GiB", "import numpy\nnumpy.zeros(1 << 30)"),
    act("500 file descriptors", "a = [open('/dev/null') for _ in range(500)]"),
    act("pipes without end", "a = [os.pipe() for _ in range(200)]"),
    act("500 threads", "e = threading.Event()\nthreading.stack_size(1 << 16)\n"
        "a = [threading.Thread(target=e.wait) for _ in range(500)]\n"
        "try: [t.start() for t in a]\nfinally: e.set()"),
    act("file in the working folder", "open('conftest.py', 'w').write('1'); os.unlink('conftest.py')"),
    act("100 inodes", "for i in range(100): os.mkdir(f'd{i}')\nfor i in range(100): os.rmdir(f'd{i}')"),
    act("disk", "open('big', 'wb').write(bytes(8 << 20)); os.unlink('big')"),
    act("file in /tmp", "import tempfile\ntempfile.NamedTemporaryFile(dir='/tmp').write(b'x')"),
    act("file in /dev/shm", "import tempfile\ntempfile.NamedTemporaryFile(dir='/dev/shm').write(b'x')"),
    act("sitecustomize beside the library", "p = os.path.join(os.path.dirname(os.__file__), 'grpo_attack.py')\n"
        "open(p, 'w').close(); os.unlink(p)", shows="pass"),
    act("nameless file in memory", "os.ftruncate(os.memfd_create('x'), 1 << 30)"),
    act("shared memory", "from multiprocessing import shared_memory as s\nm = s.SharedMemory(create=True, size=1 << 20)\nm.close(); m.unlink()"),
    act("System V shared memory", "i = libc.shmget(0, 1 << 20, 0o600)\nmust(i)\nmust(libc.shmctl(i, 0, 0))"),
    act("symbolic link", "os.symlink('/etc', 'link'); os.unlink('link')"),
    act("named pipe", "os.mkfifo('fifo'); os.unlink('fifo')"),
    act("mode of a file changed", "os.chmod('.', 0o755)"),
    act("reads /etc/passwd", "open('/etc/passwd').read()"),
    act("lists the root folder", "assert 'proc' in os.listdir('/')"),
    act("environment of the host", "os.environ['GRPO_SECRET']"),
    act("environment through /proc", "open('/proc/self/environ', 'rb').read()"),
    act("processes through /proc", "open('/proc/1/cmdline', 'rb').read()"),
    act("memory through /proc", "open('/proc/self/mem', 'rb')"),
    act("TCP server", "s = socket.create_server(('127.0.0.1', 0))"),
    act("TCP client", "socket.socket().connect_ex(('127.0.0.1', 9))"),
    act("UDP packet", "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))"),
    act("abstract UNIX socket", "s = socket.socket(socket.AF_UNIX)\ns.bind('\\0grpo-attack')"),
    act("netlink socket", "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)"),
    act("signal to the parent", "os.kill(os.getppid() or 1, 0)"),
    act("signal to the neighbours", "[os.kill(p, 0) for p in (1, os.getppid() or 1)]"),
    act("signal to everything", "libc.kill.restype = ctypes.c_int\nmust(libc.kill(-os.getpgrp(), 0))"),
    act("traced by the parent", "must(libc.ptrace(0, 0, 0, 0))"),
    act("reads another process's memory", "b = ctypes.create_string_buffer(8)\n"
        "v = (ctypes.c_size_t * 2)(ctypes.addressof(b), 8)\n"
        "must(libc.process_vm_readv(os.getpid(), v, 1, v, 1, 0))"),
    act("priority", "os.nice(1)"),
    act("processor affinity", "os.sched_setaffinity(0, os.sched_getaffinity(0))"),
    act("survives its parent", "must(libc.prctl(1, 0))"),
    act("dumpable again", "must(libc.prctl(4, 1))"),
    act("new user namespace", "must(libc.unshare(0x10000000))"),
    act("kernel keyring", "must(libc.syscall(250, 0, -3, 1))"),
    act("io_uring", "p = ctypes.create_string_buffer(256)\nmust(libc.syscall(425, 1, p))",
        shows="io_uring is switched off on some kernels"),
    act("userfaultfd", "must(libc.syscall(323, 1))", shows="needs a right on some kernels"),
    act("inotify", "must(libc.inotify_init())"),
    act("real-time clock set", "time.clock_settime(time.CLOCK_REALTIME, time.time())",
        shows="only root may, and it would move the clock of everything here"),
    act("mount", "must(libc.mount(b'none', b'/tmp', b'tmpfs', 0, b''))",
        shows="only root may, and it would outlive the test"),
    act("host name", "socket.sethostname(socket.gethostname())",
        shows="only root may, and it would rename this machine"),
    act("becomes another user", "os.setgroups([0]); os.setuid(0)", shows="only root may"),
    act("core dump and file size", "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))"),
]  # fmt: skip

HANGS = [
    hang("endless loop", "def f(x):\n    while True: pass"),
    hang("endless loop at import", "while True: pass"),
    hang("sleep", "import time\ndef f(x): time.sleep(1000)"),
    hang("catastrophic regular expression", "import re\ndef f(x): re.match('(a+)+$', 'a' * 60 + 'b')"),
    hang("9**9**9", "def f(x): return 9 ** 9 ** 9"),
    hang("deadlock", "import threading\nl = threading.Lock()\nl.acquire()\ndef f(x): l.acquire()"),
    hang("signals ignored", "import signal\nfor s in range(1, 60):\n"
         "    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass\n"
         "def f(x):\n    while True: pass"),
    hang("exceptions swallowed", "def f(x):\n    while True:\n        try:\n            while True: pass\n"
         "        except BaseException: pass"),
    hang("endless iterator", "import itertools\nclass E:\n    def __eq__(s, o): list(itertools.count())\n"
         "def f(x): return sum(1 for _ in itertools.count())"),
    hang("standard input read", "import sys\ndef f(x):\n    while True: sys.stdin.read()"),
    hang("sleeping thread kept", "import threading, time\n"
         "threading.Thread(target=time.sleep, args=(1000,)).start()\ndef f(x): return None",
         status=("wrong",), shows="hang"),
]  # fmt: skip

ATTACKS = [*TRICKS, *ACTIONS, *HANGS]
