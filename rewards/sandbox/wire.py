"""What crosses between the host and its guests, and between guests: JSON behind its length.

Both ends agree on how Python's values are written in it (for programs, `code/plain`). Nothing is
pickled.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from typing import Any

MAX_FRAME = 1 << 24  # bytes of one message
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
