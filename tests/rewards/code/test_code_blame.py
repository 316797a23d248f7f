"""code: a program cannot make its sample unscored; only the row and the sandbox can."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from grpo.rewards.code.reward import Code
from grpo.rewards.sandbox.sandbox import Sandbox

from .coding import judged
from .test_code import descendants

TESTS = {"asserts": ["assert f(1) == 2", "assert f(10) == 11"]}


@pytest.fixture(scope="module")
def code():
    reward = Code(workers=1, timeout=2.0)
    yield reward
    reward.close()


TELL = """
import json, os, struct
def tell(body):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    message = memoryview(struct.pack('=I', len(body)) + body)
    while message: message = message[os.write(3, message):]
def f(x): return 0
"""
LOADED = "tell({'loaded': True, 'missing': []})\n"
FORGED = {
    # its text is longer than a frame once it is written as ASCII
    "load error longer than a frame": "tell(b'{\"raised\": [\"E\", \"'"
    " + 'é'.encode() * 8_000_000 + b'\"]}')",
    "load error of another shape": "tell({'raised': [['E'], {'a': 1}]})",
    "load error that is a number": "tell({'raised': 3})",
    "not an object": "tell([1, 2])",
    "nothing": "tell(None)",
    "not JSON": "tell(b'{{{{')",
    "nested without end": "tell(b'[' * 100_000)",
    "nested as deep as can be read": "tell(b'[' * 900 + b']' * 900)",
    "a frame that never comes": "os.write(3, struct.pack('=I', 0xffffffff))",
    "loaded, of another shape": "tell({'loaded': True, 'missing': 7})",
    "an answer nested deeply": LOADED + "tell(b'{\"returned\": ' + b'[' * 900 + b']' * 900 + b'}')",
    "an answer of no kind": LOADED + "tell({'returned': {'x': 1}})",
    "a number without end": LOADED + "tell({'returned': {'i': '0x' + 'f' * 10**7}})",
    "an object of no number": LOADED + "tell({'returned': {'o': [-1, '']}})",
    "an exception of another shape": LOADED + "tell({'raised': [1, 2, 3, {'o': 1}]})",
    "an exception of an exit": LOADED + "tell({'raised': ['SystemExit', '', [], None]})",
    "an end of iteration": LOADED + "tell({'stopped': True})",
    "half a frame": "os.write(3, struct.pack('=I', 100)); os._exit(0)",
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_answer_is_wrong(code, name):
    assert judged(code, TELL + FORGED[name], TESTS).value == 0.0


PROGRAMS = {
    "an exception with a huge name": "raise type('E' * (1 << 25), (Exception,), {})('x')",
    "an exception with a huge text": "raise ValueError('x' * (1 << 25))",
    "an exception that cannot be printed": "class E(Exception):\n"
    "    def __str__(self): raise SystemExit\ndef f(x): raise E",
    "a namesake of KeyboardInterrupt": "class KeyboardInterrupt(BaseException): pass\n"
    "def f(x): raise KeyboardInterrupt",
    "an import that is not there": "def f(x): import nosuchmodule",
    "an ImportError": "def f(x): raise ImportError('x')",
    "a closed channel": "import os\nos.closerange(0, 100)",
    "an exit": "import os\ndef f(x): os._exit(0)",
    "SIGKILL to itself": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "a crash": "import ctypes\nctypes.string_at(0)",
    "no memory": "def f(x): return 'x' * (1 << 31)",
    "a large answer": "def f(x): return 'x' * (1 << 24)",
    "an infinite iterator": "import itertools\ndef f(x): return itertools.count()",
    "threads without end": "import threading, time\ndef f(x):\n    while True:\n"
    "        threading.Thread(target=time.sleep, args=(9,)).start()",
    "processes without end": "import os\ndef f(x):\n    while True: os.fork()",
    "a list doubled ninety times": "def f(x):\n    a = [1]\n"
    "    for _ in range(90): a = [a, a]\n    return a",
    "nodes without end": "class ListNode:\n    next = property(lambda self: ListNode())\n"
    "def f(x): return ListNode()",
    "a coroutine": "async def f(x): return x + 1",
    "a program longer than a frame": "x = '" + "a" * (1 << 24) + "'\ndef f(x): return x + 1",
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_failing_program_is_wrong(code, name):
    assert judged(code, PROGRAMS[name], TESTS).value == 0.0


def test_a_coroutine_or_exception_given_back_is_the_programs_doing(code):
    tests = {"asserts": ["assert f(f(1)) == 3"]}
    assert judged(code, "async def f(x): return x + 1", tests).value == 0.0
    assert judged(code, "def f(x): return x + 1", tests).value == 1.0


SLEEPS = "import time\ntime.sleep(2)\ndef f(x): return x + 1"


def asleep(pid: int) -> bool:
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stream:
        return stream.read().rpartition(")")[2].split()[0] == "S"


def killed_while_it_sleeps(reward: Code, tests: object, program: str, zygote: bool):
    """The score when the tests' process, or the zygote, is killed while the program sleeps."""
    base = descendants(os.getpid())
    judged(reward, "def f(x): return x", TESTS)  # the zygote is up
    before = descendants(os.getpid())
    found = []
    thread = threading.Thread(target=lambda: found.append(judged(reward, program, tests)))
    thread.start()
    quiet = 0
    while quiet < 10:  # the guests have started, and wait for each other
        time.sleep(0.05)
        guests = sorted(descendants(os.getpid()) - before)
        quiet = quiet + 1 if guests and all(map(asleep, guests)) else 0
    os.kill(min(before - base) if zygote else guests[-1], signal.SIGKILL)
    thread.join()
    return found[0].value, found[0].status


