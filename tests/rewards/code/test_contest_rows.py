"""Rows of contests, each format by its own rule: what its tests become, and what is refused."""

# ruff: noqa: E501  (one row, one line)

from __future__ import annotations

import base64
import json
import pickle
import zlib

import pytest

from grpo.errors import DataError
from grpo.outside.rows.code_rows import codeforces, kodcode, mbpp
from grpo.rewards.code.reward import Code

from .coding import judged

ADD = "def add(a, b): return a + b"
METHOD = "class Solution:\n    def add(self, a, b): return a + b"
SCRIPT = "a, b = map(int, input().split())\nprint(a + b)"
STARTER = "class Solution:\n    def add(self, a, b):\n"


@pytest.fixture(scope="module")
def code():
    reward = Code(workers=2, timeout=5.0)
    yield reward
    reward.close()


def packed(value: object) -> str:
    """As LiveCodeBench writes its private tests."""
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


def case(given: str, wanted: str, kind: str = "stdin") -> dict[str, str]:
    return {"input": given, "output": wanted, "testtype": kind}


def public(*cases: object, **more: object) -> dict[str, object]:
    return {"question_content": "q", "public_test_cases": json.dumps(cases), **more}


def both(inputs: list[object], outputs: list[object], **more: object) -> str:
    return json.dumps({"inputs": inputs, "outputs": outputs, **more})


# row, a right program
UNDERSTOOD = {
    "APPS": ({"question": "q", "input_output": both(["1 2\n"], ["3\n"])}, SCRIPT),
    "APPS, a function": ({"input_output": both([[1, 2]], [3], fn_name="add")}, ADD),
    "APPS, a result in a list": ({"input_output": both([[1, 2]], [[3]], fn_name="add")}, ADD),
    "APPS, a method": (
        {"starter_code": STARTER, "input_output": both([[1, 2]], [3], fn_name="add")}, METHOD),
    "APPS, named by its starter code": (
        {"starter_code": "def add(a, b):", "input_output": both([[1, 2]], [3])}, ADD),
    "TACO, lists of lines": ({"input_output": both([["1 2"]], [["3"]], fn_name=None)}, SCRIPT),
    "LiveCodeBench": (public(case("1 2", "3"), private_test_cases=packed(
        json.dumps([case("2 2", "4")])), metadata="{}"), SCRIPT),
    "LiveCodeBench, a method": (public(
        case("1\n2", "3", "functional"), case("[1]\n[2]", "[1, 2]", "functional"),
        starter_code=STARTER, metadata='{"func_name": "add"}'), METHOD),
    "LiveCodeBench, written out": (public(
        case("1 2", "3"), private_test_cases=json.dumps([case("2 2", "4")])), SCRIPT),
    "CodeContests": ({"description": "q", "public_tests": {"input": ["1 2\n"], "output": ["3\n"]},
        "private_tests": {"input": [], "output": []},
        "generated_tests": {"input": ["2 2"], "output": ["4"]}}, SCRIPT),
    "CodeContests without public tests": ({"public_tests": {"input": [], "output": []},
        "private_tests": {"input": ["1 2"], "output": ["3"]}}, SCRIPT),
    "open-r1/codeforces": ({"description": "q", "official_tests": [case("1 2", "3")],
        "examples": [case("9", "9")], "input_mode": "stdio"}, SCRIPT),
    "its examples": ({"official_tests": [], "examples": [case("1 2", "3")]}, SCRIPT),
    "SYNTHETIC-1": ({"prompt": "q", "verification_info": json.dumps({"language": "python",
        "test_cases": [{"type": "stdin_stdout", "input": "1 2", "output": "3"}]})}, SCRIPT),
    "SYNTHETIC-1, a function": ({"verification_info": {"test_cases": [
        {"type": "function_call", "fn_name": "add", "input": [1, 2], "output": [3]}]}}, ADD),
    "Eurus-2": ({"prompt": [{"role": "user", "content": "q"}], "reward_model":
        {"style": "rule", "ground_truth": both(["1 2\n"], ["3\n"])}}, SCRIPT),
    "PRIME, a function": ({"reward_model": {
        "ground_truth": both(["1\n2"], ["3"], fn_name="add")}}, ADD),
    "DeepCoder": ({"problem": "q", "tests": json.dumps([case("1 2", "3", "stdin_stdout")])}, SCRIPT),
}  # fmt: skip
WRONG = {SCRIPT: "print(7)", ADD: "def add(a, b): return '3'", METHOD: METHOD.replace("+", "-")}


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_a_right_program_is_right_and_a_wrong_one_wrong(code, name):
    row, program = UNDERSTOOD[name]
    tests = codeforces(row)["tests"]
    assert judged(code, program, tests).value == 1.0
    assert judged(code, WRONG[program], tests).value == 0.0


