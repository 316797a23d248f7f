"""Connections whose every operation ends by the deadline of the call that uses them.

httpcore's timeouts are for each read. Here every operation of a socket gets the seconds that are
left of the whole call, so a server that sends a byte now and then cannot prolong it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any
from urllib.parse import unquote, urlsplit

import httpcore

from grpo.errors import RecipeError
from grpo.outside.web.address import Address

_PIECE = 1 << 16  # bytes of one write


class Wire(httpcore.NetworkBackend):
    """Sockets of one thread, for one call after the other."""

    def __init__(self) -> None:
        self.seconds_left: Callable[[], float] = float  # of the call under way; 0.0
        self.was_read = False  # since the call began
        self._sockets = httpcore.SyncBackend()
        self._stream: httpcore.NetworkStream | None = None

    def left(self) -> float:
        """Seconds. Raises httpcore.ReadTimeout where there are none."""
        seconds = self.seconds_left()
        if seconds <= 0:
            raise httpcore.ReadTimeout("the call's time is over")
        return seconds

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        del timeout
        left = self.left()
        stream = self._sockets.connect_tcp(host, port, left, local_address, socket_options)
        return self.keep(stream)

    def keep(self, stream: httpcore.NetworkStream) -> httpcore.NetworkStream:
        """`stream` with the call's deadline; `hang_up` ends it."""
        self._stream = stream
        return _Stream(stream, self)

    def hang_up(self) -> None:
        """Wake the thread that waits for the server. Other threads call this."""
        found = self._stream.get_extra_info("socket") if self._stream is not None else None
        if found is not None:
            # Not its own method: that of a TLS socket first ends the encryption, and the other
            # thread would then write in the clear.
            with suppress(OSError):
                socket.socket.shutdown(found, socket.SHUT_RDWR)


class _Stream(httpcore.NetworkStream):
    """A connection with the deadline of its wire.

    Head and body of a request, which httpcore writes one after the other, are sent together.
    """

    def __init__(self, stream: httpcore.NetworkStream, wire: Wire) -> None:
        self._stream, self._wire = stream, wire
        self._held = b""

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        del timeout
        self._flush()
        self._wire.was_read = True
        return self._stream.read(max_bytes, self._wire.left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        del timeout
        self._held += buffer
        if len(self._held) >= _PIECE:
            self._flush()

    def _flush(self) -> None:
        held, self._held = self._held, b""
        for start in range(0, len(held), _PIECE):
            self._stream.write(held[start : start + _PIECE], self._wire.left())

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        del timeout
        self._flush()
        left = self._wire.left()
        return self._wire.keep(self._stream.start_tls(ssl_context, server_hostname, left))

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def open_pool(address: Address, wire: Wire, idle_seconds: float) -> httpcore.ConnectionPool:
    """A pool of one connection to `address`, replaced when it has ended.

    Certificates are checked against the system's and certifi's; SSL_CERT_FILE adds to them. Raises
    RecipeError for a proxy of another protocol than HTTP.
    """
    settings: dict[str, Any] = {
        "max_connections": 1,
        "keepalive_expiry": idle_seconds,
        "network_backend": wire,
    }
    if address.parts.scheme == "https":
        settings["ssl_context"] = httpcore.default_ssl_context()
    named = address.proxy()
    if not named:
        return httpcore.ConnectionPool(**settings)
    parts = urlsplit(named if "://" in named else f"http://{named}")
    if parts.scheme not in ("http", "https"):
        raise RecipeError(
            f"HTTPS_PROXY or ALL_PROXY in the environment is a {parts.scheme!r} proxy, and "
            f"{address.host} is reached through http proxies only: set HTTPS_PROXY to one, or name "
            f"{address.host} in NO_PROXY"
        )
    place = Address(
        url=f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", setting="HTTPS_PROXY"
    )
    user = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
    return httpcore.HTTPProxy(place.url, proxy_auth=user, **settings)