def test_when_the_tests_process_is_killed_after_the_program_spoke_it_is_wrong():
    # a program that can send a signal to its tests would otherwise choose to be unscored
    reward = Code(workers=1, timeout=10.0)
    try:
        assert killed_while_it_sleeps(reward, TESTS, SLEEPS, False) == (0.0, "wrong")
    finally:
        reward.close()


def test_a_program_is_tried_once_more_when_its_sandbox_was_ended():
    # another program may have ended it, or the machine; a score of 0 would be an honest one's loss
    stdio = {"stdio": [{"input": "", "output": "1\n"}]}
    for tests, program in ((TESTS, SLEEPS), (stdio, "import time\ntime.sleep(2)\nprint(1)")):
        reward = Code(workers=1, timeout=10.0)
        try:
            assert killed_while_it_sleeps(reward, tests, program, True) == (1.0, "correct")
        finally:
            reward.close()


def test_a_sandbox_that_ends_before_the_program_starts_is_the_graders_failure(monkeypatch):
    reward = Code(workers=1, timeout=2.0)
    fork = Sandbox.fork

    def failing(self, guest, limits, channels, *ours):
        missing = guest in ("candidate", "script")
        return fork(self, "no such guest" if missing else guest, limits, channels, *ours)

    monkeypatch.setattr(Sandbox, "fork", failing)
    try:
        stdio = {"stdio": [{"input": "", "output": "1\n"}]}
        for program, tests in (("def f(x): return x + 1", TESTS), ("print(1)", stdio)):
            score = judged(reward, program, tests)
            assert (score.value, score.status) == (None, "grader_error")
    finally:
        reward.close()


@pytest.mark.parametrize(
    "tests",
    [
        {"asserts": ["import nosuchmodule\nassert f(1) == 2"]},
        {"asserts": ["assert f(1) == 2"], "setup": "import nosuchmodule"},
        {"asserts": ["assert f(1) == 2", "assert f(lambda: 1) == 2"]},
        {"asserts": ["try:\n    f(lambda: 1)\nexcept Exception:\n    pass\nassert f(1) == 2"]},
        {"asserts": ["x = 1\nfor _ in range(200): x = [x]\nassert f(x) == 2"]},
        {"stdio": [{"input": "\ud800", "output": "1"}]},
        {"asserts": ["assert f(1) == 2"], "defines": "f"},
    ],
)
def test_what_the_row_lacks_is_not_the_programs_fault(code, tests):
    score = judged(code, "def f(x): return x + 1", tests)
    assert (score.value, score.status) == (None, "unparseable_gold")


def test_a_setup_that_fails_on_the_programs_class_is_wrong(code):
    tests = {"asserts": ["assert f(root) == 1"], "setup": "root = Node(1)"}
    assert judged(code, "class Node: pass\ndef f(x): return 1", tests).value == 0.0


STDIO = {"stdio": [{"input": "1\n", "output": "2\n"}]}


@pytest.mark.parametrize(
    "program",
    [
        "import os\nos.closerange(0, 100)",
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
        "import os\nos.write(3, b'{}')\nos._exit(77)",
        "import ctypes\nctypes.string_at(0)",
        "raise SystemExit('x' * 10**7)",
        "import sys\nsys.stdout.close()\nsys.stdin.close()",
        "x = '" + "a" * (1 << 24) + "'",
    ],
)
def test_a_failing_script_is_wrong(code, program):
    assert judged(code, program, STDIO).value == 0.0


def test_a_hang_costs_the_asserts_after_it_and_no_more():
    reward = Code(partial=True, workers=1, timeout=1.0)
    try:
        program = "def f(x):\n    while x != 1: pass\n    return 2"
        score = judged(reward, program, TESTS)
        assert (score.value, score.status) == (0.5, "scored")
        check = {"entry_point": "f"} | {
            "check": "def check(g):\n    assert g(1) == 2\n    assert g(1) == 3\n"
            "    assert g(1) == 2\n    x = g(10)\n    assert x == 11\n    assert g(11) == 12"
        }
        assert judged(reward, program, check).value == pytest.approx(2 / 5)
        stops = "def f(x):\n    if x != 1: raise ValueError\n    return 2"
        assert judged(reward, stops, check).value == pytest.approx(2 / 5)
        assert judged(reward, "def f(x): return x + 1", check).value == pytest.approx(4 / 5)
    finally:
        reward.close()


def test_tests_of_what_is_printed_are_refused_by_row(code):
    test = (
        "import io, contextlib\nseen = io.StringIO()\nwith contextlib.redirect_stdout(seen):\n"
        "    f()\nassert seen.getvalue() == 'a\\n'"
    )
    for program in ("def f(): print('a')", "def f(): print('b')"):
        score = judged(code, program, {"asserts": [test]})
        assert (score.value, score.status) == (None, "unparseable_gold")
        assert "prints" in score.detail
