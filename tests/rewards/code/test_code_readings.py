"""code: stdio tests whose text is data, what an ordinary exit does, and output that is no text."""

# ruff: noqa: E501  (one program, one line)

from __future__ import annotations

import pytest

from grpo.rewards.code.readings import as_calls, as_lines
from grpo.rewards.code.reward import Code

from .coding import judged


@pytest.fixture(scope="module")
def code():
    reward = Code(workers=2, timeout=5.0)
    yield reward
    reward.close()


def stdio(*cases: tuple[str, str]) -> dict[str, object]:
    return {"stdio": [{"input": given, "output": wanted} for given, wanted in cases]}


# program, cases, value
CALLS = {
    "arguments in a list": ("def add(a, b): return a + b", [("[1, 2]", "3"), ("[3, 4]", "7")], 1),
    "arguments on lines": ("def f(a, b): return len(a) + b", [("[1, 5]\n2", "4")], 1),
    "a method": ("class Solution:\n    def add(self, a, b): return a + b", [("[1, 2]", "3")], 1),
    "a result in a list": ("def add(a, b): return a + b", [("[1, 2]", "[3]")], 1),
    "a tuple is a list": ("def f(a, b): return (b, a)", [("[1, 2]", "[2, 1]")], 1),
    "a text": ("def f(s): return s[::-1]", [('"abc"', '"cba"')], 1),
    "a truth value": ("def f(n): return n % 2 == 0", [("[2]", "true"), ("[1]", "False")], 1),
    "wrong": ("def add(a, b): return a - b", [("[1, 2]", "3")], 0),
    "a text for a number": ("def add(a, b): return '3'", [("[1, 2]", "3")], 0),
    "an equal to everything": (
        "class E:\n    def __eq__(s, o): return True\ndef f(s): return E()", [("[1]", "5")], 0),
    "right in one case each way": (
        "def f(*a): return 3 if len(a) == 2 else 7", [("[1, 2]", "3"), ("[3]\n[4]", "7")], 0),
    "two functions": ("def h(x): return x\ndef add(a, b): return a + b", [("[1, 2]", "3")], 0),
    "a function that prints": ("def add(a, b): print(a + b)", [("[1, 2]", "3")], 0),
    "a program that prints": ("def add(a, b): return a + b\nprint(1)", [("[1, 2]", "3")], 0),
    "a program that fails": ("def add(a, b): return a + b\nint('x')", [("[1, 2]", "3")], 0),
    # numbers on lines are what any program of a contest reads
    "numbers alone": ("def add(a, b): return a + b", [("1\n2", "3")], 0),
    "words": ("def f(a): return a", [("abc", "abc")], 0),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_arguments_of_the_only_function(code, name):
    program, cases, right = CALLS[name]
    assert judged(code, program, stdio(*cases)).value == right


LINES = {
    "lists of lines": ("print(sum(map(int, input().split())))", [("['1 2']", "['3']")], 1),
    "several lines": ("for _ in '12': print(input() + '!')", [("['a', 'b']", "['a!', 'b!']")], 1),
    "the text as it stands": ("print([x + '!' for x in eval(input())])", [("['a']", "['a!']")], 1),
    "wrong in both": ("print(input())", [("['a']", "['a!']")], 0),
    "one case each way": (
        "n = input()\nprint(n if n[0] == '[' else 'x')", [("['1']", "['1']"), ("['2']", "['x']")], 0),
    "a list on one side": ("print('a')", [("['x']", "['a']"), ("['x']", "a b")], 0),
}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_lists_of_lines(code, name):
    program, cases, right = LINES[name]
    assert judged(code, program, stdio(*cases)).value == right


def test_what_is_no_such_text_has_no_second_reading():
    for given in ("[1, 2]", "['a', 1]", "['a'", "[" * 5000, "a", 5):
        assert as_lines([{"input": given, "output": "['a']"}]) is None
    for given in ("[1", "[" * 50_000, "['a']", "nothing", 5):
        assert as_calls([{"input": given, "output": "[3]"}]) == []


EXITS = {
    "import atexit\natexit.register(print, 'bye')\nprint('hi')": "hi\nbye\n",
    "import atexit\natexit.register(lambda: 1 / 0)\nprint('hi')": "hi\n",
    "import sys\nprint('x')\nsys.stdout.close()": "x\n",
    "import fileinput\nfor line in fileinput.input(): print(line.strip())": "in\n",
    "import io, sys\nsys.stdout.write('x')\nsys.stdout = io.StringIO()": "x\n",
}


@pytest.mark.parametrize("program", EXITS)
def test_a_program_ends_as_it_would_elsewhere(code, program):
    assert judged(code, program, stdio(("in\n", EXITS[program]))).value == 1.0
    assert judged(code, program, stdio(("in\n", "y\n"))).value == 0.0


@pytest.mark.parametrize(
    "program",
    ["import sys\nsys.stdout.buffer.write(b'\\xff')", "print('\\ud800')", "x = '\ud800'\nprint(x)"],
)
def test_output_that_is_no_text_equals_none(code, program):
    score = judged(code, program, stdio(("", "\ufffd")))
    assert score.value == 0.0
    score.detail.encode()  # and can be written down
