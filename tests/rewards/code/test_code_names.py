"""code: which names of the tests are the program's. All the others are Python's or the tests'."""

from __future__ import annotations

import pytest

from grpo.rewards.code.reward import Code

from .coding import functional, judged, value


@pytest.fixture(scope="module")
def code():
    reward = Code(workers=1, timeout=5.0)
    yield reward
    reward.close()


# the program under a name that Python, or the prelude, has too: (right, wrong, asserts)
NOTHING = "x = 1"
NAMESAKES = {
    "sum": ("def sum(a, b): return a + b", "def sum(a, b): return a", "sum(2, 3) == 5"),
    "max": ("def max(a): return a[0]", "def max(a): return a[1]", "max([1, 2]) == 1"),
    "sorted": ("def sorted(a): return a", "def sorted(a): return []", "sorted([2, 1]) == [2, 1]"),
    "merge": ("def merge(a, b): return a + b", NOTHING, "sorted(merge([2], [1])) == [1, 2]"),
    "permutations": (
        "def permutations(a): return [a]",
        NOTHING,
        "list(permutations([1])) == [[1]]",
    ),
    "accumulate": ("def accumulate(a): return a", NOTHING, "list(accumulate([1, 2])) == [1, 2]"),
    "reduce": ("def reduce(a, b): return a - b", NOTHING, "reduce(5, 3) == 2"),
    "count": ("def count(s, c): return 7", NOTHING, "count('a', 'b') == 7"),
    "is_same_tree": ("def is_same_tree(a, b): return 3", NOTHING, "is_same_tree(None, None) == 3"),
}


@pytest.mark.parametrize("name", NAMESAKES)
def test_the_tests_call_the_programs_own_namesake(code, name):
    right, wrong, test = NAMESAKES[name]
    assert value(code, right, f"assert {test}") == 1.0
    assert value(code, wrong, f"assert {test}") == 0.0
    assert value(code, "def other(): pass", f"assert {test}") == 0.0


@pytest.mark.parametrize(
    "test",
    [
        "assert set(f([1, 1])) == {1}",
        "assert len(f([1, 1])) == 2",
        "assert sorted(f([2, 1])) == [1, 2]",
        "import math\nassert math.isclose(sum(f([1, 2])), 3)",
        "assert abs(sum(f([1, 2])) - 3) < 1e-9 and print() is None",
    ],
)
def test_nothing_else_comes_from_the_program(code, test):
    cheats = "def {0}(*a, **k): return {1}\n"
    others = [
        ("len", 2),
        ("set", "{1}"),
        ("sorted", "[1, 2]"),
        ("sum", 3),
        ("abs", 0),
        ("print", 0),
    ]
    shadows = "".join(cheats.format(*other) for other in others)
    assert value(code, f"{shadows}def f(x): return x", test) == 1.0
    assert value(code, f"{shadows}def f(x): return [9]", test) == 0.0
    assert (
        value(code, f"class math:\n    isclose = abs\n{shadows}def f(x): return [9]", test) == 0.0
    )


def test_a_module_or_a_constant_beside_a_namesake_is_not_meant(code):
    # dist is math's, too; nobody imports math here
    for test in ("assert math.isclose(dist(3), 3.0)", "assert dist(pi) == pi"):
        assert value(code, "def dist(x): return x", test) == 1.0
        assert value(code, "def dist(x): return -x", test) == 0.0
        assert value(code, "x = 1", test) == 0.0


def test_the_setups_helper_wins_over_the_programs(code):
    tests = {"asserts": ["assert f(1) == helper(1)"], "setup": "def helper(x): return x + 1"}
    assert judged(code, "def helper(x): return None\ndef f(x): return None", tests).value == 0.0
    assert judged(code, "def f(x): return helper(x)", tests).value == 1.0


