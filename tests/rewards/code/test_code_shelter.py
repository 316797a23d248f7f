"""code: no program leaves the baseline, or ends the tests early, by what it defines or returns."""

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


LEETCODE = {"functional": "def check(candidate):\n    assert candidate([1]) == 1\n\ncheck(Solution().add)"}  # fmt: skip
STACK = {"asserts": ["s = Stack()\nassert isinstance(s, Stack)\ns.push(1)\nassert s.pop() == 1"]}
ENTRY = {"check": "def check(make):\n    s = make()\n    s.push(1)\n    assert s.pop() == 1", "entry_point": "Stack"}  # fmt: skip
RIGHT_STACK = "class Stack(list):\n    def push(self, x): self.append(x)"
NEAR = "class Near:\n    def __eq__(self, other): return abs(other - 5) < 1\nassert f(2) == Near()"
# tests, a right program, one that would rather not be scored
SHELTERS = {
    "LeetCode's class as an exception": (
        LEETCODE,
        "class Solution:\n    def add(self, x): return sum(x)",
        "class Solution(Exception):\n    pass",
    ),
    "a class as an exception": (STACK, RIGHT_STACK, "class Stack(Exception):\n    pass"),
    "an entry point as an exception": (ENTRY, RIGHT_STACK, "class Stack(Exception):\n    pass"),
    "an object where pytest compares": (
        {"setup": "import pytest", "asserts": ["assert f(2) == pytest.approx(5)"]},
        "def f(x): return 5.0",
        "def f(x): return object()",
    ),
    "an object where the tests compare": (
        {"asserts": [NEAR]},
        "def f(x): return 5.5",
        "def f(x): return object()",
    ),
}


@pytest.mark.parametrize("name", SHELTERS)
def test_a_program_that_hides_is_wrong(code, name):
    tests, right, hiding = SHELTERS[name]
    assert [judged(code, program, tests).value for program in (right, hiding)] == [1.0, 0.0]


LIBRARY = {"setup": "import sympy", "asserts": ["assert f(2) == 5"]}
HIDING = "class A: pass\nA.__module__ = 'sympy.core'\ndef f(x): return A()"


def test_a_row_whose_own_solution_passes_scores_every_program(code):
    assert judged(code, HIDING, LIBRARY).status == "unparseable_gold"
    row = {"canonical_solution": "def f(x): return x + 3"}
    assert judged(code, HIDING, LIBRARY, **row).status == "wrong"
    row = {"canonical_solution": HIDING}
    assert judged(code, HIDING, LIBRARY, **row).status == "unparseable_gold"


STOPS = """
from grpo.rewards.code import program
answer = program.Program.answer
def stopped(self, request):
    return {"stopped": True} if request["do"] == "call" else answer(self, request)
program.Program.answer = stopped
def f(x): return 0
"""


@pytest.mark.parametrize(
    "test",
    [
        "assert all(map(f, [1, 2]))",
        "for got, wanted in zip(map(f, [1, 2]), [2, 3]):\n    assert got == wanted",
        "assert list(map(f, [1, 2])) == []",
    ],
)
def test_a_call_that_ends_like_an_iterator_ends_no_loop(code, test):
    assert value(code, STOPS, test) == 0.0


def test_an_exception_is_caught_or_used_as_the_class_that_it_is(code):
    program = "class Big(Exception):\n    def __init__(self, n): self.n = n\ndef f(x): raise Big(x)"
    caught = "try:\n    f(5)\n    assert False\nexcept Big as error:\n    assert error.n == 5"
    assert value(code, program, caught) == 1.0
    assert value(code, program, "assert Big(5).n == 5") == 1.0
    assert value(code, program, "assert Big(5).n == 6") == 0.0


def test_exceptions_of_the_setup_end_no_loop_and_are_no_missing_module(code):
    done = {"setup": "class Done(StopIteration): pass"}
    raises = "def f(x): raise Done(1)"
    assert judged(code, raises, done | {"asserts": ["assert all(map(f, [1]))"]}).value == 0.0
    caught = "try:\n    f(1)\n    assert False\nexcept Done:\n    pass"
    assert judged(code, raises, done | {"asserts": [caught]}).value == 1.0
    missing = {"setup": "class Done(ImportError): pass"}
    assert judged(code, raises, missing | {"asserts": ["assert f(1) == 2"]}).value == 0.0
    assert judged(code, raises, missing | {"asserts": [caught]}).value == 1.0
    stops = "def f(x): raise StopIteration"
    named = {
        "asserts": ["try:\n    f(0)\nexcept StopIteration: pass\nassert not [*filter(f, [1])]"]
    }
    assert judged(code, stops, named).value == 0.0
