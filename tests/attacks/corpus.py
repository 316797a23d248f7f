"""Attacks on a code grader: each is a mechanism by which a wrong program could be paid.

An attack defines `f` and never computes f(x) = x + 1 honestly. It either tricks the comparison, or
does something to the host and returns x + 1 only if that went through (`actions`). So with the
protection off (`unprotected.py`: the usual exec-style grader) the tests pass, and with it on they
must not.
"""

# ruff: noqa: E501  (one attack, one line)

from __future__ import annotations

from .actions import ACTIONS, LEAKS
from .attack import Attack, hang, trick

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
    Attack(name="stack overflow in C", kind="be paid for a wrong answer", code="import sys\nsys.setrecursionlimit(10**9)\n"
           "class E:\n    __repr__ = lambda s: repr([s])\ndef f(x): return repr(E())",
           shows="crashes the grader's process: no verdict at all", status=("wrong", "timeout")),
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

# All of them must fail; LEAKS are known not to.
ATTACKS = [*TRICKS, *ACTIONS, *HANGS]
__all__ = ["ACTIONS", "ATTACKS", "HANGS", "LEAKS", "TRICKS"]
