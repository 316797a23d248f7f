"""Plain data as tagged JSON: what may cross between the tests and model code.

Values are rebuilt on the receiving side (`rebuild`) from their type tag, so what arrives is exactly
a value of Python's own (numbers, text, containers, exceptions, numpy arrays, the built-in types),
one of the library's (`values`), or an object of a class that both sides have (`classes`). A
subclass of one of them arrives as its base class and no object of the sender's making ever does:
an object whose `__eq__` always says yes cannot get across. Nothing is pickled.

What can be changed in place has a number (`Shared`), the same on both sides, so that one list
given twice arrives as one list, and changes made to it on the far side can be brought back.
"""

from __future__ import annotations

import builtins
import enum
from collections import (
    ChainMap,
    Counter,
    OrderedDict,
    UserDict,
    UserList,
    UserString,
    defaultdict,
    deque,
)
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

from grpo.rewards.code import raising, values
from grpo.rewards.code.classes import (
    NO_CLASSES,
    Classes,
    fields_of,
    follow,
    is_record,
    named_tuple_fields,
)
from grpo.rewards.sandbox.wire import WireError

MAX_DEPTH = 100  # nested containers of one value
MAX_NODES = 20_000  # nodes of one linked list or tree

TYPES: dict[str, type[Any]] = {n: t for n, t in vars(builtins).items() if isinstance(t, type)}
_TYPE_NAMES = {kind: name for name, kind in TYPES.items()}
VIEWS: dict[str, type[Any]] = {
    name: type(getattr(dict[str, int](), name)()) for name in ("keys", "values", "items")
}
# What can be changed in place, beside arrays, records and what wraps one of these.
CONTAINERS: tuple[type[Any], ...] = (list, dict, set, bytearray, deque)
# Wrappers: what they hold is another container.
WRAPPERS: dict[str, type[Any]] = {"UserDict": UserDict, "UserList": UserList, "ChainMap": ChainMap}
_AS_IT_IS = frozenset([str, bool, float, type(None)])  # JSON holds them as they are, and small ints
_LARGEST = 1 << 53
_RESERVED = object()


class Shared:
    """What one exchange holds that can be changed in place: object n is number n on both sides.

    Both sides number in the order in which they pack and unpack, so an index is all that travels.
    """

    def __init__(self) -> None:
        self.objects: list[Any] = []
        self._numbers: dict[int, int] = {}

    def number(self, value: Any) -> int | None:
        """The number of an object that is here already, else None."""
        return self._numbers.get(id(value))

    def add(self, value: Any) -> None:
        """Give an object the next number."""
        self._numbers[id(value)] = len(self.objects)
        self.objects.append(value)

    def first(self, count: int) -> Shared:
        """The first objects alone, for another exchange about them."""
        fewer = Shared()
        for value in self.objects[:count]:
            fewer.add(value)
        return fewer

    def reserve(self, count: int) -> int:
        """Set numbers aside for `replace`; the first of them."""
        self.objects += [_RESERVED] * count
        return len(self.objects) - count

    def replace(self, number: int, value: Any) -> None:
        """Put an object where its number was set aside."""
        self._numbers[id(value)] = number
        self.objects[number] = value

    def at(self, number: Any) -> Any:
        """The object with a number that came over the wire. Raises WireError if there is none."""
        if type(number) is not int or not 0 <= number < len(self.objects):
            raise WireError("a number that nothing has")
        if self.objects[number] is _RESERVED:
            raise WireError("a number of something unfinished")
        return self.objects[number]

    def contents(self) -> list[list[Any]]:
        """What each object holds now, one level deep."""
        return [_contents(value) for value in self.objects]


def _contents(value: Any) -> list[Any]:
    if isinstance(value, dict):
        pairs = cast("Any", dict).items(value)
        return [part for pair in pairs for part in pair]
    if isinstance(value, bytearray):
        return [bytes(value)]
    if isinstance(value, CONTAINERS):
        return list(cast("Iterable[Any]", value))
    if type(value).__module__ == "numpy":
        return [str(value.dtype), str(value.shape), value.tobytes()]
    return [part for field in fields_of(value) for part in field]


def _same(before: list[Any], after: list[Any]) -> bool:
    # by identity: 1, 1.0 and True are equal, and so may be anything of the program's making
    return len(before) == len(after) and all(
        old is new or (type(old) is type(new) and type(old) in (bytes, str) and old == new)
        for old, new in zip(before, after, strict=True)
    )


def pack(
    value: Any,
    opaque: Callable[[Any], Any] | None = None,
    shared: Shared | None = None,
    classes: Classes = NO_CLASSES,
) -> Any:
    """A value as tagged JSON. `opaque` turns anything else into JSON, or WireError is raised."""
    return _Packer(opaque, shared or Shared(), classes).pack(value, 0)


def pack_changes(
    before: list[list[Any]],
    opaque: Callable[[Any], Any],
    shared: Shared,
    classes: Classes = NO_CLASSES,
) -> list[list[Any]]:
    """[number, new contents] of each object of `shared` that no longer holds `before`.

    `before` is what `Shared.contents` gave; objects that were added since are left out.
    """
    packer = _Packer(opaque, shared, classes)
    changed: list[list[Any]] = []
    for number, old in enumerate(before):
        value = shared.objects[number]
        new = _contents(value)
        if _same(old, new):
            continue
        if type(value).__module__ == "numpy":
            new = [value.tolist()]
        changed.append([number, [packer.pack(part, 1) for part in new]])
    return changed