def test_a_reference_says_which_names_are_the_programs(code):
    # two of Python's own names: only the reference tells which is meant
    test = "assert set(max(1)) == {1}"
    right = "def max(x): return {1, 1}"
    assert judged(code, right, {"asserts": [test]}).status == "unparseable_gold"
    assert value(code, right, test, defines=["max"]) == 1.0
    assert value(code, "x = 1", test, defines=["max"]) == 0.0
    assert judged(code, right, {"asserts": [test]}, canonical_solution=right).value == 1.0
    assert value(code, right, test, entry_point="max") == 1.0


def test_classes_that_the_tests_make_come_from_the_program(code):
    pair = "class Pair:\n    def __init__(self, a, b): self.a, self.b = a, b\n"
    # itertools has a chain, too: there only the reference can tell
    for name, defines in (("total", None), ("chain", ["chain", "class Pair"])):
        right = f"{pair}def {name}(pairs, n): return sum(p.a for p in pairs) + n"
        test = f"assert {name}([Pair(1, 2), Pair(3, 4)], 2) == 6"
        assert value(code, right, test, defines=defines) == 1.0
        assert value(code, f"{pair}def {name}(pairs, n): return n", test, defines=defines) == 0.0
    counter = (
        "class Counter:\n    def __init__(self, n): self.n = n\n    def add(self, k): self.n += k"
    )
    design = "c = Counter(5)\nc.add(2)\nassert c.n == 7"
    assert functional(code, counter, design) == 1.0
    assert functional(code, counter.replace("+= k", "+= 1"), design) == 0.0


def test_a_setup_may_make_the_programs_objects(code):
    node = "class Node:\n    def __init__(self, data): self.data, self.left = data, None\n"
    height = node + "def height(n): return 0 if n is None else 1 + height(n.left)"
    tests = {"setup": "root = Node(1)\nroot.left = Node(2)"} | {
        "asserts": ["assert (height(root)) == 2", "assert height(root.left) == 1"]
    }
    assert judged(code, height, tests).value == 1.0
    assert judged(code, node + "def height(n): return 2", tests).value == 0.0
    assert judged(code, "def height(n): return 2", tests).value == 0.0


def test_several_functions_of_the_program(code):
    both = "def encode(s): return s[::-1]\ndef decode(s): return s[::-1]"
    tests = ["assert encode('ab') == 'ba'", "assert decode('ba') == 'ab'"]
    assert value(code, both, *tests, "assert decode(encode('x')) == 'x'") == 1.0
    assert value(code, "def encode(s): return s[::-1]", *tests) == 0.0


@pytest.mark.parametrize(
    ("test", "reason"),
    [
        ("assert allclose(f(1), 1)", "allclose"),  # a helper that the row forgot
        ("assert np.allclose(f(1), 1)", "np"),
        ("assert f(1) == EXPECTED", "EXPECTED"),
        ("assert decode(encode(1)) == 1", "decode"),
        ("assert sum(sorted([1])) == 1", "sorted, sum"),  # which of the two?
        ("assert 1 == 1", "no name"),
    ],
)
def test_what_cannot_be_told_is_not_guessed(code, test, reason):
    program = "class np: allclose = lambda *a: True\nallclose = np.allclose\ndef f(x): return 0"
    score = judged(code, program, {"asserts": [test]})
    assert (score.value, score.status) == (None, "unparseable_gold")
    assert reason in score.detail


def test_tests_that_never_reach_the_program_are_unscored(code):
    for test in ("assert callable(f)", "assert f", "assert 1 == 2 and f(1)"):
        score = judged(code, "def f(x): return x", {"asserts": [test]})
        assert (score.value, score.status) == (None, "unparseable_gold")


def test_only_the_body_of_the_function_asked_for(code):
    tests = {
        "setup": 'def inc(x: int) -> int:\n    """Add one."""\n',
        "check": "def check(candidate):\n    assert candidate(1) == 2 and candidate(-1) == 0",
        "entry_point": "inc",
    }
    assert judged(code, "    return x + 1", tests).value == 1.0
    assert judged(code, "    if x > 5:\n        return x + 1\n    return x + 1", tests).value == 1.0
    assert judged(code, "    return x", tests).value == 0.0
    assert judged(code, "    return x +", tests).value == 0.0
