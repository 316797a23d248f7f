"""JSON over HTTP to one server: the client of judges, endpoints and servers of our own.

It uses httpcore, on which httpx is built. httpx has a timeout for each read but none for the call,
and much that would have to be switched off: redirects, which send the key to another server;
decompression, by which a small answer becomes a large one; cookies; proxies for everything.

A call has one deadline, from the lookup of the name to the last byte. The call's thread waits no
longer than that for anything, and the caller does not wait for the thread. The outcome is JSON of
bounded size and depth; `Unreachable` if the call's fate is unknown (no connection, no whole answer
in time, or none that can be read); or `Refused` if the server said no.
"""

from __future__ import annotations

import asyncio
import json
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpcore

from grpo.errors.printable import HIDDEN
from grpo.outside.web import replies
from grpo.outside.web.address import Address
from grpo.outside.web.replies import Unreachable
from grpo.outside.web.wires import Wire, open_pool

LARGEST = 16 << 20  # bytes of an answer, unless a call sets its own limit
IDLE_SECONDS = 2.0  # that a connection is kept; vLLM's servers hang up after 5
_SECRET = 12  # shorter keys are not hidden in answers: "EMPTY" and "none" are ordinary words
_GRACE_SECONDS = 0.1  # after the deadline, in which a call's own thread may report that it is late


class Client:
    """Calls to `address`, from any thread and from asyncio, any number at a time.

    Each runs in a thread of its own, which keeps its connection for a while for the next call.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self._idle: deque[_Line] = deque()

    def call(
        self, method: str, path: str, body: Any = None, *, timeout: float, largest: int = LARGEST
    ) -> Any:
        """The answer's JSON, None for an empty one. Raises Unreachable, Refused and GrpoErrors."""
        outcomes: queue.SimpleQueue[Any] = queue.SimpleQueue()
        call = self._start(Call(method, path, body, timeout, outcomes.put, largest))
        try:
            outcome = outcomes.get(timeout=timeout + _GRACE_SECONDS)
        except queue.Empty:
            call.drop(late=True)
            outcome = outcomes.get()
        except BaseException:  # Ctrl-C
            call.drop()
            raise
        return _result(outcome)

    async def ask(self, path: str, body: Any, *, timeout: float, largest: int = LARGEST) -> Any:
        """The same for a POST in an event loop. Cancelling it hangs up."""
        loop = asyncio.get_running_loop()
        arrived: asyncio.Future[Any] = loop.create_future()

        def done(outcome: Any) -> None:
            with suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(lambda: arrived.done() or arrived.set_result(outcome))

        call = self._start(Call("POST", path, body, timeout, done, largest))
        try:
            async with asyncio.timeout(timeout + _GRACE_SECONDS):
                outcome = await arrived
        except TimeoutError:
            outcome = _late()
        finally:
            call.drop()
        return _result(outcome)

    def start(
        self,
        path: str,
        body: Any,
        *,
        timeout: float,
        done: Callable[[Any], None],
        largest: int = LARGEST,
    ) -> Call:
        """Start a POST; another thread calls `done` once, with the JSON or the exception."""
        return self._start(Call("POST", path, body, timeout, done, largest))

    def close(self) -> None:
        """Close idle connections. Calls under way go on."""
        with suppress(IndexError):
            while True:
                self._idle.pop().calls.put(None)

    def _start(self, call: Call) -> Call:
        line = self._waiting()
        if line is None:
            line = _Line(self.address, self._idle)
            line.start()
        line.calls.put(call)
        return call

    def _waiting(self) -> _Line | None:
        with suppress(IndexError):
            while True:
                line = self._idle.pop()  # the one used last, so that the others may end
                if line.is_alive():  # a forked process has none of the threads
                    return line
        return None