@dataclass(frozen=True, slots=True)
class _Packer:
    opaque: Callable[[Any], Any] | None
    shared: Shared
    classes: Classes

    def pack(self, value: Any, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise WireError("value nested too deeply")
        if value is None or value is True or value is False:
            return value
        kind = cast("type[Any]", type(value))
        known = self.classes.name_of(kind)
        if known is not None and isinstance(value, enum.Enum):
            return {"E": [known, value.name]}
        if issubclass(kind, int):
            number = int.__add__(value, 0)
            return number if -_LARGEST < number < _LARGEST else {"i": hex(number)}
        if issubclass(kind, float):
            return float.__pos__(value)
        if issubclass(kind, str):
            return str.__add__(value, "")
        if issubclass(kind, complex):
            return {"c": [float(value.real), float(value.imag)]}
        if issubclass(kind, bytes):
            return {"b": bytes.hex(value)}
        if issubclass(kind, tuple):
            items = self.all_of(_iterate(tuple, value), depth)
            fields = named_tuple_fields(cast("type[Any]", kind))
            return {"t": items} if fields is None else {"N": [kind.__name__[:80], fields, items]}
        if issubclass(kind, frozenset):
            return {"z": self.all_of(_iterate(frozenset, value), depth)}
        if issubclass(kind, CONTAINERS):
            return self.container(value, kind, depth)
        if kind.__module__ == "numpy" and hasattr(value, "tolist"):
            return self.array(value, depth)
        if known is not None and is_record(kind):
            return self.records(value, depth)
        found = self.other(value, kind, depth)
        if found is not None:
            return found
        if self.opaque is not None:
            return {"o": self.opaque(value)}
        raise WireError(f"{kind.__name__[:80]} is not plain data")

    def all_of(self, items: Iterable[Any], depth: int) -> list[Any]:
        items = list(items)
        if set(map(type, items)) <= _AS_IT_IS:
            return items
        return [self.pack(item, depth + 1) for item in items]

    def container(self, value: Any, kind: type[Any], depth: int) -> Any:
        """Anything that can be changed in place."""
        number = self.shared.number(value)
        if number is not None:
            return {"a": number}
        self.shared.add(value)
        if issubclass(kind, list):
            return self.all_of(_iterate(list, value), depth)
        if issubclass(kind, dict):
            return self.mapping(value, cast("type[Any]", kind), depth)
        if issubclass(kind, set):
            return {"s": self.all_of(_iterate(set, value), depth)}
        if issubclass(kind, deque):
            return {"q": [value.maxlen, self.all_of(_iterate(deque, value), depth)]}
        return {"B": bytes(value).hex()}

    def mapping(self, value: Any, kind: type[Any], depth: int) -> Any:
        """A dict, a Counter, an OrderedDict, or a defaultdict of a built-in type."""
        items = cast("Any", dict).items(value)
        pairs = [[self.pack(k, depth + 1), self.pack(v, depth + 1)] for k, v in items]
        factory: Any = getattr(value, "default_factory", None)
        if issubclass(kind, defaultdict) and type(factory) is type and factory in _TYPE_NAMES:
            return {"f": [_TYPE_NAMES[factory], pairs]}
        tag = "C" if issubclass(kind, Counter) else "O" if issubclass(kind, OrderedDict) else "d"
        return {tag: pairs}

    def array(self, value: Any, depth: int) -> Any:
        if getattr(value, "shape", ()) == ():
            return self.pack(value.tolist(), depth + 1)
        number = self.shared.number(value)
        if number is not None:
            return {"a": number}
        self.shared.add(value)
        return {"n": [str(value.dtype.str), self.pack(value.tolist(), depth + 1)]}

    def other(self, value: Any, kind: type[Any], depth: int) -> Any:
        """What else Python's own values are, None for what is none of them."""
        for name, view in VIEWS.items():
            if issubclass(kind, view):
                return {"v": [name, self.pack(dict(value.mapping), depth + 1)]}
        if kind is type and value in _TYPE_NAMES:
            return {"k": _TYPE_NAMES[value]}
        tag = values.tag_of(kind)
        if tag is not None:
            return {tag: self.all_of(values.FORMS[tag].take(value), depth)}
        if isinstance(value, BaseException):
            return {"e": raising.taken(value, lambda part: self.pack(part, depth + 1))}
        if issubclass(kind, UserString):
            return self.pack(value.data, depth + 1)
        for name, wrapper in WRAPPERS.items():
            if issubclass(kind, wrapper):
                held = value.maps if wrapper is ChainMap else value.data
                return {"w": [name, self.pack(held, depth + 1)]}
        for name, only in values.ONLY.items():
            if value is only:
                return {"1": name}
        return None

    def records(self, root: Any, depth: int) -> Any:
        """Objects of known classes that lead to one another: [class, [[attribute, value], …]]."""
        number = self.shared.number(root)
        if number is not None:
            return {"a": number}

        def found(record: Any) -> bool:
            new = self.shared.number(record) is None
            if new:
                self.shared.add(record)
            return new

        try:
            order = follow(root, self.classes, MAX_NODES, found)
        except (TypeError, OverflowError) as error:
            raise WireError(str(error)) from error
        return {"I": [self.record(record, depth) for record in order]}

    def record(self, record: Any, depth: int) -> list[Any]:
        fields = [[name, self.pack(part, depth + 1)] for name, part in fields_of(record)]
        return [type(record).__name__, fields]


def _iterate(base: Any, value: Any) -> Iterable[Any]:
    """The elements that really are in a container, whatever its subclass says."""
    return base.__iter__(value)
