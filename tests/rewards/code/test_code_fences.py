"""code: which block of a completion is the program, and that it is one of them."""

# ruff: noqa: E501  (one program, one line)

from __future__ import annotations

import time

import pytest

from grpo.rewards.code.fences import asked_names, chosen_block, program_of
from grpo.rewards.code.reward import Code
from grpo.types import Task

RIGHT = "def add(a, b):\n    return a + b\n"
WRONG = "def add(a, b):\n    return a - b\n"


def fenced(*blocks: str, label: str = "python") -> str:
    return "\n\nThen:\n".join(f"```{label}\n{block.rstrip()}\n```" for block in blocks)


AFTER = [
    "```python\nprint(add(1, 2))\n```",
    "```\nadd(1, 2)\n```",
    "```python\n>>> add(1, 2)\n3\n```",
    "```python\na = 1\nb = 2\n```",
    "```python\ndef test():\n    assert add(1, 2) == 3\ntest()\n```",
    "```python\nfrom solution import add\nprint(add(1, 2))\n```",
    "```bash\npip install x\nwhile true; do echo; done\n```",
    "```text\nadd = 3\n```",
    "```cpp\nint add(int a, int b) { return 0; }\nfor (;;) {}\n```",
    "```javascript\nimport add from 'x'\n```",
]


@pytest.mark.parametrize("after", AFTER)
def test_what_stands_after_the_program_is_not_it(after):
    text = f"{fenced(RIGHT)}\nUse it so:\n{after}"
    assert chosen_block(text, lambda: {"add"}) == RIGHT
    assert chosen_block(text) == RIGHT or "a = 1" in after


def test_the_last_block_that_defines_what_is_asked_is_the_program():
    asked = lambda: {"add"}  # noqa: E731
    assert chosen_block(fenced(WRONG, RIGHT), asked) == RIGHT
    assert chosen_block(fenced(RIGHT, WRONG), asked) == WRONG
    broken = (
        "def add(a, b)\n    return a + b\n"  # a block that does not parse is no reason to go back
    )
    assert chosen_block(fenced(RIGHT, broken), asked) == broken
    assert chosen_block(fenced(RIGHT, "def other(): pass\n"), asked) == RIGHT
    # a later version that only shares words with an earlier one is no example of its use
    script = "# add(1, 2) again, 'add(3)'\ndef add(x): return x\nprint(add(1))\n"
    assert chosen_block(fenced(RIGHT, script)) == script
    assert chosen_block(fenced("def gcd(a, b): return a\n", "from math import gcd\nprint(gcd(1, 2))\n")) == (
        "from math import gcd\nprint(gcd(1, 2))\n"
    )  # fmt: skip


def test_blocks_are_never_put_together():
    helper = fenced("def h(a, b): return a + b\n", "def add(a, b): return h(a, b)\n")
    reward = Code(workers=1)
    tests = {"asserts": ["assert add(1, 2) == 3"]}
    try:
        for text, right in (
            (helper, 0.0),
            (fenced(RIGHT, WRONG), 0.0),
            (fenced(WRONG, RIGHT), 1.0),
            (fenced(RIGHT, "print(add(1, 2))"), 1.0),
            (f"<think>{fenced(RIGHT)}</think>{fenced(WRONG)}", 0.0),
            (f"<answer>{fenced(RIGHT)}</answer>", 1.0),
            (fenced(RIGHT, label="{.python}"), 1.0),
            (fenced("\ufeff" + RIGHT, label="python3"), 1.0),
        ):
            task = Task(uid="t", prompt="", columns={"tests": tests})
            assert reward.verify(text, task).value == right
    finally:
        reward.close()


def test_what_the_tests_ask_for():
    assert asked_names("add", ["def check(c): assert c(add2(1))"]) == {"add"}
    assert asked_names(None, ["def check(c):\n    c(1)\ncheck(Solution().add)"]) >= {"Solution"}
    assert "check" not in asked_names(None, ["def check(c):\n    c(1)\ncheck(Solution().add)"])


@pytest.mark.parametrize(
    "text",
    ["'''" * 30_001, '"""' * 30_001, "'" * 90_001, "def " * 30_000, "x(" * 50_000, "from a import " * 9_000,
     "a, " * 30_000, "a" * 100_000, "\\" * 90_001, "'\\" * 50_001],
)  # fmt: skip
def test_choosing_a_block_takes_linear_time(text):
    start = time.monotonic()
    program_of(f"{fenced(RIGHT)}\n```python\nimport x\n{text}\n```")
    assert time.monotonic() - start < 2
