"""The tests' view of the program: stubs that send requests to its process and get plain data back.

Requests are {"do": "call" | "get" | "apply" | "next" | "iter" | "await" | "self" | "kinds", …}. An
answer is {"returned", "changed"}, {"raised", "changed"}, {"callable"} or {"stopped"}. Whatever else
comes back is the program's fault: it raises here, in the test that asked.
"""

from __future__ import annotations

import builtins
import contextlib
import datetime
import importlib
import operator
import socket
import types
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from functools import cache
from typing import Any, NoReturn, cast

from grpo.rewards import wire

# Exceptions a candidate may raise in the tests. Control flow (StopIteration would end a loop over
# `map(candidate, …)` early, and pass it) and exits are not among them.
_EXCEPTIONS = """
ArithmeticError AssertionError AttributeError BufferError EOFError IndexError KeyError LookupError
MemoryError NameError NotImplementedError OSError OverflowError RecursionError RuntimeError
TypeError UnicodeError ValueError ZeroDivisionError
"""
PASSED_ON = frozenset(_EXCEPTIONS.split())
LONGEST = 200  # characters of an exception's text
# What may be done with an object of a class that the tests make: name -> function. The program's
# process looks them up here, too.
_UNARY = ("neg", "pos", "abs", "invert")
_BINARY = ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow")
_BITWISE = ("lshift", "rshift", "and_", "or_", "xor")
ARITHMETIC = frozenset([*_UNARY, *_BINARY, *_BITWISE])
COMPARISONS = frozenset(["eq", "ne", "lt", "le", "gt", "ge"])
OPERATIONS: dict[str, Callable[..., Any]] = {
    name: getattr(operator, name)
    for name in (*ARITHMETIC, *COMPARISONS, "contains", "getitem", "setitem", "delitem", "index")
} | {
    function.__name__: function
    for function in (bool, float, hash, int, isinstance, iter, len, repr, round, setattr, str)
}


class CandidateError(Exception):
    """The candidate ended, broke the protocol, or raised something that tests must not catch."""


class TestsError(Exception):
    """The tests themselves cannot be run."""


def describe(error: BaseException) -> tuple[str, str]:
    """The name of an exception, as far up as tests may catch it, and its text."""
    name = type(error).__name__[:80]
    for base in type(error).__mro__:
        if base.__name__ in PASSED_ON and getattr(builtins, base.__name__, None) is base:
            name = base.__name__
            break
    try:
        text = str.__str__(str(error))[:LONGEST]
    except BaseException:
        text = ""
    return name, text


