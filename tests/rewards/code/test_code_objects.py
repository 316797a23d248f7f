"""code: objects of the setup's classes, exceptions, and what an object may pretend to be."""

# ruff: noqa: E501  (one program, one line)

from __future__ import annotations

import pytest

from grpo.rewards.code.reward import Code

from .coding import judged, value


@pytest.fixture(scope="module")
def code():
    reward = Code(workers=2, timeout=5.0)
    yield reward
    reward.close()


POINT = "class P:\n    def __init__(self, x):\n        self.x = x\n    def ok(self): return self.x == 2\n"
NODE = (
    "class Node:\n    def __init__(self, val, next=None, many=None):\n"
    "        self.val, self.next, self.many = val, next, many or []\n"
)
# setup, test, a right program, a wrong one
RECORDS = {
    "given": (POINT, "assert f(P(1)) == 1", "def f(p): return p.x", "def f(p): return p.x + 1"),
    "returned": (
        POINT,
        "assert f(2).ok() and isinstance(f(2), P)",
        "def f(x): return P(x)",
        "def f(x): return P(0)",
    ),
    "changed": (
        POINT,
        "p = P(1)\nf(p)\nassert p.x == 5",
        "def f(p): p.x = 5",
        "def f(p): pass",
    ),
    "equal": (
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass D:\n    x: int",
        "assert f(D(1)) == D(2)",
        "def f(d): return D(d.x + 1)",
        "def f(d): return d",
    ),
    "slots": (
        "from dataclasses import dataclass\n@dataclass(slots=True)\nclass D:\n    x: int",
        "assert f(D(1)) == D(2)",
        "def f(d): return D(d.x + 1)",
        "def f(d): return d",
    ),
    "named tuple": (
        "from typing import NamedTuple\nclass T(NamedTuple):\n    x: int\n    y: int",
        "assert f(T(1, 2)) == T(2, 1) and f(T(1, 2)).y == 1",
        "def f(t): return T(t.y, t.x)",
        "def f(t): return t",
    ),
    "enum": (
        "import enum\nclass C(enum.Enum):\n    A = 1\n    B = 2",
        "assert f(C.A) is C.B",
        "def f(c): return C.B if c is C.A else C.A",
        "def f(c): return c",
    ),
    "long chain": (
        NODE,
        "n = None\nfor i in range(500): n = Node(i, n)\nassert f(n) == 499 * 250",
        "def f(n):\n    s = 0\n    while n: s, n = s + n.val, n.next\n    return s",
        "def f(n): return n.val",
    ),
    "copied graph": (
        NODE,
        "a, b = Node(1), Node(2)\na.many, b.many = [b], [a]\nr = f(a)\n"
        "assert r is not a and r.many[0].val == 2 and r.many[0].many[0] is r",
        "import copy\ndef f(n): return copy.deepcopy(n)",
        "def f(n): return n",
    ),
    "exception": (
        "class Neg(ValueError): pass",
        "try:\n    f(-1)\n    ok = False\nexcept Neg: ok = True\nassert ok",
        "def f(x):\n    if x < 0: raise Neg('n')",
        "def f(x): raise ValueError('n')",
    ),
}


@pytest.mark.parametrize("name", RECORDS)
def test_objects_of_the_setups_classes(code, name):
    setup, test, right, wrong = RECORDS[name]
    tests = {"asserts": [test], "setup": setup, "entry_point": "f"}
    assert judged(code, right, tests).value == 1.0
    assert judged(code, wrong, tests).value == 0.0
    # a program may define the setup's class once more, as they often do
    assert judged(code, f"{setup}\n{right}", tests).value == 1.0


FEIGNED = {
    "a named tuple": "from collections import namedtuple\ndef f(): return namedtuple('T', 'startswith')(bool)",
    "a namespace": "import types\ndef f(): return types.SimpleNamespace(startswith=lambda s: True)",
    "an exception": "def f():\n    e = ValueError()\n    e.startswith = bool\n    return e",
    "a record": "def f():\n    p = P(1)\n    p.startswith = bool\n    return p",
}


@pytest.mark.parametrize("name", FEIGNED)
def test_no_object_has_the_methods_of_a_text(code, name):
    assert value(code, FEIGNED[name], "assert f().startswith('a')", setup=POINT) == 0.0


@pytest.mark.parametrize(
    "program",
    [
        "def f():\n    p = P(1)\n    p.ok = lambda: True\n    return p",
        "def f():\n    p = P(1)\n    p.ok = object\n    return p",
        "class P:\n    x = 1\n    def ok(self): return True\ndef f(): return P()",
        "class P(int):\n    def ok(self): return True\ndef f(): return P()",
    ],
)
def test_a_setups_method_is_the_setups(code, program):
    tests = {"asserts": ["assert f().ok()"], "setup": POINT, "entry_point": "f"}
    assert judged(code, program, tests).value == 0.0


# what is raised -> what the tests catch
RAISED = {
    "json.loads('{')": "json.JSONDecodeError",
    "b'\\xff'.decode()": "UnicodeDecodeError",
    "open('/nowhere/x')": "FileNotFoundError",
    "decimal.Decimal('x')": "decimal.InvalidOperation",
    "statistics.mean([])": "statistics.StatisticsError",
    "next(iter([]))": "StopIteration",
    "exit(3)": "SystemExit",
}


