"""The tests' view of the program: stubs whose members and operators ask its process.

What may be done with an object there, and what is refused here, because an object of the program's
making could answer whatever pleases the tests.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partialmethod
from typing import TYPE_CHECKING, Any, NoReturn, cast

from grpo.rewards.code.plain import Shared
from grpo.rewards.code.values import plain_members

if TYPE_CHECKING:
    from grpo.rewards.code.asking import Asker

# What may be done with an object of a class that the tests make: name -> function. The program's
# process looks them up here, too.
_UNARY = ("neg", "pos", "abs", "invert")
_BINARY = ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow")
_BITWISE = ("lshift", "rshift", "and_", "or_", "xor")
_IN_PLACE = tuple(f"i{name.rstrip('_')}" for name in (*_BINARY, *_BITWISE))
ARITHMETIC = frozenset([*_UNARY, *_BINARY, *_BITWISE])
COMPARISONS = frozenset(["eq", "ne", "lt", "le", "gt", "ge"])
_MADE = ARITHMETIC | {*_IN_PLACE}  # of these an object that comes back is one that was made
_FUNCTIONS = (
    bool, complex, delattr, divmod, float, format, hash, int, isinstance, issubclass, iter, len,
    repr, reversed, round, setattr, str,
)  # fmt: skip
_ITEMS = ("contains", "getitem", "setitem", "delitem", "index")
OPERATIONS: dict[str, Callable[..., Any]] = {
    name: getattr(operator, name) for name in (*ARITHMETIC, *_IN_PLACE, *COMPARISONS, *_ITEMS)
} | {function.__name__: function for function in _FUNCTIONS}


class CandidateError(Exception):
    """The candidate ended, broke the protocol, or raised something that tests must not catch."""


def target_of(remote: Remote) -> list[Any]:
    """Where the program's process finds the object: its number or name, then attributes."""
    # An accessor on Remote would hide a member of that name in the program.
    return cast("Any", remote)._Remote__target


def label_of(remote: Remote) -> str:
    """What its process says of the object's class: "module:name"."""
    return cast("Any", remote)._Remote__label


