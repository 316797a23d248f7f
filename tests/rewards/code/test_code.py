"""code: the four kinds of tests, honest programs, and a sandbox that leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from grpo.errors import RewardError
from grpo.rewards.code.fences import chosen_block, code_blocks, program_of
from grpo.rewards.code.plain import pack
from grpo.rewards.code.rebuild import unpack
from grpo.rewards.code.reward import Code
from grpo.rewards.code.stdio import same_output
from grpo.rewards.sandbox import wire
from grpo.types import Task


@pytest.fixture(scope="module")
def code():
    reward = Code(workers=2, timeout=5.0)
    yield reward
    reward.close()


def verdict(reward, program, tests, fence=True):
    completion = f"<think>x</think>\n```python\n{program}\n```" if fence else program
    score = reward.verify(completion, Task(uid="t", prompt="q", columns={"tests": tests}))
    return score.value, score.status


INCREMENT = {"asserts": ["assert f(1) == 2", "assert f(10) == 11", "assert f(-1) == 0"]}


def test_asserts(code):
    assert verdict(code, "def f(x): return x + 1", INCREMENT) == (1.0, "correct")
    assert verdict(code, "def f(x): return 2", INCREMENT) == (0.0, "wrong")
    assert verdict(code, "def f(x) return", INCREMENT) == (0.0, "wrong")
    assert verdict(code, "def g(x): return x + 1", INCREMENT) == (0.0, "wrong")
    assert verdict(code, "def f(x): return x + 1", json.dumps(INCREMENT)) == (1.0, "correct")
    partial = Code(partial=True, workers=1)
    assert verdict(partial, "def f(x): return 2", INCREMENT) == (pytest.approx(1 / 3), "scored")
    partial.close()


def test_check_uses_the_rows_helpers_and_not_the_candidates(code):
    tests = {
        "setup": "def helper(x):\n    return x * 2\n\ndef f(x):\n    '''doubles'''\n",
        "check": "def check(candidate):\n    assert candidate(3) == helper(3)",
        "entry_point": "f",
    }
    assert verdict(code, "def f(x): return helper(x)", tests) == (1.0, "correct")
    assert verdict(code, "def helper(x): return 0\ndef f(x): return 0", tests) == (0.0, "wrong")
    assert verdict(code, "x = 1", tests) == (0.0, "wrong")  # the setup's empty f does not count


def test_leetcode_classes_lists_and_trees(code):
    tests = {
        "functional": "def check(candidate):\n"
        "    assert candidate(nums = [3, 3], target = 6) == [0, 1]\n\n"
        "check(Solution().twoSum)"
    }
    program = (
        "class Solution:\n"
        "    def twoSum(self, nums: List[int], target: int) -> List[int]:\n"
        "        seen = {}\n"
        "        for i, n in enumerate(nums):\n"
        "            if target - n in seen: return [seen[target - n], i]\n"
        "            seen[n] = i\n"
    )
    assert verdict(code, program, tests) == (1.0, "correct")
    lists = {
        "functional": "def check(candidate):\n"
        "    assert is_same_list(candidate(list_node([1, 2, 3])), list_node([3, 2, 1]))\n"
        "check(Solution().reverse)"
    }
    reverse = (
        "class Solution:\n"
        "    def reverse(self, head: Optional[ListNode]) -> Optional[ListNode]:\n"
        "        before = None\n"
        "        while head: head.next, before, head = before, head, head.next\n"
        "        return before\n"
    )
    assert verdict(code, reverse, lists) == (1.0, "correct")
    design = {"functional": "c = Counter2(5)\nc.add(2)\nassert c.get() == 7"}
    counter = (
        "class Counter2:\n"
        "    def __init__(self, n): self.n = n\n"
        "    def add(self, n): self.n += n\n"
        "    def get(self): return self.n\n"
    )
    assert verdict(code, counter, design) == (1.0, "correct")


STDIO = {"stdio": [{"input": "1 2\n", "output": "3\n"}, {"input": "5 6\n", "output": "11"}]}


def test_stdio(code):
    assert verdict(code, "a, b = map(int, input().split())\nprint(a + b)", STDIO)[0] == 1.0
    assert verdict(code, "print(3)", STDIO) == (0.0, "wrong")
    assert verdict(code, "print(3)\nraise ValueError", STDIO) == (0.0, "wrong")
    assert verdict(code, "print('3' * 10**9)", STDIO) == (0.0, "limit")
    assert verdict(code, "while True: print('x' * 1000)", STDIO) == (0.0, "limit")
    slow = Code(workers=1, timeout=0.5)
    assert verdict(slow, "while True: pass", STDIO) == (0.0, "timeout")
    assert verdict(
        slow, "import os, time\nprint(3, flush=True)\nos.close(1)\ntime.sleep(60)", STDIO
    )
    slow.close()


def test_whole_outputs_are_compared():
    assert same_output("1 2 \r\n3\n\n", "1 2\n3")
    assert not same_output("1 2\n3", "1 2\n3\n4")
    assert not same_output("1 2\n3\n4", "1 2\n3")
    assert not same_output("", "3")
    assert same_output("0.3333333", "0.33333", tolerance=1e-4)
    assert not same_output("0.34", "0.33333", tolerance=1e-4)
    assert not same_output("nan", "1", tolerance=1e-4)
    assert not same_output("0.33333 1", "0.33333", tolerance=1e-4)


@pytest.mark.parametrize(
    "program",
    [
        "import numpy\ndef f(x): return numpy.int64(x) + 1",
        "import threading\ndef f(x):\n    r = []\n    t = threading.Thread(target=lambda: "
        "r.append(x + 1))\n    t.start(); t.join()\n    return r[0]",
        "import sys\nsys.setrecursionlimit(10**5)\ndef d(n): return n and d(n - 1)\n"
        "def f(x):\n    d(20000)\n    return x + 1",
        "import sys\ndef f(x):\n    print('noise' * 10**5)\n    sys.stderr.write('noise')\n"
        "    return x + 1",
        "def f(x):\r\n    return x + 1\r\n",
        "from concurrent.futures import ThreadPoolExecutor\n"
        "def f(x):\n    with ThreadPoolExecutor(4) as p: return list(p.map(int, [x + 1]))[0]",
        "import asyncio\nasync def g(x): return x + 1\ndef f(x): return asyncio.run(g(x))",
        "if __name__ == '__main__':\n    print(undefined)\ndef f(x): return x + 1",
        "from functools import lru_cache\n@lru_cache\ndef f(x): return x + 1",
        "import contextlib, os, sys\nsys.stderr = open(os.devnull, 'w')\ndef f(x):\n"
        "    with open(os.devnull, 'w') as n, contextlib.redirect_stdout(n): print('noise')\n"
        "    return x + 1",
    ],
)
def test_honest_programs_get_full_score(code, program):
    assert verdict(code, program, INCREMENT) == (1.0, "correct")


def test_plain_containers_cross_the_border(code):
    program = (
        "from collections import Counter, defaultdict, OrderedDict, namedtuple\n"
        "import numpy\nP = namedtuple('P', 'x y')\n"
        "def f(k):\n    return {'c': Counter('aab'), 'o': OrderedDict(a=1), 'p': P(1, 2),\n"
        "        'n': numpy.arange(3), 'b': b'x', 's': {1, (2, 3)}, 'big': 2**200, 'i': 1j,\n"
        "        'f': float('inf'), 'g': (i for i in range(3))}[k]"
    )
    tests = {
        "asserts": [
            "assert f('c') == {'a': 2, 'b': 1}",
            "assert f('o') == {'a': 1}",
            "assert f('p') == (1, 2)",
            "assert (f('n') == [0, 1, 2]).all()",
            "assert f('b') == b'x' and f('big') == 2**200 and f('i') == 1j",
            "assert f('s') == {1, (2, 3)}",
            "assert f('f') > 10**300",
            "assert list(f('g')) == [0, 1, 2]",
            "try:\n    f('missing')\n    assert False\nexcept KeyError: pass",
        ]
    }
    assert verdict(code, program, tests) == (1.0, "correct")


@pytest.mark.parametrize(
    ("tests", "status"),
    [
        (None, "unparseable_gold"),
        ("{", "unparseable_gold"),
        ({"asserts": []}, "unparseable_gold"),
        ({"check": "def check(c): pass"}, "unparseable_gold"),
        ({"asserts": ["assert f(1) = 2"]}, "unparseable_gold"),
        ({"asserts": ["assert f(1) == 2"], "setup": "import no_such_module"}, "unparseable_gold"),
        ({"asserts": ["assert f(lambda: 1) == 2"]}, "unparseable_gold"),
        ({"stdio": [{"input": "1"}]}, "unparseable_gold"),
    ],
)
def test_bad_tests_are_unscored(code, tests, status):
    assert verdict(code, "def f(x): return x + 1", tests) == (None, status)


def test_the_last_block_after_the_thought_is_the_program():
    assert chosen_block("```\na\n```\ntext\n```python\nb\n```\n") == "b\n"
    assert code_blocks("````md\n```\na\n```\n````") == [("md", "```\na\n```\n")]
    assert chosen_block("```python\nunclosed") is None
    assert program_of("<think>\n```\na = 1\n```\n</think>no code") is None
    assert program_of("<think>\n```\na = 1\n```") is None
    assert program_of("<think></think><answer>def f(): pass</answer>") == "def f(): pass"
    # what the program prints, or a shell's line, is not the program
    program = "a, b = map(int, input().split())\nif a > b:\n    print(a)\n"
    for after in (
        "",
        "\nOutput:\n```\n2\n```",
        "\n```bash\npython a.py\n```",
        "\n```text\nx = 2\n```",
    ):
        assert program_of(f"```python\n{program}```{after}") == program
        assert program_of(f"```\n{program}```{after}") == program
    assert program_of("1. so\n   ```python\n   if True: print(2)\n   ```") == "if True: print(2)\n"
    assert program_of("def f():\n    return 1") == "def f():\n    return 1"


def descendants(root: int) -> set[int]:
    """Every living process below `root`; other test workers have zygotes of their own."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        try:
            with open(f"/proc/{entry}/stat", encoding="ascii", errors="replace") as stream:
                fields = stream.read().rpartition(")")[2].split()
            if fields[0] != "Z":
                parents[int(entry)] = int(fields[1])
        except (OSError, ValueError):
            continue
    found: set[int] = set()
    waiting = [root]
    while waiting:
        parent = waiting.pop()
        below = {pid for pid, above in parents.items() if above == parent} - found
        found |= below
        waiting += below
    return found


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stream:
            return stream.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_killed_zygote_is_replaced_and_nothing_stays(code):
    before = descendants(os.getpid())
    reward = Code(workers=1)
    assert verdict(reward, "def f(x): return x + 1", INCREMENT)[0] == 1.0
    mine = descendants(os.getpid()) - before
    assert mine
    for pid in mine:
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.1)
    assert verdict(reward, "def f(x): return x + 1", INCREMENT)[0] == 1.0
    reward.close()
    assert descendants(os.getpid()) == before
    assert verdict(reward, "def f(x): return x + 1", INCREMENT)[0] == 1.0  # it starts again
    reward.close()