def test_all_tests_of_a_problem_count(code):
    row = public(case("1 2", "3"), private_test_cases=packed(json.dumps([case("2 2", "5")])))
    assert judged(code, SCRIPT, codeforces(row)["tests"]).value == 0.0
    given = {"input_output": both([["3"]], ["3"], fn_name="f")}  # the text, not the number
    assert judged(code, "def f(a): return a", codeforces(given)["tests"]).value == 1.0
    assert judged(code, "def f(a): return 3", codeforces(given)["tests"]).value == 0.0


class Planted:
    def __reduce__(self):
        return (exec, ("import pathlib; pathlib.Path('planted').write_text('x')",))


REFUSED = {
    "no tests": ({"problem": "q", "cases": [1]}, "no tests that are understood.* cases, problem; "),
    "no columns": ({}, "its columns are none"),
    "arguments without a function": ({"input_output": both([[1, 2]], [3])}, "no function that is"),
    "neither text nor lines": ({"input_output": both([{"a": 1}], ["1"])}, "neither text nor a list"),
    "no name": ({"input_output": both([[1]], [1], fn_name="f;import os")}, "no function's name"),
    "unequal lists": ({"input_output": both(["1"], [])}, "equally long and not empty"),
    "no JSON": ({"input_output": "{"}, "is not JSON"),
    "a checker": ({"official_tests": [case("1", "1")], "generated_checker": "x"}, "checker"),
    "a named file": ({"official_tests": [case("1", "1")], "input_mode": "file"}, "named file"),
    "a file of CodeContests": (
        {"public_tests": {"input": ["1"], "output": ["1"]}, "input_file": "a.in"}, "named file"),
    "another language": (
        {"verification_info": {"language": "cpp", "test_cases": [case("1", "1")]}}, "'cpp'"),
    "an answer": ({"reward_model": {"ground_truth": "42"}}, "it is '42'"),
    "mixed types": (public(case("1", "1"), case("1", "1", "functional")), "functional, stdin"),
    "a pickle of a list": (public(case("1", "1"), private_test_cases=packed([1])), "is not loaded"),
    "a planted pickle": (public(case("1", "1"), private_test_cases=packed(Planted())), "not loaded"),
    "no pickle": (public(case("1", "1"), private_test_cases="!!!"), "neither JSON nor JSON packed"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row, reason = REFUSED[name]
    with pytest.raises(DataError, match=f"^line 3.*{reason}"):
        codeforces(row, "line 3")
    assert not list(tmp_path.iterdir())  # nothing that a row holds was run


def test_functions_for_pytest(code):
    test = (
        "import pytest\nfrom solution import add as plus\n\ndef test_a():\n    assert plus(1, 2) == 3\n"
        "def test_b():\n    with pytest.raises(TypeError):\n        plus(1, None)\n"
    )
    tests = kodcode({"question": "q", "solution": ADD, "test": test})["tests"]
    assert judged(code, ADD, tests).value == 1.0
    assert judged(code, "def add(a, b): return 3", tests).value == 0.0
    assert judged(code, "def plus(a, b): return a + b", tests).value == 0.0
    for bad in ("def test_a(x): pass", "class TestA: pass", "x = 1", "def ("):
        with pytest.raises(DataError, match=r"^line 3: test "):
            kodcode({"question": "q", "test": bad}, "line 3")


def test_the_many_tests_of_mbpp_plus(code):
    row = {"prompt": "p", "code": ADD, "test_list": ["assert add(1, 2) == 3"]}
    row["test"] = "for i in range(5):\n    assert add(i, i) == 2 * i, i\n"
    tests = mbpp(row)["tests"]
    assert judged(code, ADD, tests).value == 1.0
    assert judged(code, "def add(a, b): return 3", tests).value == 0.0


def test_the_prompt_shows_what_has_to_be_completed():
    row = codeforces({"question": "Add.", "starter_code": "def add(a, b):\n",
                      "input_output": both([[1, 2]], [3])})  # fmt: skip
    assert row["prompt"] == "Add.\n\n```python\ndef add(a, b):\n```"
