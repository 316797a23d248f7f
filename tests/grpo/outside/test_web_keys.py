"""The HTTP client's key, and calls that must not get one another's answers."""

from __future__ import annotations

import json
import multiprocessing
import socket
import ssl
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from grpo.errors import RunError
from grpo.outside.web.address import Address
from grpo.outside.web.client import Client
from grpo.outside.web.replies import Refused, Unreachable, part
from grpo.outside.web.wires import Wire

from .hostile import hostile, says, whole

KEY = "tok-0123456789abcdef"


@pytest.mark.parametrize(
    "answer",
    [
        whole(json.dumps({"error": {"message": f"no such key: {KEY}"}}).encode(), status="401 No"),
        whole(f"Bearer {KEY}".encode()),
        whole(b"", f"Location: http://evil/?{KEY}", status="302 Found"),
        f"HTTP/1.1 2x0 {KEY}\r\n\r\n".encode(),
    ],
    ids=["refusal", "no JSON", "redirect", "status line"],
)
def test_a_server_that_repeats_the_key_does_not_have_it_shown(answer: bytes) -> None:
    with hostile(says(answer)) as server:
        client = Client(Address(url=server.url, key=KEY))
        with pytest.raises((Refused, Unreachable)) as raised:
            client.call("GET", "/", timeout=5)
    assert KEY.encode() in server.requests[0]
    assert KEY not in str(raised.value)


def test_a_key_that_is_a_word_is_no_secret() -> None:
    with hostile(says(whole(b'{"text": "EMPTY"}'))) as server:
        client = Client(Address(url=server.url, key="EMPTY"))
        assert client.call("GET", "/", timeout=5) == {"text": "EMPTY"}


def test_a_key_file_that_changes_to_two_lines_is_not_quoted(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("first-secret\nsecond-secret")
    file.chmod(0o600)
    with hostile(says(whole(b"{}"))) as server:
        client = Client(Address(url=server.url, key_file=str(file)))
        with pytest.raises(RunError, match="else than one key") as raised:
            client.call("GET", "/", timeout=5)
    assert "secret" not in str(raised.value).replace(str(file), "")


def test_a_key_file_that_is_gone_is_a_server_that_is_gone(tmp_path: Path) -> None:
    with hostile(says(whole(b"{}"))) as server:
        client = Client(Address(url=server.url, key_file=str(tmp_path / "token")))
        with pytest.raises(Unreachable, match="FileNotFoundError"):
            client.call("GET", "/", timeout=5)
    assert server.requests == []


def test_a_token_of_a_server_here_goes_to_no_other_address_of_localhost() -> None:
    url = "http://localhost:8000"
    assert Address(url=url, key_file="/k").called == "127.0.0.1"
    assert Address(url=url).called == "localhost"
    assert Address(url="http://[::1]:8000", key_file="/k").called == "::1"


def test_an_answer_nobody_asked_for_is_not_the_next_calls() -> None:
    with hostile(says(whole(b"1") + whole(b"2")), keeps=True) as server:
        client = Client(Address(url=server.url))
        assert client.call("GET", "/first", timeout=5) == 1
        with pytest.raises(Unreachable, match="before it was asked for"):
            client.call("GET", "/second", timeout=5)
        assert client.call("GET", "/third", timeout=5) == 1
    assert [request.split()[1] for request in server.requests] == [b"/first", b"/third"]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_makes_its_own_connection() -> None:
    def child(client: Client, said: Any) -> None:
        said.put(client.call("GET", "/", timeout=5))

    with hostile(says(whole(b"1")), keeps=True) as server:
        client = Client(Address(url=server.url))
        client.call("GET", "/", timeout=5)
        fork = multiprocessing.get_context("fork")
        said: Any = fork.SimpleQueue()
        process = fork.Process(target=child, args=(client, said))
        process.start()
        process.join(4)  # before the call's own time is over
        assert process.exitcode == 0
        assert said.get() == 1
        assert client.call("GET", "/", timeout=5) == 1
    assert server.connections == 2


def test_hanging_up_does_not_end_the_encryption_before_the_connection() -> None:
    ours, theirs = socket.socketpair()
    context = ssl.create_default_context()
    context.check_hostname = False
    with theirs, context.wrap_socket(ours, do_handshake_on_connect=False) as encrypted:
        wire = Wire()

        class Stream:
            def get_extra_info(self, info: str) -> Any:
                return encrypted

        wire.keep(Stream())  # type: ignore[arg-type]
        wire.hang_up()
        with pytest.raises(OSError):  # noqa: PT011 - of any kind, and nothing in the clear
            encrypted.send(b"Authorization: Bearer key")
        assert encrypted._sslobj is not None  # pyright: ignore[reportAttributeAccessIssue]
        assert b"Authorization" not in theirs.recv(4096)


def test_millions_of_small_pieces_take_no_more_memory_than_a_large_one() -> None:
    pieces = 30_000
    body = b"1\r\n \r\n" * pieces + b"1\r\n1\r\n0\r\n\r\n"
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body
    with hostile(says(answer)) as server:
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        client = Client(Address(url=server.url))
        assert client.call("GET", "/", timeout=30) == 1
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert (most - before) / pieces < 60  # bytes; a list of them takes 140


def test_infinity_is_no_number_of_an_answer() -> None:
    with pytest.raises(Unreachable, match="without a float"):
        part(json.loads('{"a": -1e999}'), "a", kind=float)
