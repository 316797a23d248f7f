"""Plain data made again from tagged JSON, on the side that receives it (see `plain`).

What arrives was written by model code: every type is checked, and whatever else there is raises
WireError and changes nothing.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

from grpo.rewards.code import raising, values
from grpo.rewards.code.classes import (
    LINKS,
    NO_CLASSES,
    Classes,
    is_record,
    named_tuple_fields,
    put_fields,
)
from grpo.rewards.code.plain import CONTAINERS, TYPES, VIEWS, WRAPPERS, Shared
from grpo.rewards.sandbox.wire import WireError

# typed so that elements are of any kind
_LIST, _SET = list[Any], set[Any]
# dtypes of numbers; any other array is rebuilt from its elements
_DTYPE = re.compile(r"[<>|=][biufc]\d{1,2}")
# Raised by Decimal and Fraction, by endless nesting, by an array without numpy, by a pattern.
_RARE = (ArithmeticError, RecursionError, ImportError, re.error)
_MALFORMED = (TypeError, ValueError, AttributeError, LookupError, *_RARE)


def unpack(
    packed: Any,
    opaque: Callable[[Any], Any],
    classes: Classes = NO_CLASSES,
    shared: Shared | None = None,
    exceptions: Mapping[str, type[Any]] | None = None,
) -> Any:
    """The value behind tagged JSON. `exceptions`: classes of exceptions of the sender's own.

    Raises WireError for anything malformed (unhashable keys included).
    """
    try:
        return _Unpacker(opaque, classes, shared or Shared(), exceptions or {}).unpack(packed)
    except _MALFORMED as error:
        raise WireError("malformed value") from error


def unpack_changes(
    changed: Any, count: int, opaque: Callable[[Any], Any], classes: Classes, shared: Shared
) -> Callable[[], None]:
    """What `pack_changes` made, checked: a function that carries it out on this side's objects.

    Only objects below `count` may change. Raises WireError for anything malformed, and nothing
    has been changed then.
    """
    unpacker = _Unpacker(opaque, classes, shared, {})
    new: list[Callable[[], None]] = []
    try:
        for number, parts in cast("list[Any]", _exact(changed, list)):
            if not 0 <= _exact(number, int) < count:
                raise WireError("a change of nothing that was given")
            held = [unpacker.unpack(part) for part in _exact(parts, list)]
            new.append(_change(shared.objects[number], held))
    except _MALFORMED as error:
        raise WireError("malformed change") from error

    def carry_out() -> None:
        for change in new:
            change()

    return carry_out


def _change(value: Any, parts: list[Any]) -> Callable[[], None]:
    """A function that makes an object hold `parts`, as `Shared.contents` lists them."""
    if isinstance(value, bytearray):
        (held,) = (_exact(part, bytes) for part in parts)
        return lambda: value.__setitem__(slice(None), held)
    if isinstance(value, list):
        return lambda: cast("Any", value).__setitem__(slice(None), parts)
    if isinstance(value, CONTAINERS):
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
    if type(value).__module__ != "numpy":
        fields = list(zip(parts[::2], parts[1::2], strict=True))
        kind = cast("type[Any]", type(value))
        _check_links(kind, fields)
        put_fields(object.__new__(kind), fields)  # it would raise here
        return lambda: put_fields(value, fields)
    import numpy

    array = numpy.asarray(parts[0])
    if array.shape != value.shape:
        raise WireError("an array of another shape")
    return lambda: value.__setitem__(..., array)


def _check_links(kind: Any, fields: list[tuple[Any, Any]]) -> None:
    """Raises WireError where a node of LeetCode's would lead to something else."""
    links = LINKS.get(kind.__name__, ())
    if any(part is not None and type(part) is not kind for name, part in fields if name in links):
        raise WireError("a node leads to something else")


def _exact(value: Any, kind: type[Any]) -> Any:
    if type(value) is not kind:
        raise WireError("malformed value")
    return value


@lru_cache(maxsize=256)
def _named_tuple(name: str, fields: tuple[str, ...]) -> Any:
    return namedtuple(name if name.isidentifier() else "Row", fields)  # type: ignore[reportUntypedNamedTuple]


@dataclass(frozen=True, slots=True)
class _Unpacker:
    opaque: Callable[[Any], Any]
    classes: Classes
    shared: Shared
    exceptions: Mapping[str, type[Any]]

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
            case "f":
                factory, pairs = body
                return self.mapping(defaultdict[Any, Any](TYPES[factory]), pairs)
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
            case "I":
                return self.records(body)
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
        """Python's own values that cannot be changed, or only through what they hold."""
        match tag:
            case "v":
                name, held = body
                return getattr(_exact(self.unpack(held), dict), name if name in VIEWS else "")()
            case "k":
                return TYPES[body]
            case "1":
                return values.ONLY[body]
            case "N":
                return self.named_tuple(*body)
            case "E":
                name, member = body
                return cast("Any", self.classes.find(name))[_exact(member, str)]
            case "w":
                name, held = body
                inner = self.unpack(held)
                return WRAPPERS[name](*inner) if name == "ChainMap" else WRAPPERS[name](inner)
            case "e":
                found = raising.made(body, self.exceptions, self.unpack)
                return Exception(*body[:2]) if found is None else found
            case _:
                form = values.FORMS.get(tag)
                if form is None:
                    raise WireError(f"unknown tag {tag[:20]!r}")
                return form.make(*self.all_of(body))

    def named_tuple(self, name: Any, fields: Any, items: Any) -> Any:
        parts = self.all_of(items)
        names = tuple(_exact(field, str) for field in _exact(fields, list))
        if len(names) != len(parts) or len(names) > 100:
            raise WireError("malformed value")
        if any(values.feigns(*pair) for pair in zip(names, parts, strict=True)):
            raise WireError("a function under the name of a member of plain data")
        kind = self.classes.find(name) if name in self.classes.names else None
        if kind is None or named_tuple_fields(kind) != names:
            kind = _named_tuple(_exact(name, str), names)
        return cast("Any", tuple).__new__(kind, parts)

    def records(self, body: Any) -> Any:
        first = self.shared.reserve(len(_exact(body, list)))
        made: list[Any] = []
        for name, _ in body:
            kind = self.classes.find(name)
            if not is_record(kind):
                raise WireError("not a class of records")
            made.append(object.__new__(kind))
        for number, record in enumerate(made, first):
            self.shared.replace(number, record)
        for record, (_, held) in zip(made, body, strict=True):
            fields = [(field, self.unpack(part)) for field, part in held]
            _check_links(cast("type[Any]", type(record)), fields)
            put_fields(record, fields)
        return made[0]
