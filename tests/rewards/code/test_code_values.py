"""code: what may cross between the tests and the program, and what stays where it was made."""

# ruff: noqa: E501  (one program, one line)

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.rewards.code.plain import pack
from grpo.rewards.code.rebuild import unpack
from grpo.rewards.code.reward import Code
from grpo.rewards.code.stdio import same_output

from .coding import functional, judged, value


@pytest.fixture(scope="module")
def code():
    reward = Code(workers=1, timeout=5.0)
    yield reward
    reward.close()


VALUES = {
    "range(3)": "f() == range(3) and list(f()) == [0, 1, 2] and len(f()) == 3",
    "{'b': 2, 'a': 1}.items()": "sorted(f()) == [('a', 1), ('b', 2)]",
    "{'a': 1}.keys()": "f() == {'a'} and list(f()) == ['a']",
    "{'a': 1}.values()": "list(f()) == [1]",
    "deque([1, 2], maxlen=3)": "f() == deque([1, 2]) and f().maxlen == 3",
    "Counter('aab')": "f() == Counter('baa') and f().most_common(1) == [('a', 2)]",
    "OrderedDict(a=1, b=2)": "f() == OrderedDict(a=1, b=2) != OrderedDict(b=2, a=1)",
    "Decimal('1.50')": "f() == Decimal('1.5') and str(f()) == '1.50'",
    "Fraction(1, 3)": "f() == Fraction(2, 6)",
    "date(2024, 1, 2)": "f() == date(2024, 1, 2)",
    "datetime(2024, 1, 2, 3, tzinfo=timezone.utc)": "f().isoformat() == '2024-01-02T03:00:00+00:00'",
    "timedelta(hours=36)": "f() == timedelta(days=1, seconds=43200)",
    "time(1, 2)": "f() == time(1, 2)",
    "bytearray(b'x')": "f() == bytearray(b'x')",
    "numpy.arange(3, dtype='int8')": "f().dtype == 'int8' and f().tolist() == [0, 1, 2]",
    "(int, list, ValueError)": "f() == (int, list, ValueError)",
    "type('D', (Decimal,), {'__eq__': lambda s, o: True})('1.5')": "f() == Decimal('1.5')",
    "datetime(2024, 7, 1, tzinfo=ZoneInfo('UTC'), fold=1)": "f().utcoffset() == timedelta(0) and f().fold == 1",
    "timezone.utc": "f() == timezone.utc",
    "slice(1, 3)": "f() == slice(1, 3)",
    "(..., NotImplemented)": "f() == (..., NotImplemented)",
    "defaultdict(list, {1: [2]})": "f() == {1: [2]} and f()[3] == []",
    "ChainMap({1: 2}, {3: 4})": "dict(f()) == {1: 2, 3: 4}",
    "UserDict({1: 2})": "f() == {1: 2}",
    "MappingProxyType({1: 2})": "f() == {1: 2}",
    "SimpleNamespace(a=1)": "f() == SimpleNamespace(a=1) and f().a == 1",
    "namedtuple('P', 'x count')(1, 2)": "f() == (1, 2) and f().count == 2",
    "array('i', [1, 2])": "f() == array('i', [1, 2])",
    "memoryview(b'ab')": "f() == b'ab'",
    "re.search('(?<=b)a+', 'baab')": "f() and f().group() == 'aa' and f().span() == (1, 3)",
    "re.compile('A', re.I)": "f().pattern == 'A' and f().match('a')",
    "UUID(int=5)": "f() == UUID(int=5)",
    "Path('a/b')": "f() == Path('a') / 'b' and f().name == 'b'",
    "ip_address('1.2.3.4')": "f() == ip_address('1.2.3.4')",
    "-0.0": "str(f()) == '-0.0'",
    "filter(None, [0, 1])": "list(f()) == [1] and next(f()) == 1 and 1 in f()",
}
IMPORTS = (
    "from collections import *\nfrom decimal import *\nfrom fractions import *\n"
    "from datetime import *\nimport numpy, re\nfrom array import array\nfrom pathlib import Path\n"
    "from ipaddress import ip_address\nfrom types import *\nfrom uuid import UUID\n"
    "from zoneinfo import ZoneInfo\n"
)


@pytest.mark.parametrize("made", VALUES)
def test_a_value_arrives_as_it_was(code, made):
    program = f"{IMPORTS}def f(): return {made}"
    assert value(code, program, f"assert {VALUES[made]}", setup=IMPORTS) == 1.0
    assert value(code, "def f(): return None", f"assert {VALUES[made]}", setup=IMPORTS) == 0.0


