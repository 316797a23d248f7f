"""Classes that both sides know by name: LeetCode's nodes, and what a row's setup defines.

An object of such a class crosses as what it holds and is made again from the receiver's own class:
the tests get the row's methods with plain data in them, never methods of the program's.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

from grpo.rewards.code.values import feigns

# Of these only the value and the links cross; whatever else a program notes in a node stays there.
LINKS = {"ListNode": ("next",), "TreeNode": ("left", "right")}
FIELDS = {name: ("val", *links) for name, links in LINKS.items()}
_NAMED = 100  # fields of a named tuple


class Classes:
    """The classes of one side that the other knows, too.

    namespace: where their names are looked up, since a program may define them once more.
    names: of the setup's classes.
    """

    def __init__(self, namespace: dict[str, Any], names: Iterable[str] = ()) -> None:
        self.namespace = namespace
        self.names = {*names, *LINKS}

    def name_of(self, kind: type[Any]) -> str | None:
        """The name by which a class of this side's is known on the other, None if it is not."""
        name = kind.__name__
        if name not in self.names:
            return None
        return name if name in LINKS or self.namespace.get(name) is kind else None

    def find(self, name: Any) -> type[Any]:
        """This side's class of a name. Raises LookupError and TypeError."""
        if name not in self.names:
            raise LookupError("a class that is not known")
        found = self.namespace[name]
        if not isinstance(found, type):
            raise TypeError("not a class")
        return cast("type[Any]", found)


NO_CLASSES = Classes({})


def is_record(kind: type[Any]) -> bool:
    """Whether objects of a class are made of attributes alone: not a list, a number, an Enum."""
    bases = [base for base in kind.__mro__ if base.__flags__ & 1 << 9 == 0]  # not of Python text
    return bases == [object] and not issubclass(kind, enum.Enum)


def fields_of(value: Any) -> list[tuple[str, Any]]:
    """(name, value) of each attribute that an object has of its own."""
    kind = cast("type[Any]", type(value))
    found: dict[str, Any] = dict(getattr(value, "__dict__", {}))
    names = FIELDS.get(kind.__name__)
    if names and ("val" in found or hasattr(value, "val")):
        return [(name, getattr(value, name, None)) for name in names]
    for name in _slots(kind):
        try:
            found[name] = object.__getattribute__(value, name)
        except AttributeError:
            continue
    return [(name, part) for name, part in found.items() if type(name) is str]


def _slots(kind: type[Any]) -> Iterator[str]:
    for base in kind.__mro__:
        slots: Any = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if not name.startswith("__"):
                yield name


def own_attributes(kind: type[Any], fields: Iterable[tuple[Any, Any]]) -> dict[str, Any]:
    """What of `fields` an object of a class may hold for itself.

    Nothing that would hide a method or property of the class, or feign one of plain data. Raises
    TypeError for what is no attribute's name.
    """
    found: dict[str, Any] = {}
    for name, part in fields:
        if type(name) is not str or name.startswith("__"):
            raise TypeError("not an attribute's name")
        hidden = cast("type[Any]", type(inspect.getattr_static(kind, name, None)))
        if not hasattr(hidden, "__get__") and not feigns(name, part):
            found[name] = part
    return found


def put_fields(value: Any, fields: Sequence[tuple[Any, Any]]) -> None:
    """Make an object hold these attributes and, but for nodes, no others; its class is not asked.

    Raises TypeError and AttributeError for a name that no attribute of its own may have.
    """
    kind = cast("type[Any]", type(value))
    slots = set(_slots(kind))
    inside = [(name, part) for name, part in fields if name in slots]
    own = own_attributes(kind, ((n, part) for n, part in fields if n not in slots))
    held: dict[str, Any] | None = getattr(value, "__dict__", None)
    if held is None and own:
        raise AttributeError("no such attribute")
    if held is not None and kind.__name__ not in FIELDS:
        held.clear()
    if held is not None:
        held.update(own)
    for name, part in inside:
        object.__setattr__(value, name, part)


def follow(root: Any, classes: Classes, most: int, found: Callable[[Any], bool]) -> list[Any]:
    """A record and those that its attributes lead to, each class of them known to both sides.

    found: notes one, False if it was there before. Raises OverflowError beyond `most` of them, and
    TypeError where a node's link leads to something else.
    """
    order: list[Any] = [root] if found(root) else []
    for record in order:
        links = LINKS.get(type(record).__name__)
        for name, part in fields_of(record):
            kind = cast("type[Any]", type(part))
            if links is not None and name in links:
                if part is None:
                    continue
                if kind.__name__ != type(record).__name__:
                    raise TypeError(f"a {type(record).__name__} leads to something else")
            elif classes.name_of(kind) is None or not is_record(kind):
                continue
            if found(part):
                order.append(part)
        if len(order) > most:
            raise OverflowError("too many nodes")
    return order


def named_tuple_fields(kind: type[Any]) -> tuple[str, ...] | None:
    """The fields of a named tuple's class, None if it is none."""
    fields: Any = getattr(kind, "_fields", None)
    if not issubclass(kind, tuple) or type(fields) is not tuple:
        return None
    names = cast("tuple[Any, ...]", fields)
    plain = all(type(name) is str and name.isidentifier() for name in names)
    return cast("tuple[str, ...]", names) if plain and len(names) <= _NAMED else None