def test_a_killed_host_leaves_nothing():
    script = (
        "from grpo.rewards.code.reward import Code; from grpo.types import Task; import os\n"
        "t = Task(uid='', prompt='', columns={'tests': {'asserts': ['assert f(1) == 2']}})\n"
        "c = Code(workers=1); c.verify('def f(x): return 2', t); print('up', flush=True)\n"
        "c.timeout = 60; c.verify('def f(x):\\n  while True: pass', t)\n"
    )
    host = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert host.stdout is not None
    assert host.stdout.readline() == b"up\n"
    time.sleep(0.2)
    below = descendants(host.pid)
    assert len(below) >= 3  # the zygote, the candidate and its tests at least
    host.kill()
    host.communicate()
    deadline = time.monotonic() + 5
    while any(map(alive, below)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, below))


def test_many_rows_from_asyncio_keep_the_loop_free(code):
    async def main():
        ticks = 0
        rows = 8
        task = Task(uid="t", prompt="q", columns={"tests": INCREMENT})
        work = asyncio.ensure_future(
            asyncio.to_thread(code.verify_all, ["def f(x): return x + 1"] * rows, [task] * rows)
        )
        while not work.done():
            ticks += 1
            await asyncio.sleep(0.005)
        return ticks, [score.value for score in await work]

    ticks, values = asyncio.run(main())
    assert values == [1.0] * 8
    assert ticks > 5


def test_an_unknown_sandbox_is_refused():
    with pytest.raises(RewardError, match="unknown sandbox 'docker'"):
        verdict(Code(sandbox="docker"), "def f(x): return 1", INCREMENT)


@pytest.mark.parametrize("value", [0, -(2**80), 1.5, "é\ud800", None, [1, (2,)], {1: {2}}, 1j])
def test_plain_data_survives_the_wire(value):
    assert unpack(pack(value), list) == value


def test_what_is_not_plain_does_not_cross():
    with pytest.raises(wire.WireError):
        pack(object())
    for packed in ({"x": 1}, {"i": "zz"}, {"d": [[[], 1]]}, {"t": 3}, {"a": 1, "b": 2}):
        with pytest.raises(wire.WireError):
            unpack(packed, list)