def test_order_counts_where_it_counts_in_python(code):
    program = "from collections import OrderedDict\ndef f(): return OrderedDict(b=2, a=1)"
    test = "from collections import OrderedDict\nassert f() == OrderedDict(a=1, b=2)"
    assert value(code, program, test) == 0.0


def test_functions_of_the_library_may_be_given(code):
    program = "def f(g, a): return [g(x) for x in a]"
    assert value(code, program, "assert f(str, [1, 2]) == ['1', '2']") == 1.0
    assert value(code, program, "import math\nassert f(math.sqrt, [4]) == [2.0]") == 1.0
    assert (
        value(code, program, "assert f(str.upper, ['a']) == ['A'] and f(abs, [-1]) == [1]") == 1.0
    )


def test_exceptions_of_the_programs_own(code):
    program = (
        "class TooBig(Exception): pass\ndef f(x):\n    if x > 5: raise TooBig('x')\n    return x"
    )
    test = "try:\n    f(9)\n    text = ''\nexcept TooBig as error:\n    text = str(error)\nassert text == 'x'"
    assert value(code, program, test) == 1.0
    assert value(code, program.replace("raise TooBig", "raise ValueError"), test) == 0.0
    assert value(code, "class TooBig(Exception): pass\ndef f(x): return x", test) == 0.0
    assert value(code, "def f(x): raise KeyError('k')", "try:\n    f(1)\n    assert 0\n"
                 "except KeyError as error: assert error.args == ('k',)") == 1.0  # fmt: skip


VECTOR = (
    "class V:\n    def __init__(self, x): self.x = x\n"
    "    def __add__(self, o): return V(self.x + o.x)\n    def __mul__(self, k): return V(self.x * k)\n"
    "    def __eq__(self, o): return self.x == o.x\n    def __len__(self): return self.x\n"
    "    def __str__(self): return f'V({self.x})'\n    def __getitem__(self, i): return self.x + i\n"
    "    @property\n    def double(self): return 2 * self.x\n    def twin(self): return V(self.x)\n"
)


@pytest.mark.parametrize(
    "test",
    [
        "V(1) + V(2) == V(3) and V(1) != V(2)",
        "V(2) * 3 == V(6)",
        "len(V(4)) == 4 and str(V(4)) == 'V(4)' and V(4)[1] == 5",
        "V(3).double == 6 and V(3).x == 3",
        "V(3).twin() == V(3) and isinstance(V(3), V) and V(3) != None",
    ],
)
def test_objects_of_a_class_that_the_tests_make(code, test):
    assert functional(code, VECTOR, f"v = V(0)\nassert {test}") == 1.0
    wrong = "class V:\n    def __init__(self, x): self.x = 0\n    def __mul__(self, k): return 5"
    assert functional(code, wrong, f"v = V(0)\nassert {test}") == 0.0


TREE = (
    "class Leaf:\n    def __init__(self, x): self.x, self.next_one = x, None\n"
    "    def grown(self): return Leaf(self.x + 1)\n"
    "class Tree:\n    def __init__(self): self.root = Leaf(3)\n    def leaf(self): return self.root\n"
    "    @classmethod\n    def made(cls): return cls()\n"
    "import enum\nclass Color(enum.Enum):\n    RED = 3\n"
)


@pytest.mark.parametrize(
    "test",
    [
        "t.root.x == 3", "t.leaf().x == 3", "t.leaf().grown().x == 4", "Tree.made().root.x == 3",
        "t.root.next_one is None", "Color.RED.value == 3", "Color(3).name == 'RED'",
    ],
)  # fmt: skip
def test_objects_that_an_object_leads_to(code, test):
    defines = ["class Tree", "class Color"]
    tests = {"asserts": [f"t, c = Tree(), Color\nassert {test}"], "defines": defines}
    assert judged(code, TREE, tests).value == 1.0
    wrong = TREE.replace("3", "5").replace("None", "5").replace("RED", "BLUE")
    assert judged(code, wrong, tests).value == 0.0


MADE = (
    "from collections import OrderedDict, namedtuple\nfrom typing import NamedTuple\n"
    "class P(NamedTuple):\n    x: int\n    y: int = 2\n    def sum(self): return self.x + self.y\n"
    "class Lru(OrderedDict):\n    def put(self, k, v): self[k] = v\n"
    "class Stack(list):\n    def push(self, x): self.append(x)\n"
)


