"""A server that says whatever bytes a test wants, and remembers what it was sent."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Answer = Callable[[socket.socket], None]


class Hostile:
    """requests: heads and bodies as they came; hung_up: set when a client has left."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[bytes] = []
        self.connections = 0
        self.hung_up = threading.Event()


def whole(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """An answer as it should be."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def says(content: bytes) -> Answer:
    """Send it and hang up."""
    return lambda connection: connection.sendall(content)


def drips(content: bytes, seconds: float) -> Answer:
    """Send a byte every so many seconds."""

    def answer(connection: socket.socket) -> None:
        for byte in content:
            connection.sendall(bytes([byte]))
            time.sleep(seconds)

    return answer


@contextmanager
def hostile(answer: Answer, *, keeps: bool = False) -> Iterator[Hostile]:
    """A server that answers each request by `answer`, and `keeps` its connections or not."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    found = Hostile(f"http://127.0.0.1:{listener.getsockname()[1]}")
    ended = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while True:
                request = _request(connection)
                if not request:
                    break
                found.requests.append(request)
                answer(connection)
                if not keeps:
                    return
        found.hung_up.set()

    def accept() -> None:
        while not ended.is_set():
            with suppress(OSError):
                connection, _ = listener.accept()
                found.connections += 1
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def _request(connection: socket.socket) -> bytes:
    """Head and body of the next request, b"" where the client has left."""
    got = b""
    while b"\r\n\r\n" not in got:
        piece = connection.recv(65536)
        if not piece:
            return b""
        got += piece
    head, _, body = got.partition(b"\r\n\r\n")
    sizes = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    size = int(sizes[0].partition(b":")[2]) if sizes else 0
    while len(body) < size:
        piece = connection.recv(65536)
        if not piece:
            return b""
        body += piece
    return head + b"\r\n\r\n" + body