class Remote:
    """Something in the program's process. Anything can be called, and iterated if it can be there.

    What a function returned has to be plain data where the tests use it as such: it has no truth
    value, equals nothing but itself, compares with nothing and has no member that plain data has:
    all of these raise. A member that no plain data has (`.root`, `.area()`) is the program's own.
    An object `made` by calling a class in the tests is under test itself: its members and operators
    are the program's, but it compares only with other objects of the program's; with plain data
    only as the plain data that it is, where it is a container with members of its own.
    """

    __slots__ = ("__asker", "__label", "__made", "__target")
    __asker: Asker
    __target: list[Any]
    __made: bool
    __label: str

    def __init__(
        self, asker: Asker, target: list[Any], made: bool = False, label: str = ""
    ) -> None:
        put = object.__setattr__
        put(self, "_Remote__asker", asker)
        put(self, "_Remote__target", target)
        put(self, "_Remote__made", made)
        put(self, "_Remote__label", label)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if not self.__made and type(self.__target[0]) is int and name in plain_members():
            self.__refuse()
        request = {"do": "get", "target": self.__target, "name": name}
        return self.__asker.ask(request, Shared())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        root, *path = self.__target
        made = isinstance(root, str) and not path and root in self.__asker.made_by
        return self.__invoke(self.__target, args, kwargs, made)

    def __invoke(self, target: list[Any], args: Any, kwargs: Any, made: bool = False) -> Any:
        shared = Shared()
        packed = self.__asker.packed((args, kwargs), shared)
        request = {"do": "call", "target": target, "arguments": packed, "keep": made}
        return self.__asker.ask(request, shared, len(shared.objects), made)

    def __member(self, name: str, *args: Any) -> Any:
        """A special method, by name. What it returns may be the object itself."""
        value = self.__invoke([*self.__target, name], args, {})
        return self if isinstance(value, Remote) and target_of(value) == self.__target else value

    def __iter__(self) -> Any:
        return self.__asker.go_on("iter", self.__target)

    def __next__(self) -> Any:
        return self.__asker.go_on("next", self.__target)

    def __reversed__(self) -> Any:
        return self.__apply("reversed", self)

    def __aiter__(self) -> Any:
        return self.__member("__aiter__")

    async def __anext__(self) -> Any:
        try:
            return self.__asker.go_on("anext", self.__target)
        except StopIteration:
            raise StopAsyncIteration from None

    def __enter__(self) -> Any:
        return self.__member("__enter__")

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        swallowed = self.__member("__exit__", kind, error, None)
        return swallowed is True and _raised_by_the_test(error, trace)

    async def __aenter__(self) -> Any:
        return await self.__member("__aenter__")

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> bool:
        swallowed = await self.__member("__aexit__", kind, error, None)
        return swallowed is True and _raised_by_the_test(error, trace)

    def __contains__(self, item: Any) -> bool:
        if self.__made:
            return self.__apply("contains", self, item, kind=bool)
        return any(part == item for part in self)

    def __refuse(self) -> NoReturn:
        self.__asker.beyond(self)
        raise CandidateError("the candidate returned something that is not plain data")

    def __apply(self, name: str, *operands: Any, kind: type[Any] | None = None) -> Any:
        """What an operation comes to. `kind`: it has to be exactly of this class."""
        value = self.__asked(name, *operands) if self.__made else self.__refuse()
        return value if kind is None or type(value) is kind else self.__refuse()

    def __asked(self, name: str, *operands: Any) -> Any:
        shared = Shared()
        packed = self.__asker.packed(operands, shared)
        request = {"do": "apply", "name": name, "arguments": packed}
        return self.__asker.ask(request, shared, len(shared.objects), name in _MADE)

    def __compare(self, name: str, other: Any) -> Any:
        if other is None and self.__made and name in ("eq", "ne"):
            return name == "ne"
        if not isinstance(other, Remote):
            self.__asker.comparable(other)
            # it may be plain data too: a named tuple, a list with methods of its own
            value = self.__asker.go_on("self", self.__target) if self.__made else self
            return OPERATIONS[name](value, other) if value is not self else self.__refuse()
        if not self.__made and not other.__made and name in ("eq", "ne"):
            # the same object or another: no more than any constant of a program's could say
            return (self.__target == other.__target) is (name == "eq")
        by: Remote = self if self.__made else other
        return by.__apply(name, self, other, kind=bool)

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, Remote) and self.__asked("isinstance", value, self) is True

    def __subclasscheck__(self, value: Any) -> bool:
        return isinstance(value, Remote) and self.__asked("issubclass", value, self) is True

    def __len__(self) -> int:
        if not self.__made:  # list() asks everything that it iterates for its length
            raise TypeError("the candidate returned something that is not plain data")
        return self.__apply("len", self, kind=int)

    def __shown(self, name: str, *how: str) -> str:
        return self.__apply(name, self, *how, kind=str) if self.__made else object.__repr__(self)

    def __own(self, kind: type[Any] | None, name: str, *others: Any) -> Any:
        return self.__apply(name, self, *others, kind=kind)

    def __reflected(self, name: str, other: Any) -> Any:
        return self.__apply(name, other, self)

    __eq__ = partialmethod(__compare, "eq")  # pyright: ignore[reportAssignmentType]
    __ne__ = partialmethod(__compare, "ne")  # pyright: ignore[reportAssignmentType]
    __lt__ = partialmethod(__compare, "lt")
    __le__ = partialmethod(__compare, "le")
    __gt__ = partialmethod(__compare, "gt")
    __ge__ = partialmethod(__compare, "ge")
    __bool__ = partialmethod(__own, bool, "bool")
    __int__ = partialmethod(__own, int, "int")
    __float__ = partialmethod(__own, float, "float")
    __complex__ = partialmethod(__own, complex, "complex")
    __index__ = partialmethod(__own, int, "index")
    __hash__ = partialmethod(__own, int, "hash")  # pyright: ignore[reportAssignmentType]
    __str__ = partialmethod(__shown, "str")  # pyright: ignore[reportAssignmentType]
    __repr__ = partialmethod(__shown, "repr")  # pyright: ignore[reportAssignmentType]
    __format__ = partialmethod(__shown, "format")  # pyright: ignore[reportAssignmentType]
    __round__ = partialmethod(__own, None, "round")
    __divmod__ = partialmethod(__own, None, "divmod")
    __rdivmod__ = partialmethod(__reflected, "divmod")
    __setattr__ = partialmethod(__own, None, "setattr")  # pyright: ignore[reportAssignmentType]
    __delattr__ = partialmethod(__own, None, "delattr")  # pyright: ignore[reportAssignmentType]
    __getitem__ = partialmethod(__own, None, "getitem")
    __setitem__ = partialmethod(__own, None, "setitem")
    __delitem__ = partialmethod(__own, None, "delitem")


def _raised_by_the_test(error: BaseException | None, trace: Any) -> bool:
    """Whether an exception comes from a `raise` in the tests' own text, within the `with` block.

    What else goes wrong there, a failed assert above all, no program may swallow.
    """
    if error is None or isinstance(error, AssertionError) or trace.tb_next is not None:
        return False
    return _is_raise(trace.tb_frame.f_code, trace.tb_lasti)


def _is_raise(code: Any, at: int) -> bool:
    import dis

    found = next((part for part in dis.get_instructions(code) if part.offset == at), None)
    return found is not None and found.opname == "RAISE_VARARGS"


_own, _reflected = (vars(Remote)[f"_Remote__{_name}"] for _name in ("own", "reflected"))
for _name in ARITHMETIC:
    _plain = _name.rstrip("_")
    setattr(Remote, f"__{_plain}__", partialmethod(_own, None, _name))
    if _name not in _UNARY:
        setattr(Remote, f"__r{_plain}__", partialmethod(_reflected, _name))
        setattr(Remote, f"__i{_plain}__", partialmethod(_own, None, f"i{_plain}"))