@pytest.mark.parametrize("call", RAISED)
def test_an_exception_keeps_its_class(code, call):
    imports = "import decimal, json, statistics\n"
    test = f"{imports}try:\n    f()\n    ok = False\nexcept {RAISED[call]}: ok = True\nassert ok"
    assert value(code, f"{imports}def f(): {call}", test) == 1.0
    assert value(code, "def f(): raise RuntimeError", test) == 0.0


def test_what_an_exception_holds(code):
    program = (
        "class A(Exception):\n    def __init__(self, n): super().__init__(n); self.code = n\n"
        "class B(A): pass\ndef f(n):\n    try: 1 / 0\n    except ZeroDivisionError as e: raise B(n) from e"
    )
    test = (
        "try:\n    f(7)\n    ok = False\nexcept A as e:\n"
        "    ok = isinstance(e, B) and e.code == 7 and isinstance(e.__cause__, ZeroDivisionError)\n"
        "assert ok"
    )
    assert value(code, program, test, defines=["class A", "class B", "f"]) == 1.0
    without = program.replace("self.code = n", "pass")
    assert value(code, without, test, defines=["class A", "class B", "f"]) == 0.0
    returned = "assert isinstance(f(), KeyError) and f().args == ('k',)"
    assert value(code, "def f(): return KeyError('k')", returned) == 1.0
    assert value(code, "def f(e): return str(e)", "assert f(ValueError('x')) == 'x'") == 1.0


@pytest.mark.parametrize(
    "raised",
    ["unittest.SkipTest('x')", "StopIteration", "type('AssertionError', (Exception,), {})('x')"],
)
def test_no_exception_ends_the_tests_early(code, raised):
    program = f"import unittest\ndef f(x): raise {raised}"
    loop = "try: next(iter([]))\nexcept StopIteration: pass\nfor v in map(f, [1]): assert v == 3"
    assert value(code, program, loop) == 0.0
    suite = (
        "import unittest\nclass T(unittest.TestCase):\n    def test(self): self.assertEqual(f(1), 1)\n"
        "run = unittest.TestResult()\n"
        "unittest.defaultTestLoader.loadTestsFromTestCase(T).run(run)\nassert run.wasSuccessful()"
    )
    assert value(code, program, suite) == 0.0
    assert value(code, "def f(x): return x", suite) == 1.0


MANAGER = (
    "class C:\n    def __init__(self): self.n = 0\n    def __enter__(self): return self\n"
    "    def __exit__(self, kind, error, trace): return SWALLOWS\n"
    "    def __iadd__(self, k):\n        self.n += k\n        return self\n"
    "    def __format__(self, how): return how * 2\n    def __divmod__(self, k): return (k, self.n)\n"
    "    async def __aenter__(self): return 5\n    async def __aexit__(self, *args): return False\n"
)
SPECIAL = {
    "c = C()\nc += 2\nassert c.n == 2": True,
    "assert f'{C():x}' == 'xx'": True,
    "assert divmod(C(), 3) == (3, 0)": True,
    "c = C()\ndel c.n\nassert not hasattr(c, 'n')": True,
    "with C() as c:\n    raise ValueError": True,
    "with C() as c:\n    assert c.n == 1": False,  # a failed assert is never swallowed
    "with C() as c:\n    assert c.n.x == 1": False,
    "import asyncio\nasync def g():\n    async with C() as x: return x\nassert asyncio.run(g()) == 5": True,
}


@pytest.mark.parametrize("test", SPECIAL)
def test_special_methods(code, test):
    program = MANAGER.replace("SWALLOWS", "True")
    assert value(code, program, test) == float(SPECIAL[test])
    assert value(code, "class C: pass", test) == 0.0


def test_an_asynchronous_generator_and_a_lock(code):
    test = "import asyncio\nasync def g(): return [x async for x in f(3)]\nassert asyncio.run(g()) == [0, 1, 2]"
    program = "async def f(n):\n    for i in range(n): yield i"
    assert value(code, program, test) == 1.0
    assert value(code, program.replace("yield i", "yield 0"), test) == 0.0


def test_an_object_that_is_returned_equals_itself_alone(code):
    program = (
        "import enum\nclass C(enum.Enum):\n    A = 1\n    B = 2\ndef f(x): return C.A if x else C.B"
    )
    test = "assert f(1) == C.A and f(0) is C.B and f(1) != C.B and f(0) in (C.A, C.B)"
    assert value(code, program, test) == 1.0
    assert value(code, program.replace("else C.B", "else C.A"), test) == 0.0
    equal = "class E:\n    def __eq__(s, o): return True\ndef f(x): return E()"
    assert value(code, equal, "assert f(1) == f(2)") == 0.0


@pytest.mark.parametrize(
    ("program", "test"),
    [
        ("def f(a): return a", "import inspect\nassert len(inspect.signature(f).parameters) == 1"),
        ("def f(a):\n    'doc'\n    return a", "assert f.__doc__ == 'doc'"),
        ("class C: pass", "assert type(C()).__name__ == 'C'"),
        ("def f(): return input()",
         "from unittest.mock import patch\nwith patch('builtins.input', return_value='x'):\n    assert f() == 'x'"),
        ("def f(): return list[int]", "assert f() == list[int]"),
        ("def f(): print('x')", "def test(capsys):\n    f()\n    assert capsys.readouterr().out == 'x'"),
    ],
)  # fmt: skip
def test_what_stays_with_the_program_is_unscored(code, program, test):
    for answer in (program, "def f(*a): return C\nclass C:\n    __eq__ = lambda s, o: True"):
        score = judged(code, answer, {"asserts": [test]})
        assert (score.value, score.status) == (None, "unparseable_gold")
