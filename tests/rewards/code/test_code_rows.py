"""Rows of published shapes become tests that their own solutions pass."""

from __future__ import annotations

import pytest

from grpo.errors import DataError
from grpo.outside.rows.code_rows import codeforces, humaneval, leetcode, mbpp
from grpo.rewards.code.reward import Code
from grpo.rewards.golds import Checked, check
from grpo.types import Task

HUMANEVAL = {
    "prompt": 'from typing import List\n\ndef total(xs: List[int]) -> int:\n    """Sum."""\n',
    "entry_point": "total",
    "canonical_solution": "    return sum(xs)\n",
    "test": "METADATA = {}\n\ndef check(candidate):\n    assert candidate([1, 2]) == 3\n",
}
MBPP = {
    "text": "Write a function to square.",
    "code": "def square(x):\r\n  return x * x",
    "test_list": ["assert square(3) == 9", "assert math.isclose(square(2), 4)"],
    "test_setup_code": "import math",
}
LEETCODE = {
    "query": "Reverse.",
    "entry_point": "Solution().reverse",
    "test": "def check(candidate):\n    assert candidate(xs = [1, 2]) == [2, 1]\n",
    "completion": "class Solution:\n    def reverse(self, xs: List[int]): return xs[::-1]",
}


@pytest.mark.parametrize(
    "row", [humaneval(HUMANEVAL), mbpp(MBPP), leetcode(LEETCODE)], ids=["he", "mbpp", "lc"]
)
def test_canonical_solutions_pass_and_planted_ones_do_not(row):
    reward = Code(workers=1)
    counts: dict[str, Checked] = {}
    task = Task(uid="t", prompt=row["prompt"], columns=row)
    try:
        assert list(check([task], [("code", reward)], counts)) == []
    finally:
        reward.close()
    assert counts["code"].tasks == 1


def test_check_reports_refused_golds_and_accepted_plants():
    from grpo.rewards.accuracy import Accuracy

    class Generous(Accuracy):
        name = "generous"

        def verify(self, completion, task):
            return super().verify(completion, Task(uid="", prompt="", answer="5"))

    tasks = [Task(uid=str(n), prompt="", answer=str(n)) for n in (4, 5)]
    counts: dict[str, Checked] = {}
    faults = list(check(tasks, [("g", Generous()), ("a", Accuracy())], counts))
    assert [(f.reward, f.kind, f.task, f.answer) for f in faults] == [
        ("g", "gold", "4", "4"),
        ("g", "planted", "4", "5"),
    ]
    assert counts["a"].tasks == 2


def test_codeforces_rows():
    row = codeforces({"description": "Add.", "official_tests": [{"input": "1", "output": "2"}]})
    assert row["tests"] == {"stdio": [{"input": "1", "output": "2"}]}
    apps = codeforces({"question": "Q", "input_output": '{"inputs": ["1"], "outputs": ["2"]}'})
    assert apps["tests"] == row["tests"]
    for bad in ({"description": "x"}, {"examples": [1], "generated_checker": "c"}):
        with pytest.raises(DataError):
            codeforces(bad)
    with pytest.raises(DataError, match="has no column 'test'"):
        humaneval({"prompt": "p"})


def test_codeforces_rows_of_other_shapes():
    both = codeforces({"public_tests": {"input": ["1 2\n"], "output": ["3\n"]}})
    assert both["tests"] == {"stdio": [{"input": "1 2\n", "output": "3\n"}]}
    lines = codeforces({"input_output": {"inputs": [["1 2", "3 4"]], "outputs": [["3", "7"]]}})
    assert lines["tests"] == {"stdio": [{"input": "1 2\n3 4", "output": "3\n7"}]}
    for bad in (
        [1],
        {"input": ["1"], "output": []},
        "{",
        {"input": 3, "output": 4},
        [{"input": "1"}],
    ):
        with pytest.raises(
            DataError, match=r"must hold a list of objects with input and|is not JSON"
        ):
            codeforces({"examples": bad})


def test_a_function_that_is_called_instead_of_a_program():
    both = '{"fn_name": "add", "inputs": [[1, 2], [3, 4]], "outputs": [3, [7]]}'
    called = codeforces({"input_output": both})
    method = codeforces({"input_output": both, "starter_code": "class Solution:\n    def add("})
    reward = Code(workers=1)
    try:
        for row, program in (
            (called, "def add(a, b): return {}"),
            (method, "class Solution:\n    def add(self, a, b): return {}"),
        ):
            for body, right in (("a + b", 1.0), ("[a + b]", 0.0), ("7", 0.0)):
                completion = f"```python\n{program.format(body)}\n```"
                task = Task(uid="t", prompt="", columns={"tests": row["tests"]})
                assert reward.verify(completion, task).value == right
    finally:
        reward.close()


def test_rows_keep_what_their_reference_defines():
    row = mbpp({"text": "t", "test_list": ["assert max(1) == 1"]} | {
        "code": "import math\nK: int = 1\nx, y = 1, 2\nclass Node: pass\ndef max(a): return a"
    })  # fmt: skip
    assert row["tests"]["defines"] == ["K", "class Node", "max", "x", "y"]
    assert leetcode(LEETCODE)["tests"]["defines"] == ["class Solution"]
    assert "defines" not in humaneval(HUMANEVAL)["tests"]  # it has an entry point
    assert (
        "defines" not in mbpp({"text": "t", "test_list": ["assert f()"], "code": "def f("})["tests"]
    )
