"""Values of the standard library that cannot be changed, or need not be: each by a tag of its own.

A value crosses as the arguments that make it again, so that what arrives is exactly one of the
library's own: of a subclass only the base class does. Those that hold other values (a range, a
slice) take them through `pack` and `unpack`.
"""

from __future__ import annotations

import array
import contextlib
import datetime
import ipaddress
import pathlib
import re
import types
import uuid
import zoneinfo
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import cache
from typing import Any, cast

_LONGEST = 1 << 16  # characters of a pattern, a path, a zone


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """How one class crosses: what is taken from a value, and what makes it again from that."""

    kind: type[Any]
    take: Callable[[Any], Sequence[Any]]
    make: Callable[..., Any]
    exact: bool = False  # a subclass is something else


def _text(value: Any) -> Sequence[Any]:
    return [str(value)]


def _match(value: Any) -> Sequence[Any]:
    return [value.re, value.string, value.start(), value.endpos, list(map(list, value.regs))]


def _matched(pattern: Any, text: Any, start: int, end: int, spans: Any) -> Any:
    """The match again, found where it was. Raises ValueError if it is another one there."""
    if not isinstance(pattern, re.Pattern):
        raise TypeError("not a pattern")
    found: re.Match[Any] | None = cast("Any", pattern).match(text, start, end)
    if found is None or _match(found)[-1] != spans:
        raise ValueError("not such a match")
    return found


def _pattern(text: Any, flags: int) -> Any:
    if len(text) > _LONGEST:
        raise ValueError("a long pattern")
    return re.compile(text, flags)


def _short(make: Callable[[str], Any]) -> Callable[[Any], Any]:
    def made(text: Any) -> Any:
        if type(text) is not str or len(text) > _LONGEST:
            raise ValueError("not a short text")
        return make(text)

    return made


def _clock(value: Any) -> Sequence[Any]:
    return [value.hour, value.minute, value.second, value.microsecond, value.tzinfo, value.fold]


def _at_clock(kind: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *parts: kind(*parts[:-2], tzinfo=parts[-2], fold=parts[-1])


def _namespace(held: dict[str, Any]) -> types.SimpleNamespace:
    if any(feigns(name, value) for name, value in held.items()):
        raise TypeError("a function under the name of a member of plain data")
    return types.SimpleNamespace(**held)


# Subclasses come before their bases: a datetime is a date.
FORMS: dict[str, Form] = {
    "r": Form(kind=range, take=lambda v: [v.start, v.stop, v.step], make=range),
    "l": Form(kind=slice, take=lambda v: [v.start, v.stop, v.step], make=slice),
    "D": Form(kind=Decimal, take=lambda v: [Decimal.__str__(v)], make=_short(Decimal)),
    "F": Form(kind=Fraction, take=lambda v: [v.numerator, v.denominator], make=Fraction),
    "T": Form(
        kind=datetime.timedelta,
        take=lambda v: [v.days, v.seconds, v.microseconds],
        make=datetime.timedelta,
    ),
    "M": Form(
        kind=datetime.datetime,
        take=lambda v: [v.year, v.month, v.day, *_clock(v)],
        make=_at_clock(datetime.datetime),
    ),
    "Y": Form(kind=datetime.date, take=lambda v: [v.year, v.month, v.day], make=datetime.date),
    "H": Form(kind=datetime.time, take=_clock, make=_at_clock(datetime.time)),
    "Z": Form(
        kind=datetime.timezone,
        take=lambda v: [v.utcoffset(None)],
        make=datetime.timezone,
        exact=True,
    ),
    "W": Form(kind=zoneinfo.ZoneInfo, take=lambda v: [v.key], make=_short(zoneinfo.ZoneInfo)),
    "U": Form(kind=uuid.UUID, take=_text, make=_short(uuid.UUID)),
    "L": Form(kind=pathlib.PosixPath, take=_text, make=_short(pathlib.PosixPath)),
    "P": Form(kind=pathlib.PurePosixPath, take=_text, make=_short(pathlib.PurePosixPath)),
    "V": Form(kind=pathlib.PureWindowsPath, take=_text, make=_short(pathlib.PureWindowsPath)),
    "4": Form(kind=ipaddress.IPv4Address, take=_text, make=_short(ipaddress.IPv4Address)),
    "6": Form(kind=ipaddress.IPv6Address, take=_text, make=_short(ipaddress.IPv6Address)),
    "5": Form(kind=ipaddress.IPv4Network, take=_text, make=_short(ipaddress.IPv4Network)),
    "7": Form(kind=ipaddress.IPv6Network, take=_text, make=_short(ipaddress.IPv6Network)),
    "m": Form(kind=memoryview, take=lambda v: [bytes(v)], make=memoryview),
    "j": Form(kind=array.array, take=lambda v: [v.typecode, list(v)], make=array.array, exact=True),
    "p": Form(kind=re.Pattern, take=lambda v: [v.pattern, v.flags], make=_pattern),
    "h": Form(kind=re.Match, take=_match, make=_matched),
    "y": Form(kind=types.MappingProxyType, take=lambda v: [dict(v)], make=types.MappingProxyType),
    "g": Form(kind=types.SimpleNamespace, take=lambda v: [vars(v)], make=_namespace, exact=True),
}
# Values of which there is only one, by name.
ONLY: dict[str, Any] = {"...": ..., "NotImplemented": NotImplemented}


def tag_of(kind: type[Any]) -> str | None:
    """The tag of the form by which values of a class cross, None if there is none."""
    for tag, form in FORMS.items():
        if kind is form.kind or (not form.exact and issubclass(kind, form.kind)):
            return tag
    return None


@cache
def plain_members() -> frozenset[str]:
    """The names of all members of plain data. Those of LeetCode's nodes hold plain data only."""
    kinds: list[Any] = [str, bytes, bytearray, int, float, complex, list, tuple, dict, set]
    kinds += [frozenset, deque, Counter, OrderedDict, type(dict[str, int]().keys())]
    kinds += [range, Decimal, Fraction, datetime.datetime, datetime.time, datetime.timedelta]
    with contextlib.suppress(ImportError):
        import numpy

        kinds.append(numpy.ndarray)
    return frozenset(name for kind in kinds for name in dir(kind))


def feigns(name: str, value: Any) -> bool:
    """Whether an attribute would stand in for a method of plain data: `x.startswith` of no text.

    A record or an exception may have an attribute `count`, but none that can be called.
    """
    return callable(value) and name in plain_members()
