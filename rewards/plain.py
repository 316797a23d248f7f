"""Plain data as tagged JSON: what may cross between the tests and model code.

Values are rebuilt on the receiving side from their type tag, so what arrives is exactly a value of
Python's own (numbers, text, containers, dates, ranges, views, numpy arrays, the built-in types) or
one of LeetCode's nodes. A subclass of one of them arrives as its base class and no object of the
sender's making ever does: an object whose `__eq__` always says yes cannot get across. Nothing is
pickled.

What can be changed in place has a number (`Shared`), the same on both sides, so that one list
given twice arrives as one list, and changes made to it on the far side can be brought back.
"""

from __future__ import annotations

import builtins
import datetime
import re
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any, cast

MAX_DEPTH = 100  # nested containers of one value
MAX_NODES = 20_000  # nodes of one linked list or tree


class WireError(Exception):
    """A message that breaks the protocol, or a value that is not plain data."""


TYPES: dict[str, type[Any]] = {n: t for n, t in vars(builtins).items() if isinstance(t, type)}
_TYPE_NAMES = {kind: name for name, kind in TYPES.items()}
_VIEWS: dict[str, type[Any]] = {
    name: type(getattr(dict[str, int](), name)()) for name in ("keys", "values", "items")
}
# What can be changed in place, beside arrays and nodes; typed so that elements are of any kind.
_LIST, _SET = list[Any], set[Any]
_CONTAINERS: tuple[type[Any], ...] = (list, dict, set, bytearray, deque)
_LINKS = {"ListNode": ("next",), "TreeNode": ("left", "right")}
_AS_IT_IS = frozenset([str, bool, float, type(None)])  # JSON holds them as they are, and small ints
_LARGEST = 1 << 53
# dtypes of numbers; any other array is rebuilt from its elements
_DTYPE = re.compile(r"[<>|=][biufc]\d{1,2}")


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
    if isinstance(value, _CONTAINERS):
        return list(cast("Iterable[Any]", value))
    if links := _LINKS.get(type(value).__name__):
        return [getattr(value, "val", None), *(getattr(value, link, None) for link in links)]
    return [str(value.dtype), str(value.shape), value.tobytes()]  # an array


def _same(before: list[Any], after: list[Any]) -> bool:
    # by identity: 1, 1.0 and True are equal, and so may be anything of the program's making
    return len(before) == len(after) and all(
        old is new or (type(old) is type(new) and type(old) in (bytes, str) and old == new)
        for old, new in zip(before, after, strict=True)
    )


def pack(
    value: Any, opaque: Callable[[Any], Any] | None = None, shared: Shared | None = None
) -> Any:
    """A value as tagged JSON. `opaque` turns anything else into JSON, or WireError is raised."""
    return _Packer(opaque, shared or Shared()).pack(value, 0)


def pack_changes(
    before: list[list[Any]], opaque: Callable[[Any], Any], shared: Shared
) -> list[list[Any]]:
    """[number, new contents] of each object of `shared` that no longer holds `before`.

    `before` is what `Shared.contents` gave; objects that were added since are left out.
    """
    packer = _Packer(opaque, shared)
    changed: list[list[Any]] = []
    for number, old in enumerate(before):
        value = shared.objects[number]
        new = _contents(value)
        if _same(old, new):
            continue
        if isinstance(value, bytearray):
            new = [bytes(value)]
        elif type(value).__module__ == "numpy":
            new = [value.tolist()]
        changed.append([number, [packer.pack(part, 1) for part in new]])
    return changed