@pytest.mark.parametrize(
    "test",
    [
        "p.x == 1 and p.sum() == 3", "p == (1, 2) and p != (1, 3) and (1, 2) == p",
        "p[0] == 1 and list(p) == [1, 2] and p in [(1, 2)] and {(1, 2): 3}[p] == 3",
        "a.put(1, 5) is None and a[1] == 5 and a == {1: 5}",
        "(lambda x: Stack([x, x]) == [x, x] and s.push(x) is None and [x] == s)([1])",
        "s.push(7) is None and s.pop() == 7 and s == [] and len(s) == 0",
    ],
)  # fmt: skip
def test_containers_with_members_of_their_own(code, test):
    tests = {
        "asserts": [f"p, a, s = P(1), Lru(), Stack()\nassert {test}"],
        "defines": ["class P", "class Lru", "class Stack"],
    }
    assert judged(code, MADE, tests).value == 1.0
    wrong = MADE.replace("y: int = 2", "y: int = 4").replace("= v", "= k").replace("(x)", "(0)")
    assert judged(code, wrong.replace("x: int", "y_: int"), tests).value == 0.0


EQUAL = (
    "class Equal:\n    __eq__ = __lt__ = __contains__ = lambda s, o: True\n    __len__ = lambda s: 3\n"
    "    __sub__ = __rsub__ = lambda s, o: 0\n    __hash__ = lambda s: 3\n    __abs__ = lambda s: 0\n"
)


@pytest.mark.parametrize(
    "test",
    [
        "C().m() == 3", "3 == C().m()", "C().m() in [3]", "abs(C().m() - 3) < 1e-6",
        "len(C().m()) == 3", "3 in C().m()", "C().m() < 4", "C().m", "C().m().real == 3",
        "C().m().startswith('a')", "C().m().issubset([3])", "C().m().all()",
        "C() == 3", "C() in [3]", "{3: 1}[C()] == 1", "D() == 3", "3 == D()", "D() > 4", "abs(D() - 3) < 1e-6",
    ],
)  # fmt: skip
def test_an_object_that_is_always_equal_passes_for_no_value(code, test):
    program = f"{EQUAL}    startswith = issubset = all = lambda s, *o: True\nclass C(Equal):\n    def m(self): return Equal()\nclass D(Equal, int): pass"
    assert functional(code, program, f"c, d = C(), D()\nc.m()\nassert {test}") == 0.0


def test_a_coroutine_is_awaited_where_it_was_made(code):
    test = "import asyncio\nassert asyncio.run(f(3)) == 4"
    assert value(code, "async def f(x): return x + 1", test) == 1.0
    assert value(code, "async def f(x): return x", test) == 0.0


def test_modules_find_what_a_program_defines(code):
    program = (
        "from __future__ import annotations\nimport pickle\nfrom dataclasses import dataclass\n"
        "from typing import ClassVar\n@dataclass\nclass P:\n    x: int\n    k: ClassVar[int] = 2\n"
    )
    body = "pickle.loads(pickle.dumps(P(3))).x * P.k"
    assert value(code, f"{program}def f(): return {body}", "assert f() == 6") == 1.0
    stdio = {"stdio": [{"input": "", "output": "6\n"}]}
    assert judged(code, f"{program}print({body})", stdio).value == 1.0


def test_leetcodes_names_are_there_without_an_import(code):
    for names in (
        "gcd(n, 4) + comb(4, 2) + int(log2(8))", "len(ascii_lowercase) - 15",
        "deepcopy([n])[0] + xor(n, 11)", "bisect.bisect([1, 2], n) + 9 * (inf > n)",
        "int(mean([n])) + randint(1, 1)", "datetime.date(2024, 1, n).day + date.min.day",
        "sys.maxsize // maxsize + json.loads('10')", "reduce(operator.add, [n, 1])",
    ):  # fmt: skip
        program = f"class Solution:\n    def f(self, n): return {names}"
        test = "def check(c):\n    assert c(n=10) == 11\ncheck(Solution().f)"
        assert functional(code, program, test) == 1.0
    # Python's pow is not math's
    assert value(code, "def f(a): return pow(a, 2, 5)", "assert f(3) == 4") == 1.0


def test_numbers_in_outputs_are_written_as_programs_write_them():
    for printed in ("1_000", "\uff11000", "+-1000", "1000f", "0x3e8"):
        assert not same_output(printed, "1000", tolerance=1e-6)
    for printed in ("1000.0", "1e3", "+1000.", "1000.0000001"):
        assert same_output(printed, "1000", tolerance=1e-6)


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
TREES = st.recursive(
    LEAVES | st.fractions() | st.dates() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(TREES)
def test_plain_values_survive_the_wire(tree):
    back = unpack(pack(tree), list)
    assert back == tree
    assert repr(back) == repr(tree)