@dataclass(eq=False)
class Call:
    """A call under way; `done` gets its outcome, once. `timeout` in seconds, `largest` in bytes."""

    method: str
    path: str
    body: Any
    timeout: float
    done: Callable[[Any], None]
    largest: int

    def __post_init__(self) -> None:
        self.deadline = time.monotonic() + self.timeout
        self._lock = threading.Lock()
        self._settled = False
        self._wire: Wire | None = None  # while a thread works on it

    def take(self, wire: Wire) -> bool:
        """Assign the call to `wire`. Whether it is still wanted."""
        with self._lock:
            self._wire = wire
            wire.seconds_left, wire.was_read = self._seconds_left, False
            return not self._settled

    def settle(self, outcome: Any) -> None:
        """Give the outcome to `done`, unless `done` got one already."""
        with self._lock:
            first, self._settled, self._wire = not self._settled, True, None
        if first:
            self.done(outcome)

    def drop(self, *, late: bool = False) -> None:
        """Hang up, so that the server stops working on it; `done` gets Unreachable at once."""
        with self._lock:
            if self._settled:
                return
            self._settled = True
            if self._wire is not None:
                self._wire.hang_up()
        self.done(_late() if late else Unreachable("we hung up"))

    def _seconds_left(self) -> float:
        return 0.0 if self._settled else self.deadline - time.monotonic()


class _Line(threading.Thread):
    """A thread with a connection, which makes one call after another.

    It is a daemon, so an answer that never comes does not keep the process alive.
    """

    def __init__(self, address: Address, idle: deque[_Line]) -> None:
        super().__init__(name="grpo-web", daemon=True)
        self.calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._address, self._idle, self._wire = address, idle, Wire()
        self._pool: Any = None

    def run(self) -> None:
        """Make calls until there was none for a while."""
        call = self.calls.get()
        while call is not None:
            try:
                outcome = self._exchange(call) if call.take(self._wire) else None
            except Exception as error:
                outcome = error  # raised where the outcome is read
            self._idle.append(self)
            call.settle(outcome)
            del outcome
            call = self._next()
        if self._pool is not None:
            self._pool.close()

    def _next(self) -> Call | None:
        try:
            return self.calls.get(timeout=IDLE_SECONDS)
        except queue.Empty:
            try:
                self._idle.remove(self)
            except ValueError:  # another thread has just taken this line
                return self.calls.get()
        return None

    def _exchange(self, call: Call) -> Any:
        key = ""
        try:
            key = self._address.bearer()
            status, headers, content = self._answer(call, key)
        except (httpcore.TimeoutException, TimeoutError) as error:
            raise _late() from error
        except (
            httpcore.NetworkError,
            httpcore.ProtocolError,
            httpcore.ProxyError,
            OSError,
            UnicodeError,  # of a name that cannot be looked up
        ) as error:
            raise Unreachable(f"{type(error).__name__}: {_without(key, str(error))}") from error
        encoding = headers.get(b"content-encoding", b"identity")
        if encoding.lower() != b"identity":
            raise Unreachable(f"an answer in the encoding {encoding!r}, which was not asked for")
        location = headers.get(b"location", b"").decode(errors="replace")
        if len(key) >= _SECRET:  # some servers say which key it was that they do not take
            content = content.replace(key.encode(), HIDDEN.encode())
        return replies.read(status, content, _without(key, location))

    def _answer(self, call: Call, key: str) -> tuple[int, dict[bytes, bytes], bytes]:
        if self._pool is None:
            self._pool = open_pool(self._address, self._wire, IDLE_SECONDS)
        parts = self._address.parts
        content = b"" if call.body is None else json.dumps(call.body).encode()
        headers = [
            (b"Host", parts.netloc.encode()),
            (b"Accept-Encoding", b"identity"),  # a small answer could unpack to a large one
            (b"Content-Type", b"application/json"),
            (b"Content-Length", b"%d" % len(content)),
        ]
        if key:
            headers.append((b"Authorization", b"Bearer " + key.encode()))
        request = httpcore.Request(
            call.method,
            httpcore.URL(
                scheme=parts.scheme.encode(),
                host=self._address.called.encode(),
                port=self._address.port,
                target=(parts.path + call.path).encode(),
            ),
            headers=headers,
            content=content,
        )
        response = self._pool.handle_request(request)
        got = bytearray()  # not a list: there may be millions of pieces of one byte
        try:
            if not self._wire.was_read:
                raise Unreachable("an answer that came before it was asked for")
            for piece in response.iter_stream():
                got += piece
                if len(got) > call.largest:
                    raise Unreachable(f"an answer of more than {call.largest} bytes")
        finally:
            response.close()
        found = {name.lower(): value for name, value in response.headers}
        return response.status, found, bytes(got)


def _without(key: str, text: str) -> str:
    return text.replace(key, HIDDEN) if len(key) >= _SECRET else text


def _late() -> Unreachable:
    return Unreachable("no whole answer came in time", late=True)


def _result(outcome: Any) -> Any:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
