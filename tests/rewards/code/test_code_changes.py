"""code: what a program changes in its arguments comes back to the tests' own objects."""

from __future__ import annotations

import pytest

from grpo.rewards.code.classes import NO_CLASSES
from grpo.rewards.code.plain import Shared, pack
from grpo.rewards.code.rebuild import unpack_changes
from grpo.rewards.code.reward import Code
from grpo.rewards.sandbox import wire

from .coding import functional, judged, value


@pytest.fixture(scope="module")
def code():
    reward = Code(workers=1, timeout=5.0)
    yield reward
    reward.close()


SWAP = "def f(a): a[0], a[1] = a[1], a[0]"
CHANGES = {
    "a list": (SWAP, "a = [0, 1]\nf(a)\nassert a == [1, 0]"),
    "within one assert": (SWAP, "a = [0, 1]\nassert f(a) is None and a == [1, 0]"),
    "given by name": ("def f(*, a): a.append(1)", "a = []\nf(a=a)\nassert a == [1]"),
    "given twice": (
        "def f(a, b): a.append(1); b.append(2)",
        "a = []\nf(a, a)\nassert a == [1, 2]\nf(a, b=a)\nassert a == [1, 2, 1, 2]",
    ),
    "within another": (
        "def f(m): m[0][0] = 9; m.append(m[0])",
        "r = [1]\nm = [r, [2]]\nf(m)\nassert m == [[9], [2], [9]] and r == [9]\n"
        "assert m[0] is r and m[2] is r",
    ),
    "in a tuple": ("def f(t): t[0].append(5)", "t = ([1], 2)\nf(t)\nassert t == ([1, 5], 2)"),
    "of every kind": (
        "def f(d, s, b, q): d['x'] = 1; s.add(3); b.extend(b'z'); q.appendleft(0)",
        "from collections import deque\nd, s, b, q = {'y': 0}, {1}, bytearray(b'a'), deque([1])\n"
        "f(d, s, b, q)\nassert d == {'y': 0, 'x': 1} and s == {1, 3}\n"
        "assert b == bytearray(b'az') and q == deque([0, 1])",
    ),
    "an array": (
        "def f(a): a[0] = 5.5",
        "import numpy\na = numpy.array([1.0, 2.0])\nf(a)\nassert a.tolist() == [5.5, 2.0]",
    ),
    "returned": ("def f(a): a.sort(); return a", "a = [2, 1]\nassert f(a) is a and a == [1, 2]"),
    "before an exception": (
        "def f(a):\n    a.append(1)\n    raise ValueError",
        "a = []\ntry:\n    f(a)\nexcept ValueError:\n    pass\nassert a == [1]",
    ),
    "while iterated": (
        "def f(a):\n    yield a.append(1)\n    yield a.append(2)",
        "a = []\ng = f(a)\nassert a == []\nnext(g)\nassert a == [1]\nlist(g)\nassert a == [1, 2]",
    ),
    "in a coroutine": (
        "async def f(a): a.append(1); return 2",
        "import asyncio\na = []\nassert asyncio.run(f(a)) == 2\nassert a == [1]",
    ),
    "to hold itself": ("def f(a): a.append(a)", "a = []\nf(a)\nassert a[0] is a and len(a) == 1"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_comes_back(code, kind):
    program, test = CHANGES[kind]
    assert value(code, program, test) == 1.0
    assert value(code, "def f(*a, **k): return None", test) == 0.0


def test_an_argument_that_must_not_change(code):
    test = "a = [3, 1, 2]\nassert f(a) == [1, 2, 3]\nassert a == [3, 1, 2]"
    assert value(code, "def f(a): return sorted(a)", test) == 1.0
    assert value(code, "def f(a): a.sort(); return a", test) == 0.0
    # 1 and True are equal, and not the same
    test = "a = [1, 0]\nf(a)\nassert [type(x) for x in a] == [int, int]"
    assert value(code, "def f(a): pass", test) == 1.0
    assert value(code, "def f(a): a[0] = True", test) == 0.0


@pytest.mark.parametrize(
    "test",
    [
        "xs = [3, 1]\nassert f(xs) == sorted(xs)",
        "xs = [3, 1]\nassert f(list(xs)) == sorted(xs)",
        "assert all(f(xs) == sorted(xs) for xs in [[3, 1], [2]])",
        "def check(g):\n    xs = [3, 1]\n    assert g(xs) == sorted(xs)\ncheck(f)",
        "class T:\n    def t(self, xs):\n        assert f(xs) == sorted(xs)\nT().t([3, 1])",
    ],
)
def test_what_is_expected_of_an_argument_is_worked_out_before_the_call(code, test):
    assert value(code, "def f(xs): xs.clear(); return []", test) == 0.0
    assert value(code, "def f(xs): return sorted(xs)", test) == 1.0
    assert value(code, "def f(xs): xs.sort(); return xs", test) == 1.0


def test_a_loop_in_a_class_keeps_its_order(code):
    test = "class T:\n    ok = all([f(xs) == sorted(xs) for xs in [[3, 1]]])\nassert T.ok"
    assert value(code, "def f(xs): return sorted(xs)", test) == 1.0


def test_what_is_expected_within_arithmetic_too(code):
    zero = "def f(xs): xs[:] = [0]; return 0"
    mean = "def f(xs): return sum(xs) / len(xs)"
    for test in (
        "xs = [3, 1]\nassert abs(f(xs) - sum(xs) / len(xs)) < 1e-6",
        "import math\nxs = [3, 1]\nassert math.isclose(f(xs), sum(xs) / len(xs))",
    ):
        assert value(code, zero, test) == 0.0
        assert value(code, mean, test) == 1.0


def test_arguments_of_methods(code):
    program = "class C:\n    def push(self, a): a.append(1)"
    test = "c = C()\nx = [0]\nc.push(x)\nassert x == [0, 1]\nc.push(a=x)\nassert x == [0, 1, 1]"
    assert functional(code, program, test) == 1.0
    assert functional(code, program.replace("a.append(1)", "pass"), test) == 0.0


def test_lists_and_trees_of_leetcode(code):
    reorder = (
        "class Solution:\n    def reorder(self, head):\n"
        "        a, b, c = head, head.next, head.next.next\n"
        "        a.next, c.next, b.next = c, b, None\n"
    )
    test = (
        "def check(candidate):\n    h = list_node([1, 2, 3])\n    last = h.next.next\n"
        "    assert candidate(h) is None\n    assert h.next is last\n"
        "    assert is_same_list(h, list_node([1, 3, 2]))\ncheck(Solution().reorder)"
    )
    assert functional(code, reorder, test) == 1.0
    assert functional(code, reorder.replace("= c, b, None", "= b, None, c"), test) == 0.0
    invert = (
        "class Solution:\n    def invert(self, t):\n"
        "        if t: t.left, t.right = self.invert(t.right), self.invert(t.left)\n"
        "        return t\n"
    )
    test = (
        "def check(candidate):\n    t = tree_node([1, 2, 3, 4])\n    assert candidate(t) is t\n"
        "    assert is_same_tree(t, tree_node([1, 3, 2, None, None, None, 4]))\n"
        "check(Solution().invert)"
    )
    assert functional(code, invert, test) == 1.0


def test_a_generators_items_are_what_it_held_at_the_time(code):
    program = "def f():\n    c = []\n    for i in range(3):\n        c.append(i)\n        yield c"
    assert value(code, program, "assert [len(x) for x in f()] == [1, 2, 3]") == 1.0


# A program that writes its answers to the channel itself; [0, …] is the tests' list.
FORGED = """
import json, os, struct
def tell(message):
    body = json.dumps(message).encode()
    os.write(3, struct.pack('=I', len(body)) + body)
tell({'loaded': True, 'missing': []})
tell({'returned': None, 'changed': CHANGED})
"""
FORGERIES = [
    "3", "[3]", "[[0]]", "[[0, 1]]", "[[1, [1]]]", "[[-1, [1]]]", "[[True, [1]]]", "[['0', [1]]]",
    "[[0, [{'a': 7}]]]", "[[0, [{'o': 3}]]]", "[[0, [{'x': 3}]]]", "[[0, {'d': []}]]",
    "[[0, [{'n': ['<f8', [[1], [1, 2]]]}]]]", "[[0, [{'d': [[[], 1]]}]]]",
]  # fmt: skip


@pytest.mark.parametrize("forged", [*FORGERIES, "[[0, ['x'] * 10**6]]", "[[0, [{'a': 0}]]]"])
def test_a_forged_change_is_wrong(code, forged):
    score = judged(
        code, FORGED.replace("CHANGED", forged), {"asserts": ["a = [1]\nf(a)\nassert a == [2]"]}
    )
    assert (score.value, score.status) == (0.0, "wrong")


def test_a_malformed_change_changes_nothing():
    shared = Shared()
    held = [[1], {2}]
    pack(held, None, shared)
    for changed in ([[1, [5]], [3, [1]]], [[1, [5]], [2, [[]]]], [[1, [5]], [0, [{"a": 9}]]]):
        with pytest.raises(wire.WireError):
            unpack_changes(changed, 3, list, NO_CLASSES, shared)
    assert held == [[1], {2}]
    unpack_changes([[1, [5]], [2, [7, 8]]], 3, list, NO_CLASSES, shared)()
    assert held == [[5], {7, 8}]
