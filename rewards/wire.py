"""What crosses between host, tests and model code: length-framed JSON holding plain data only.

Values are rebuilt on the receiving side from their type tag, so what arrives is exactly bool, int,
float, complex, str, bytes, list, tuple, dict, set, frozenset or None. A subclass of one of them
arrives as its base class and no object of the sender's making ever does: an object whose `__eq__`
always says yes cannot get across. Nothing is pickled.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Callable, Iterable
from typing import Any, cast

MAX_FRAME = 1 << 24  # bytes of one message
MAX_DEPTH = 100  # nested containers of one value
MAX_NODES = 20_000  # nodes of one linked list or tree
_HEADER = struct.Struct("=I")


class WireError(Exception):
    """A message that breaks the protocol, or a value that is not plain data."""


def send(channel: socket.socket, message: Any) -> None:
    """Write one message. Raises WireError when it is too long, OSError when nobody listens."""
    body = json.dumps(message).encode("ascii")
    if len(body) > MAX_FRAME:
        raise WireError("message too long")
    channel.sendall(_HEADER.pack(len(body)) + body)


def receive(channel: socket.socket, deadline: float | None = None) -> Any:
    """Read one message, until time.monotonic() passes `deadline`.

    Raises EOFError when the sender is gone, TimeoutError, and WireError for anything malformed.
    """
    (length,) = _HEADER.unpack(_exactly(channel, _HEADER.size, deadline))
    if length > MAX_FRAME:
        raise WireError("message too long")
    try:
        return json.loads(_exactly(channel, length, deadline))
    except (ValueError, RecursionError) as error:
        raise WireError("malformed message") from error


def _exactly(channel: socket.socket, count: int, deadline: float | None) -> bytes:
    parts: list[bytes] = []
    while count:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            channel.settimeout(left)
        part = channel.recv(min(count, 1 << 16))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def pack(value: Any, opaque: Callable[[Any], Any] | None = None, depth: int = 0) -> Any:
    """A value as tagged JSON. `opaque` turns anything else into JSON, or WireError is raised."""
    if depth > MAX_DEPTH:
        raise WireError("value nested too deeply")
    if value is None or value is True or value is False:
        return value
    kind = cast("type[Any]", type(value))
    if issubclass(kind, int):
        number = int.__add__(value, 0)
        return number if -(1 << 53) < number < 1 << 53 else {"i": hex(number)}
    if issubclass(kind, float):
        return float.__add__(value, 0.0)
    if issubclass(kind, str):
        return str.__add__(value, "")
    if issubclass(kind, complex):
        return {"c": [float(value.real), float(value.imag)]}
    if issubclass(kind, bytes | bytearray):
        return {"b": bytes(value).hex()}

    def all_of(items: Iterable[Any]) -> list[Any]:
        return [pack(item, opaque, depth + 1) for item in items]

    if issubclass(kind, list):
        return all_of(_iterate(list, value))
    for tag, base in (("t", tuple), ("s", set), ("z", frozenset)):
        if issubclass(kind, base):
            return {tag: all_of(_iterate(base, value))}
    if issubclass(kind, dict):
        return {"d": [all_of(pair) for pair in cast("Any", dict).items(value)]}
    if kind.__module__ == "numpy" and hasattr(value, "tolist"):
        shape = getattr(value, "shape", ())
        packed = pack(value.tolist(), opaque, depth + 1)
        return {"n": packed} if shape != () else packed
    if kind.__name__ in ("ListNode", "TreeNode"):
        return _pack_nodes(value, kind.__name__, opaque, depth)
    if opaque is not None:
        return {"o": opaque(value)}
    raise WireError(f"{kind.__name__} is not plain data")


def _iterate(base: Any, value: Any) -> Iterable[Any]:
    """The elements that really are in a container, whatever its subclass says."""
    return base.__iter__(value)


def _pack_nodes(root: Any, name: str, opaque: Callable[[Any], Any] | None, depth: int) -> Any:
    """A LeetCode list or tree: values with the indices of their successors."""
    links = ("next",) if name == "ListNode" else ("left", "right")
    order: list[Any] = [root]
    index = {id(root): 0}
    for node in order:
        for link in links:
            child = getattr(node, link, None)
            if child is not None and id(child) not in index:
                index[id(child)] = len(order)
                order.append(child)
        if len(order) > MAX_NODES:
            raise WireError("too many nodes")

    def packed(node: Any) -> list[Any]:
        children = [getattr(node, link, None) for link in links]
        return [
            pack(getattr(node, "val", None), opaque, depth + 1),
            *(None if child is None else index[id(child)] for child in children),
        ]

    return {name: [packed(node) for node in order]}


def unpack(packed: Any, opaque: Callable[[Any], Any], classes: dict[str, Any]) -> Any:
    """The value behind tagged JSON. `classes` may hold ListNode and TreeNode.

    Raises WireError for anything malformed (unhashable keys included).
    """
    if packed is None or isinstance(packed, bool | int | float | str):
        return packed
    if isinstance(packed, list):
        return [unpack(item, opaque, classes) for item in cast("list[Any]", packed)]
    try:
        ((tag, body),) = cast("dict[str, Any]", packed).items()
        match tag:
            case "i":
                return int(body, 16)
            case "c":
                return complex(*body)
            case "b":
                return bytes.fromhex(body)
            case "t":
                return tuple(unpack(item, opaque, classes) for item in body)
            case "s":
                return {unpack(item, opaque, classes) for item in body}
            case "z":
                return frozenset(unpack(item, opaque, classes) for item in body)
            case "d":
                return {unpack(k, opaque, classes): unpack(v, opaque, classes) for k, v in body}
            case "n":
                import numpy

                return numpy.array(unpack(body, opaque, classes))
            case "o":
                return opaque(body)
            case "ListNode" | "TreeNode":
                return _unpack_nodes(tag, body, opaque, classes)
            case _:
                raise WireError(f"unknown tag {tag!r}")
    except (TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
        raise WireError("malformed value") from error


def _unpack_nodes(name: str, body: Any, opaque: Callable[[Any], Any], classes: Any) -> Any:
    nodes = [classes[name](unpack(value, opaque, classes)) for value, *_ in body]
    links = ("next",) if name == "ListNode" else ("left", "right")
    for node, (_, *children) in zip(nodes, body, strict=True):
        for link, child in zip(links, children, strict=True):
            setattr(node, link, None if child is None else nodes[child])
    return nodes[0]
