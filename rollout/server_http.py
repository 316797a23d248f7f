"""JSON over HTTP to one server, with the two ways it goes wrong kept apart.

`Unreachable` says that nobody knows what became of the call (no connection, or no whole answer in
time); `Refused` that the server answered, and not with success.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from grpo.errors import RecipeError


class Unreachable(Exception):
    """No whole answer came."""


class Refused(Exception):
    """The server answered with status `status` and text `reason`."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"status {status}: {reason}")
        self.status = status


@dataclass(frozen=True, kw_only=True)
class Address:
    """A server's address, and the key it wants ("": none)."""

    url: str
    key: str = ""

    def connect(self, timeout: float) -> http.client.HTTPConnection:
        """A connection, not yet opened. Raises RecipeError for what is no address."""
        parts = urlsplit(self.url)
        kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
        with suppress(ValueError):  # a port that is no number
            if parts.scheme in kinds and parts.hostname:
                return kinds[parts.scheme](parts.hostname, parts.port, timeout=timeout)
        raise RecipeError(
            f"rollout.engine_args.url = {self.url!r} is not an address like http://127.0.0.1:8000"
        )

    def call(self, method: str, path: str, body: Any = None, *, timeout: float) -> Any:
        """The answer's JSON (None where it has none); waits `timeout` s for each of its parts."""
        return exchange(self, self.connect(timeout), method, path, body)


def exchange(
    address: Address, connection: http.client.HTTPConnection, method: str, path: str, body: Any
) -> Any:
    """One call on `connection`, which is closed afterwards. Raises Unreachable and Refused."""
    headers = {"Content-Type": "application/json"}
    if address.key:
        headers["Authorization"] = f"Bearer {address.key}"
    prefix = urlsplit(address.url).path.rstrip("/")
    data = None if body is None else json.dumps(body)
    try:
        connection.request(method, prefix + path, data, headers)
        answer = connection.getresponse()
        content = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(f"{type(error).__name__}: {error}") from error
    finally:
        connection.close()
    try:
        decoded = json.loads(content) if content.strip() else None
    except ValueError as error:
        if answer.status < 300:
            raise Unreachable(f"an answer that is not JSON: {content[:80]!r}") from error
        decoded = content.decode(errors="replace")
    if not 200 <= answer.status < 300:
        raise Refused(answer.status, _reason(decoded))
    return decoded


def _reason(decoded: Any) -> str:
    """What the server says went wrong, in one line."""
    if isinstance(decoded, dict):
        error = decoded.get("error", decoded.get("detail", decoded))
        decoded = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(decoded).split())[:500]


class Call:
    """A call under way in a thread; `done(outcome)` gets its JSON or its exception.

    The thread is a daemon's: an answer that never comes does not keep the process alive.
    """

    def __init__(
        self, address: Address, path: str, body: Any, timeout: float, done: Callable[[Any], None]
    ) -> None:
        self._connection = address.connect(timeout)
        self._arguments = (address, self._connection, "POST", path, body)
        self._done = done
        threading.Thread(target=self._run, name="grpo-request", daemon=True).start()

    def _run(self) -> None:
        try:
            outcome: Any = exchange(*self._arguments)
        except Exception as error:
            # Whatever it is, it is raised where the outcome is read.
            outcome = error
        self._done(outcome)

    def drop(self) -> None:
        """Hang up: the server stops working on it, and `done` gets Unreachable at once."""
        sock = self._connection.sock
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
