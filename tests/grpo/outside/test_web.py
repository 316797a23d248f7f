"""The HTTP client against servers that are broken, slow, or someone else's."""

from __future__ import annotations

import asyncio
import gzip
import queue
import shutil
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from grpo.errors import RecipeError
from grpo.outside.web.address import Address
from grpo.outside.web.client import Client
from grpo.outside.web.replies import DEEPEST, Refused, Unreachable, part, read

from .hostile import Hostile, drips, hostile, says, whole

BOMB = gzip.compress(bytes(50 << 20), mtime=0)
ENDLESS = b"HTTP/1.1 200 OK\r\n" + b"X-More: yes\r\n" * 20_000
OK = whole(b'{"a": 1}')


def client(server: Hostile, key: str = "", **settings: Any) -> Client:
    return Client(Address(url=server.url, key=key, **settings))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "disconnected"),
        (b"\0\1\2\3\r\n\r\n", "ProtocolError"),
        (b"HTTP/1.1 abc\r\n\r\n", "ProtocolError"),
        (b"ICY 200 OK\r\n\r\n{}", "ProtocolError"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{}", "ProtocolError"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{}", "ProtocolError"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}", "ProtocolError"),
        (ENDLESS, "Error"),
        (whole(b"<html>"), "not JSON: '<html>'"),
        (whole(b'{"a": NaN}'), "not JSON"),
        (whole(b'"\xff\xfe"'), "not JSON"),
        (whole(b"9" * 5000), "not JSON"),
        (whole(b"[" * 100_000), "not JSON"),
        (whole(b"[" * 70 + b"]" * 70), "not JSON"),
        (whole(b'{"a":' * 500 + b"1" + b"}" * 500), "not JSON"),
        (whole(b'["]",' * 5000 + b"1" + b"]" * 5000), "not JSON"),
        (whole(BOMB, "Content-Encoding: gzip"), "encoding b'gzip'"),
        (whole(b'"' + b"x" * 200_000 + b'"'), "more than 100000 bytes"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b" " * (8 << 20), "more than 100000 bytes"),
    ],
)
def test_what_cannot_be_used_is_unreachable(answer: bytes, message: str) -> None:
    started = time.monotonic()
    with hostile(says(answer)) as server, pytest.raises(Unreachable, match=message) as caught:
        client(server).call("POST", "/x", {}, timeout=5, largest=100_000)
    assert time.monotonic() - started < 3
    assert not caught.value.late


def test_json_of_any_type_comes_as_it_is() -> None:
    for text, value in ((b"[1]", [1]), (b"null", None), (b"", None), (b'{"a": "[{"}', {"a": "[{"})):
        with hostile(says(whole(text))) as server:
            assert client(server).call("GET", "/", timeout=5) == value


def test_depth_is_that_outside_of_strings() -> None:
    shallow = b'["' + b"[" * 5000 + rb"\\\\\"[[" + b'", 1]'
    assert len(read(200, shallow)) == 2
    nested = b"[" * DEEPEST + b"]" * DEEPEST
    assert read(200, b"[" + b"[]," * 5000 + nested[1:-1] + b"]")
    mixed = b'{"a":[' * 200 + b"]}" * 200
    with pytest.raises(Unreachable):
        read(200, mixed)