class Asker:
    """One end of the channel to the program, and what the tests know of the objects there."""

    def __init__(self, channel: socket.socket, namespace: dict[str, Any]) -> None:
        self.channel = channel
        self.namespace = namespace
        self.asked = 0  # requests the tests made: before the first, no failure is the program's
        self.broken = ""  # why the tests cannot be run
        self.classes: frozenset[str] = frozenset()  # names of classes that the tests make
        self.made: dict[int, Remote] = {}  # by number: objects of classes that the tests make
        self.origins: dict[int, tuple[wire.Shared, int]] = {}  # what its call was given
        self.exceptions: dict[str, type[Exception]] = {}  # classes of the program's own

    def ask(
        self, request: dict[str, Any], shared: wire.Shared, count: int = 0, made: bool = False
    ) -> Any:
        """What the program answers. The first `count` objects of `shared` take on its changes.

        made: an object that comes back is one of a class that the tests make.
        """
        self.asked += 1
        wire.send(self.channel, request)
        answer = wire.receive(self.channel)
        if not isinstance(answer, dict):
            raise CandidateError("malformed answer")
        answer = cast("dict[str, Any]", answer)

        def opaque(body: Any) -> Any:
            return self._object(body, shared, count, made)

        if "stopped" in answer:
            raise StopIteration
        if "callable" in answer:
            return Remote(self, [*request["target"], request["name"]])
        changes = wire.unpack_changes(
            answer.get("changed", []), count, opaque, self.namespace, shared
        )
        if "returned" in answer:
            value = wire.unpack(answer["returned"], opaque, self.namespace, shared)
            changes()
            return value
        changes()
        raise self._error(answer.get("raised"))

    def define(self, names: Sequence[str], classes: Sequence[str]) -> None:
        """Put what the program defines under `names` into the tests' namespace.

        Its exceptions become classes of the tests' own, so that they can be caught.
        """
        self.classes = frozenset(classes)
        bases: Any = (
            self.ask({"do": "kinds", "names": [*classes]}, wire.Shared()) if classes else []
        )
        self.asked = 0
        if type(bases) is not list or len(cast("list[Any]", bases)) != len(classes):
            raise CandidateError("malformed answer")
        for name, base in zip(classes, cast("list[Any]", bases), strict=True):
            if base is not None:
                parent: Any = getattr(builtins, base) if base in PASSED_ON else Exception
                self.exceptions[name] = cast("type[Exception]", type(name, (parent,), {}))
        self.place(names)

    def place(self, names: Sequence[str]) -> None:
        """Put stubs for `names` into the tests' namespace, over whatever is there."""
        for name in names:
            self.namespace[name] = self.exceptions.get(name) or Remote(self, [name])

    def _object(self, body: Any, shared: wire.Shared, count: int, made: bool) -> Any:
        number, kind = body
        if type(number) is not int or number < 0:
            raise CandidateError("malformed answer")
        self.origins.setdefault(number, (shared, count))
        if kind == "coroutine":
            return self._awaited(number)
        if made and number not in self.made:
            self.made[number] = Remote(self, [number], made=True)
        # not `or`: an object that was made has a truth value of the program's
        return self.made[number] if number in self.made else Remote(self, [number])

    async def _awaited(self, number: int) -> Any:
        return self.go_on("await", [number])

    def go_on(self, do: str, target: list[Any]) -> Any:
        """Go on with what a call began: the call's arguments may change once more."""
        origin, count = self.origins.get(target[0], (wire.Shared(), 0))
        return self.ask({"do": do, "target": target}, origin.first(count), count)

    def _error(self, raised: Any) -> Exception:
        """The exception to raise for what the program says that it raised."""
        try:
            name, text, classes, packed = raised
            own = [self.exceptions[n] for n in classes if n in self.exceptions]
            arguments = wire.unpack(packed, list, {}) if packed is not None else [text]
            if not all(type(part) is str for part in (name, text)):
                raise CandidateError("malformed answer")
            if not own and name not in PASSED_ON:
                return CandidateError(f"{name[:80]}: {text[:LONGEST]}")
            kind = own[0] if own else getattr(builtins, name)
            try:
                return kind(*arguments)
            except Exception:
                return kind(text)
        except (TypeError, ValueError, wire.WireError) as error:
            raise CandidateError("malformed answer") from error

    def packed(self, values: Any, shared: wire.Shared) -> Any:
        """What a test gives, as plain data."""
        try:
            return wire.pack(values, self.own_object, shared)
        except wire.WireError as error:
            if not self.asked:  # nothing of the program's is in it
                self.broken = f"a test passes what cannot be sent: {error}"
            raise

    def own_object(self, value: Any) -> Any:
        """How a test names to the program what is not plain data."""
        if isinstance(value, Remote):
            return _target_of(value)
        if isinstance(value, BaseException | types.CoroutineType):
            raise CandidateError("the candidate's exception or coroutine cannot be given back")
        library = _library_name(value)
        if library is None:
            self.broken = f"a test passes a {type(value).__name__}, which is not plain data"
            raise TestsError(self.broken)
        return library


def _target_of(remote: Remote) -> list[Any]:
    # An accessor on Remote would hide a member of that name in the program.
    return cast("Any", remote)._Remote__target