class _Packer:
    def __init__(self, opaque: Callable[[Any], Any] | None, shared: Shared) -> None:
        self.opaque = opaque
        self.shared = shared

    def pack(self, value: Any, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise WireError("value nested too deeply")
        if value is None or value is True or value is False:
            return value
        kind = cast("type[Any]", type(value))
        if issubclass(kind, int):
            return _integer(int.__add__(value, 0))
        if issubclass(kind, float):
            return float.__add__(value, 0.0)
        if issubclass(kind, str):
            return str.__add__(value, "")
        if issubclass(kind, complex):
            return {"c": [float(value.real), float(value.imag)]}
        if issubclass(kind, bytes):
            return {"b": bytes.hex(value)}
        for tag, base in (("t", tuple), ("z", frozenset)):
            if issubclass(kind, base):
                return {tag: self.all_of(_iterate(base, value), depth)}
        if issubclass(kind, _CONTAINERS):
            return self.container(value, kind, depth)
        if kind.__module__ == "numpy" and hasattr(value, "tolist"):
            return self.array(value, depth)
        if kind.__name__ in _LINKS:
            return self.nodes(value, kind, depth)
        found = self.other(value, kind, depth)
        if found is not None:
            return found
        if self.opaque is not None:
            return {"o": self.opaque(value)}
        raise WireError(f"{kind.__name__[:80]} is not plain data")

    def all_of(self, items: Iterable[Any], depth: int) -> list[Any]:
        items = list(items)
        kinds = set(map(type, items))
        if kinds <= _AS_IT_IS:
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
            tag = (
                "C" if issubclass(kind, Counter) else "O" if issubclass(kind, OrderedDict) else "d"
            )
            pairs = cast("Any", dict).items(value)
            return {tag: [[self.pack(k, depth + 1), self.pack(v, depth + 1)] for k, v in pairs]}
        if issubclass(kind, set):
            return {"s": self.all_of(_iterate(set, value), depth)}
        if issubclass(kind, deque):
            return {"q": [value.maxlen, self.all_of(_iterate(deque, value), depth)]}
        return {"B": bytes(value).hex()}

    def array(self, value: Any, depth: int) -> Any:
        if getattr(value, "shape", ()) == ():
            return self.pack(value.tolist(), depth + 1)
        number = self.shared.number(value)
        if number is not None:
            return {"a": number}
        self.shared.add(value)
        return {"n": [str(value.dtype.str), self.pack(value.tolist(), depth + 1)]}

    def other(self, value: Any, kind: type[Any], depth: int) -> Any:
        """Python's own values that cannot be changed, None for what is none of them."""
        if kind is range:
            return {"r": [_integer(end) for end in (value.start, value.stop, value.step)]}
        for name, view in _VIEWS.items():
            if issubclass(kind, view):
                return {"v": [name, self.pack(dict(value.mapping), depth + 1)]}
        if kind is Decimal:
            return {"D": str(value)}
        if kind is Fraction:
            return {"F": [_integer(value.numerator), _integer(value.denominator)]}
        if kind is datetime.timedelta:
            return {"T": [value.days, value.seconds, value.microseconds]}
        if kind is datetime.date:
            return {"Y": [value.year, value.month, value.day]}
        if kind in (datetime.datetime, datetime.time) and (
            isinstance(value.tzinfo, datetime.timezone | None)
        ):
            offset = None if value.tzinfo is None else value.utcoffset().total_seconds()
            clock = [value.hour, value.minute, value.second, value.microsecond]
            if kind is datetime.time:
                return {"H": [offset, *clock]}
            return {"M": [offset, value.year, value.month, value.day, *clock]}
        if isinstance(value, type) and value in _TYPE_NAMES:
            return {"k": _TYPE_NAMES[value]}
        return None

    def nodes(self, root: Any, kind: type[Any], depth: int) -> Any:
        """A LeetCode list or tree: values with the numbers of their successors."""
        number = self.shared.number(root)
        if number is not None:
            return {"a": number}
        links = _LINKS[kind.__name__]
        order: list[Any] = []

        def found(node: Any) -> None:
            if node is not None and self.shared.number(node) is None:
                if type(node).__name__ != kind.__name__:
                    raise WireError(f"a {kind.__name__} leads to something else")
                self.shared.add(node)
                order.append(node)

        found(root)
        for node in order:
            for link in links:
                found(getattr(node, link, None))
            if len(order) > MAX_NODES:
                raise WireError("too many nodes")
        return {kind.__name__: [self.node(node, links, depth) for node in order]}

    def node(self, node: Any, links: Sequence[str], depth: int) -> list[Any]:
        children = [getattr(node, link, None) for link in links]
        numbers = [None if child is None else self.shared.number(child) for child in children]
        return [self.pack(getattr(node, "val", None), depth + 1), *numbers]


def _integer(number: int) -> Any:
    return number if -_LARGEST < number < _LARGEST else {"i": hex(number)}


def _iterate(base: Any, value: Any) -> Iterable[Any]:
    """The elements that really are in a container, whatever its subclass says."""
    return base.__iter__(value)


def unpack(
    packed: Any,
    opaque: Callable[[Any], Any],
    classes: dict[str, Any],
    shared: Shared | None = None,
) -> Any:
    """The value behind tagged JSON. `classes` may hold ListNode and TreeNode.

    Raises WireError for anything malformed (unhashable keys included).
    """
    try:
        return _Unpacker(opaque, classes, shared or Shared()).unpack(packed)
    except _MALFORMED as error:
        raise WireError("malformed value") from error


def unpack_changes(
    changed: Any,
    count: int,
    opaque: Callable[[Any], Any],
    classes: dict[str, Any],
    shared: Shared,
) -> Callable[[], None]:
    """What `pack_changes` made, checked: a function that carries it out on this side's objects.

    Only objects below `count` may change. Raises WireError for anything malformed, and nothing
    has been changed then.
    """
    unpacker = _Unpacker(opaque, classes, shared)
    new: list[Callable[[], None]] = []
    try:
        for number, parts in cast("list[Any]", _exact(changed, list)):
            if not 0 <= _exact(number, int) < count:
                raise WireError("a change of nothing that was given")
            values = [unpacker.unpack(part) for part in _exact(parts, list)]
            new.append(_change(shared.objects[number], values))
    except _MALFORMED as error:
        raise WireError("malformed change") from error

    def carry_out() -> None:
        for change in new:
            change()

    return carry_out


def _change(value: Any, parts: list[Any]) -> Callable[[], None]:
    """A function that makes an object hold `parts`, as `_contents` lists them."""
    if isinstance(value, bytearray):
        (held,) = (_exact(part, bytes) for part in parts)
        return lambda: value.__setitem__(slice(None), held)
    if isinstance(value, list):
        return lambda: cast("Any", value).__setitem__(slice(None), parts)
    if isinstance(value, _CONTAINERS):
        pairs: dict[Any, Any] = {}
        if isinstance(value, dict):
            pairs.update(zip(parts[::2], parts[1::2], strict=True))
        elif isinstance(value, set):
            set(parts)  # an element that cannot be in one is found now

        def refill() -> None:
            held = cast("Any", value)
            held.clear()
            if isinstance(value, deque):
                held.extend(parts)
            else:
                held.update(pairs if isinstance(value, dict) else parts)

        return refill
    if links := _LINKS.get(type(value).__name__):
        held, *children = parts
        if any(child is not None and type(child) is not type(value) for child in children):
            raise WireError("a node leads to something else")
        fields = list(zip(("val", *links), [held, *children], strict=True))

        def relink() -> None:
            for name, part in fields:
                setattr(value, name, part)

        return relink
    import numpy

    array = numpy.asarray(parts[0])
    if array.shape != value.shape:
        raise WireError("an array of another shape")
    return lambda: value.__setitem__(..., array)


def _exact(value: Any, kind: type[Any]) -> Any:
    if type(value) is not kind:
        raise WireError("malformed value")
    return value


# Of Decimal and Fraction, of something nested without end, of an array where there is no numpy.
_RARE = (ArithmeticError, RecursionError, ImportError)
_MALFORMED = (TypeError, ValueError, AttributeError, LookupError, *_RARE)


class _Unpacker:
    def __init__(
        self, opaque: Callable[[Any], Any], classes: dict[str, Any], shared: Shared
    ) -> None:
        self.opaque = opaque
        self.classes = classes
        self.shared = shared

    def unpack(self, packed: Any) -> Any:
        if packed is None or isinstance(packed, bool | int | float | str):
            return packed
        if isinstance(packed, list):
            return self.filled(_LIST(), packed, _LIST.extend)
        ((tag, body),) = cast("dict[str, Any]", packed).items()
        match tag:
            case "a":
                return self.shared.at(body)
            case "i":
                return int(body, 16)
            case "c":
                real, imaginary = (_exact(part, float) for part in body)
                return complex(real, imaginary)
            case "b":
                return bytes.fromhex(body)
            case "t":
                return tuple(self.all_of(body))
            case "z":
                return frozenset(self.all_of(body))
            case "s":
                return self.filled(_SET(), body, _SET.update)
            case "d" | "C" | "O":
                return self.mapping({"d": dict, "C": Counter, "O": OrderedDict}[tag](), body)
            case "q":
                most, items = body
                return self.filled(deque[Any](maxlen=most), items, deque[Any].extend)
            case "B":
                held = bytearray.fromhex(body)
                self.shared.add(held)
                return held
            case "n":
                return self.array(*body)
            case "o":
                return self.opaque(body)
            case "ListNode" | "TreeNode":
                return self.nodes(tag, body)
            case _:
                return self.other(tag, body)

    def all_of(self, items: Any) -> list[Any]:
        if {list, dict}.isdisjoint(map(type, _exact(items, list))):
            return list(items)
        return [self.unpack(item) for item in items]

    def filled(self, empty: Any, items: Any, fill: Callable[[Any, Any], Any]) -> Any:
        """A container, numbered before its elements, which may hold the container itself."""
        self.shared.add(empty)
        fill(empty, self.all_of(items))
        return empty

    def mapping(self, empty: Any, pairs: Any) -> Any:
        self.shared.add(empty)
        for key, value in pairs:
            key = self.unpack(key)
            empty[key] = self.unpack(value)
        return empty

    def array(self, dtype: Any, items: Any) -> Any:
        import numpy

        place = self.shared.reserve(1)
        plain = _DTYPE.fullmatch(_exact(dtype, str))
        value = numpy.array(self.unpack(items), dtype=dtype if plain else None)
        self.shared.replace(place, value)
        return value

    def other(self, tag: str, body: Any) -> Any:
        """Python's own values that cannot be changed."""
        match tag:
            case "r":
                return range(*map(self.unpack, body))
            case "v":
                name, held = body
                return getattr(_exact(self.unpack(held), dict), name if name in _VIEWS else "")()
            case "D":
                return Decimal(_exact(body, str))
            case "F":
                return Fraction(*map(self.unpack, body))
            case "T":
                return datetime.timedelta(*body)
            case "Y":
                return datetime.date(*body)
            case "H" | "M":
                offset, *fields = body
                zone = None
                if offset is not None:
                    zone = datetime.timezone(datetime.timedelta(seconds=offset))
                kind = datetime.time if tag == "H" else datetime.datetime
                return kind(*fields, tzinfo=zone)
            case "k":
                return TYPES[body]
            case _:
                raise WireError(f"unknown tag {tag[:20]!r}")

    def nodes(self, name: str, body: Any) -> Any:
        first = self.shared.reserve(len(_exact(body, list)))
        made = [self.classes[name](self.unpack(value)) for value, *_ in body]
        for number, node in enumerate(made, first):
            self.shared.replace(number, node)
        for node, (_, *children) in zip(made, body, strict=True):
            for link, child in zip(_LINKS[name], children, strict=True):
                after = None if child is None else self.shared.at(child)
                if after is not None and type(after) is not type(node):
                    raise WireError("a node leads to something else")
                setattr(node, link, after)
        return made[0]