@pytest.mark.parametrize("pattern", [b'"', b'\\"', b"\\", b'"\\', b"[{", b'["]"', b'{"":'])
def test_hostile_text_is_looked_at_in_linear_time(pattern: bytes) -> None:
    started = time.monotonic()
    with pytest.raises(Unreachable):
        read(200, pattern * (1_000_000 // len(pattern)))
    assert time.monotonic() - started < 2


def test_refusals_say_why() -> None:
    for body, reason in (
        (b'{"error": {"message": "no\\n  room"}}', "status 400: no room"),
        (b'{"detail": "gone"}', "status 400: gone"),
        (b"<b>plain</b>", "status 400: <b>plain</b>"),
        (b"[" * 100_000, r"status 400: \[\["),
    ):
        with (
            hostile(says(whole(body, status="400 Bad"))) as server,
            pytest.raises(Refused, match=reason) as caught,
        ):
            client(server).call("POST", "/x", timeout=5)
        assert len(str(caught.value)) < 600


@pytest.mark.parametrize("status", ["301 M", "302 F", "303 S", "307 T", "308 P", "300 C", "304 N"])
def test_nobody_is_followed_with_a_key(status: str) -> None:
    with hostile(says(OK)) as thief:
        redirect = whole(b"", f"Location: {thief.url}/take", status=status)
        with hostile(says(redirect)) as server, pytest.raises(Refused, match="not followed"):
            client(server, key="secret").call("POST", "/x", {}, timeout=5)
        assert b"Authorization: Bearer secret" in server.requests[0]
        assert not thief.requests


@pytest.mark.parametrize("held", ["status", "headers", "body", "informational"])
def test_a_byte_now_and_then_does_not_hold_a_call(held: str) -> None:
    slow = {
        "status": OK,
        "headers": b"X: " + b"y" * 500,
        "body": b"x" * 500,
        "informational": b"HTTP/1.1 100 Continue\r\n\r\n" * 50,
    }[held]
    first = {
        "headers": b"HTTP/1.1 200 OK\r\n",
        "body": b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n",
    }.get(held, b"")

    def answer(connection: socket.socket) -> None:
        connection.sendall(first)
        drips(slow, 0.05)(connection)

    with hostile(answer) as server:
        calls = client(server)
        outcomes: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def call() -> None:
            calls.call("POST", "/x", {}, timeout=0.4)

        def ask() -> None:
            asyncio.run(calls.ask("/x", {}, timeout=0.4))

        def start() -> None:
            calls.start("/x", {}, timeout=0.4, done=outcomes.put)
            raise outcomes.get(timeout=5)

        for way in (call, ask, start):
            started = time.monotonic()
            with pytest.raises(Unreachable, match="in time") as caught:
                way()
            assert caught.value.late
            assert 0.35 < time.monotonic() - started < 1.0


def test_a_server_that_does_not_read_does_not_hold_a_call() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(Unreachable, match="in time"):
            Client(Address(url=url)).call("POST", "/x", "y" * (32 << 20), timeout=0.5)
        assert time.monotonic() - started < 1.5


def test_a_name_that_is_looked_up_for_ever_does_not_hold_a_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    released = threading.Event()

    def lookup(*_: Any, **__: Any) -> Any:
        released.wait(10)
        raise OSError("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    started = time.monotonic()
    with pytest.raises(Unreachable, match="in time"):
        Client(Address(url="http://judge.example")).call("POST", "/x", timeout=0.2)
    assert time.monotonic() - started < 1.0
    released.set()


def test_hanging_up_from_another_thread() -> None:
    with hostile(lambda _: None, keeps=True) as server:
        outcomes: queue.SimpleQueue[Any] = queue.SimpleQueue()
        call = client(server).start("/x", {}, timeout=30, done=outcomes.put)
        while not server.requests:
            time.sleep(0.01)
        call.drop()
        call.drop()
        assert isinstance(outcomes.get(timeout=2), Unreachable)
        assert server.hung_up.wait(2)  # the server knows, and may stop working on it
        time.sleep(0.1)
        assert outcomes.empty()


def test_a_task_that_is_cancelled_hangs_up() -> None:
    with hostile(lambda _: None, keeps=True) as server:

        async def give_up() -> None:
            async with asyncio.timeout(0.2):
                await client(server).ask("/x", {}, timeout=30)

        with pytest.raises(TimeoutError):
            asyncio.run(give_up())
        assert server.hung_up.wait(2)


def test_connections_are_kept_and_made_anew() -> None:
    with hostile(says(OK), keeps=True) as server:
        calls = client(server)
        for _ in range(5):
            assert calls.call("POST", "/x", {}, timeout=5) == {"a": 1}
            time.sleep(0.02)  # for the thread to come back
        assert server.connections == 1
        calls.close()
        assert server.hung_up.wait(3)
    with hostile(says(OK)) as server:  # hangs up after each
        calls = client(server)
        for _ in range(3):
            assert calls.call("POST", "/x", {}, timeout=5) == {"a": 1}
            time.sleep(0.05)
        assert server.connections == 3


def test_many_calls_at_once_each_get_their_own_answer() -> None:
    class Counting:
        lock = threading.Lock()
        seen = 0

    def answer(connection: socket.socket) -> None:
        with Counting.lock:
            Counting.seen += 1
            number = Counting.seen
        time.sleep(0.002)
        connection.sendall(whole(b"%d" % number))

    with hostile(answer, keeps=True) as server:
        calls = client(server)

        async def all_of_them() -> list[int]:
            return await asyncio.gather(*(calls.ask("/x", {}, timeout=10) for _ in range(200)))

        assert sorted(asyncio.run(all_of_them())) == list(range(1, 201))
        assert len(server.requests) == 200


def test_this_machine_and_plain_http_need_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with hostile(says(OK)) as server, hostile(says(OK)) as proxy:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert client(server).call("GET", "/", timeout=5) == {"a": 1}
        assert not proxy.requests
        assert Address(url="http://judge.example").proxy() == ""
        assert Address(url="https://127.0.0.1").proxy() == ""
        away = Address(url="https://judge.example/v1", key="secret")
        assert away.proxy() == proxy.url
        with pytest.raises(Unreachable):
            Client(away).call("POST", "/x", {}, timeout=5)
        assert proxy.requests[0].startswith(b"CONNECT judge.example:443 HTTP/1.1")
        assert b"secret" not in b"".join(proxy.requests)
        monkeypatch.setenv("no_proxy", "judge.example")
        assert away.proxy() == ""
        monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:9")
        with pytest.raises(RecipeError, match="'socks5' proxy"):
            Client(Address(url="https://other.example")).call("GET", "/", timeout=5)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate")
def test_certificates_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    made += ["-nodes", "-keyout", str(key), "-out", str(cert), "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    subprocess.run(made, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    listener = context.wrap_socket(socket.create_server(("127.0.0.1", 0)), server_side=True)

    def serve() -> None:
        for _ in range(2):
            try:
                connection, _ = listener.accept()
            except OSError:  # the client did not like the certificate
                continue
            with connection:
                connection.recv(65536)
                connection.sendall(OK)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    address = Address(url=f"https://127.0.0.1:{listener.getsockname()[1]}", key="secret")
    with pytest.raises(Unreachable, match="CERTIFICATE_VERIFY_FAILED"):
        Client(address).call("GET", "/", timeout=5)
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    assert Client(address).call("GET", "/", timeout=5) == {"a": 1}
    thread.join(5)
    listener.close()


def test_parts_of_an_answer_are_of_their_type() -> None:
    answer = {"data": [{"id": "m", "n": 3, "b": True, "x": 0.5}]}
    assert part(answer, "data", 0, "id", kind=str) == "m"
    assert part(answer, "data", 0, "n", kind=float) == 3.0
    for path, kind in (
        (("data", 1, "id"), str),
        (("data", "id"), str),
        (("data", 0, "n"), str),
        (("data", 0, "b"), int),
        (("data", 0, "x"), int),
        (("nothing",), dict),
        ((0,), dict),
    ):
        with pytest.raises(Unreachable, match="an answer without a"):
            part(answer, *path, kind=kind)
    for odd in (None, [], 3, "x"):
        with pytest.raises(Unreachable):
            part(odd, "data", kind=list)