def _library_name(value: Any) -> dict[str, str] | None:
    """Where the program's process finds a function of the standard library."""
    holder = getattr(value, "__objclass__", value)  # str.upper, list.append
    module, name = getattr(holder, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or module in ("tests", "__main__"):
        return None
    try:
        found = operator.attrgetter(name)(importlib.import_module(module))
    except (ImportError, AttributeError):
        return None
    return {"module": module, "name": name} if found is value else None


@cache
def _plain_members() -> frozenset[str]:
    """The names of all members of plain data. Those of LeetCode's nodes hold plain data only."""
    kinds: list[Any] = [str, bytes, bytearray, int, float, complex, list, tuple, range, dict]
    kinds += [
        set,
        frozenset,
        deque,
        Counter,
        OrderedDict,
        Decimal,
        Fraction,
        type(dict[str, int]().keys()),
    ]
    kinds += [datetime.datetime, datetime.time, datetime.timedelta]
    with contextlib.suppress(ImportError):
        import numpy

        kinds.append(numpy.ndarray)
    return frozenset(name for kind in kinds for name in dir(kind))


class Remote:
    """Something in the program's process. Anything can be called, and iterated if it can be there.

    What a function returned has to be plain data where the tests use it as such: it has no truth
    value, equals nothing, compares with nothing and has no member that plain data has: all of these
    raise. A member that no plain data has (`.root`, `.area()`) is the program's own. An object
    `made` by calling a class in the tests is under test itself: its members and operators are the
    program's, but it compares only with other objects of the program's; with plain data only as the
    plain data that it is, where it is a container with members of its own.
    """

    __slots__ = ("__asker", "__made", "__target")
    __asker: Asker
    __target: list[Any]
    __made: bool

    def __init__(self, asker: Asker, target: list[Any], made: bool = False) -> None:
        put = object.__setattr__
        put(self, "_Remote__asker", asker)
        put(self, "_Remote__target", target)
        put(self, "_Remote__made", made)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if not self.__made and type(self.__target[0]) is int and name in _plain_members():
            self.__refuse()
        request = {"do": "get", "target": self.__target, "name": name}
        return self.__asker.ask(request, wire.Shared())

    def __setattr__(self, name: str, value: Any) -> None:
        self.__apply("setattr", self, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        shared = wire.Shared()
        packed = self.__asker.packed((args, kwargs), shared)
        root, *path = self.__target
        made = isinstance(root, str) and not path and root in self.__asker.classes
        request = {"do": "call", "target": self.__target, "arguments": packed, "keep": made}
        return self.__asker.ask(request, shared, len(shared.objects), made)

    def __iter__(self) -> Any:
        return self.__asker.go_on("iter", self.__target)

    def __next__(self) -> Any:
        return self.__asker.go_on("next", self.__target)

    def __contains__(self, item: Any) -> bool:
        if self.__made:
            return self.__exactly(bool, "contains", self, item)
        return any(part == item for part in self)

    def __refuse(self) -> NoReturn:
        raise CandidateError("the candidate returned something that is not plain data")

    def __apply(self, name: str, *operands: Any) -> Any:
        if not self.__made:
            self.__refuse()
        shared = wire.Shared()
        packed = self.__asker.packed(operands, shared)
        request = {"do": "apply", "name": name, "arguments": packed}
        return self.__asker.ask(request, shared, len(shared.objects), name in ARITHMETIC)

    def __exactly(self, kind: type[Any], name: str, *operands: Any) -> Any:
        value = self.__apply(name, *operands)
        return value if type(value) is kind else self.__refuse()

    def __compare(self, name: str, other: Any) -> Any:
        if other is None and self.__made and name in ("eq", "ne"):
            return name == "ne"
        if not isinstance(other, Remote):
            # it may be plain data too: a named tuple, a list with methods of its own
            value = self.__asker.go_on("self", self.__target) if self.__made else self
            return OPERATIONS[name](value, other) if value is not self else self.__refuse()
        by: Remote = self if self.__made else other
        return by.__exactly(bool, name, self, other)

    def __instancecheck__(self, value: Any) -> bool:
        if not isinstance(value, Remote) or not value.__made:
            return False
        return value.__exactly(bool, "isinstance", value, self)

    def __eq__(self, other: object) -> Any:
        return self.__compare("eq", other)

    def __ne__(self, other: object) -> Any:
        return self.__compare("ne", other)

    def __lt__(self, other: Any) -> Any:
        return self.__compare("lt", other)

    def __le__(self, other: Any) -> Any:
        return self.__compare("le", other)

    def __gt__(self, other: Any) -> Any:
        return self.__compare("gt", other)

    def __ge__(self, other: Any) -> Any:
        return self.__compare("ge", other)

    def __bool__(self) -> bool:
        return self.__exactly(bool, "bool", self)

    def __hash__(self) -> int:
        return self.__exactly(int, "hash", self)

    def __len__(self) -> int:
        if not self.__made:  # list() asks everything that it iterates for its length
            raise TypeError("the candidate returned something that is not plain data")
        return self.__exactly(int, "len", self)

    def __str__(self) -> str:
        return self.__exactly(str, "str", self) if self.__made else object.__repr__(self)

    def __repr__(self) -> str:
        return self.__exactly(str, "repr", self) if self.__made else object.__repr__(self)

    def __int__(self) -> int:
        return self.__exactly(int, "int", self)

    def __float__(self) -> float:
        return self.__exactly(float, "float", self)

    def __index__(self) -> int:
        return self.__exactly(int, "index", self)

    def __round__(self, *digits: Any) -> Any:
        return self.__apply("round", self, *digits)

    def __getitem__(self, key: Any) -> Any:
        return self.__apply("getitem", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.__apply("setitem", self, key, value)

    def __delitem__(self, key: Any) -> None:
        self.__apply("delitem", self, key)


def _operator(name: str, reflected: bool) -> Callable[..., Any]:
    def method(self: Remote, *others: Any) -> Any:
        operands = (*others, self) if reflected else (self, *others)
        return cast("Any", self)._Remote__apply(name, *operands)

    return method


for _name in ARITHMETIC:
    _plain = _name.rstrip("_")
    setattr(Remote, f"__{_plain}__", _operator(_name, reflected=False))
    if _name not in _UNARY:
        setattr(Remote, f"__r{_plain}__", _operator(_name, reflected=True))
