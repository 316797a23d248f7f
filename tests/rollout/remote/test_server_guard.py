"""The guard of `grpo serve` before an application that notes whatever gets through to it."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from grpo.errors import RunError
from grpo.rollout.remote.server_guard import SETTINGS, Guard, Settings

TOKEN = "t0ken-" + "x" * 30
HEADERS = {
    "host": "127.0.0.1:8000",
    "authorization": f"Bearer {TOKEN}",
    "content-type": "application/json",
}


class App:
    """Keeps (path, headers, body) of what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[bytes, bytes], bytes]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        if scope["type"] == "http":
            message = await receive()
            body = message.get("body", b"")
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        self.asked.append((scope.get("path", ""), dict(scope.get("headers", [])), body))


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def guard(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Guard:
    return guard_of(app, tmp_path, monkeypatch)


def guard_of(app: App, folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Guard:
    file = folder / "token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    asked = {"host": "127.0.0.1", "port": 8000, "token_file": str(file), **settings}
    monkeypatch.setenv(SETTINGS, Settings(**asked).dumps())
    return Guard(app)


def ask(
    guard: Guard,
    path: str = "/pause",
    method: str = "POST",
    pieces: tuple[bytes, ...] = (b"",),
    also: tuple[tuple[bytes, bytes], ...] = (),
    kind: str = "http",
    **headers: str | None,
) -> int:
    """The status that comes; a header of None is left out, `_` is "-"."""
    sent: list[Any] = []
    merged = {**HEADERS, **{name.replace("_", "-"): value for name, value in headers.items()}}
    listed = [(k.encode(), v.encode()) for k, v in merged.items() if v is not None]
    messages = [{"type": "http.request", "body": p, "more_body": True} for p in pieces]
    messages[-1]["more_body"] = False
    waiting = iter(messages)

    async def receive() -> Any:
        return next(waiting, {"type": "http.disconnect"})

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": kind, "method": method, "path": path, "headers": [*listed, *also]}
    asyncio.run(guard(scope, receive, send))
    if kind == "websocket":
        return sent[0]["code"]
    return sent[0]["status"]


def test_a_learner_gets_through(guard: Guard, app: App) -> None:
    assert ask(guard, "/v1/completions", pieces=(b"{}",)) == 200
    assert ask(guard, "/openapi.json", "GET", content_type=None) == 200
    assert ask(guard, content_type="Application/JSON; charset=utf-8") == 200
    assert ask(guard, authorization=f"bearer {TOKEN}") == 200
    assert [path for path, _, _ in app.asked] == [
        "/v1/completions",
        "/openapi.json",
        "/pause",
        "/pause",
    ]


@pytest.mark.parametrize("path", ["/pause", "/v1/models", "/openapi.json", "/health/", "//health"])
@pytest.mark.parametrize(
    "given",
    [None, "", "Bearer", "Bearer ", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer é"],
)
def test_without_the_token_nothing_answers(
    guard: Guard, app: App, path: str, given: str | None
) -> None:
    for method in ("GET", "POST", "OPTIONS", "DELETE"):
        assert ask(guard, path, method, authorization=given) == 401
    assert not app.asked


def test_health_is_for_all_and_only_to_look(guard: Guard) -> None:
    bare = {"authorization": None, "content_type": None}
    assert ask(guard, "/health", "GET", **bare) == 200
    assert ask(guard, "/health", "POST", **bare) == 401
    assert ask(guard, "/health", "GET", host="evil.example:8000", **bare) == 421


def test_what_a_web_page_can_send_is_refused(guard: Guard, app: App) -> None:
    """Cross-site requests, also where the page has rebound its name to this machine."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None):
        assert ask(guard, content_type=kind) == 415
    for origin in ("http://evil.example", "null", "http://127.0.0.1:8000", ""):
        assert ask(guard, origin=origin) == 403
    for host in (
        "evil.example:8000",
        "evil.example",
        "127.0.0.1.evil.example:8000",
        "127.0.0.1",
        "127.0.0.1:80",
        "127.0.0.1:8000.evil.example",
        "127.0.0.1:8000@evil.example",
        "localhost.:8000",
        "0.0.0.0:8000",
        "",
        None,
    ):
        assert ask(guard, host=host) == 421
    assert ask(guard, also=((b"host", b"evil.example"),)) == 421
    assert ask(guard, also=((b"authorization", b"Bearer x"),)) == 401
    assert ask(guard, also=((b"content-type", b"text/plain"),)) == 415
    assert ask(guard, kind="websocket", method="GET") == 1008
    assert not app.asked


@pytest.mark.parametrize(
    ("served", "good", "bad"),
    [
        ("127.0.0.1", ["localhost:8000", "[::1]:8000", "LocalHost:8000"], ["10.0.0.1:8000"]),
        ("10.0.0.1", ["10.0.0.1:8000"], ["localhost:8000", "10.0.0.2:8000"]),
        ("gpu1", ["gpu1:8000", "GPU1:8000"], ["gpu2:8000", "10.0.0.1:8000"]),
        ("fe80::1", ["[fe80::1]:8000"], ["[fe80::2]:8000", "fe80::1"]),
        (
            "0.0.0.0",
            ["10.0.0.1:8000", "[fe80::1]:8000", "localhost:8000", f"{socket.gethostname()}:8000"],
            ["evil.example:8000", "10.0.0.1:80", "10.0.0.1.evil.example:8000"],
        ),
    ],
)
def test_the_hosts_that_are_served(
    app: App,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    served: str,
    good: list[str],
    bad: list[str],
) -> None:
    guard = guard_of(app, tmp_path, monkeypatch, host=served)
    assert [ask(guard, host=host) for host in good] == [200] * len(good)
    assert [ask(guard, host=host) for host in bad] == [421] * len(bad)
    plain = guard_of(app, tmp_path, monkeypatch, port=80)
    assert ask(plain, host="localhost") == 200


def test_only_our_methods_run_in_the_workers(guard: Guard, app: App) -> None:
    def rpc(body: Any, path: str = "/collective_rpc") -> int:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return ask(guard, path, pieces=(content[:5], content[5:]), content_length="9")

    for body in (
        {"method": "save_sharded_state", "args": ["/etc/cron.d/x"]},
        {"method": "__class__"},
        {"method": ["grpo_hello"]},
        {"method": None},
        {},
        [],
        b"{",
        b"[" * 4000,
        b'{"method": "grpo_hello", "x": "' + b"y" * 5000 + b'"}',
    ):
        assert rpc(body) == 403
    for path in ("/collective_rpc/", "/v2/collective_rpc", "//collective_rpc"):
        assert rpc({"method": "shutdown"}, path) == 403
    assert not app.asked
    # What else stood in a call, or twice in it, does not get through.
    assert rpc({"method": "grpo_hello", "args": ["x"], "kwargs": {"y": 1}, "timeout": 9}) == 200
    assert rpc(b'{"method": "shutdown", "method": "grpo_begin"}') == 200
    bodies = [body for _, _, body in app.asked]
    assert bodies == [b'{"method": "grpo_hello"}', b'{"method": "grpo_begin"}']
    assert [headers[b"content-length"] for _, headers, _ in app.asked] == [b"24", b"24"]


def test_without_a_token_pages_are_still_refused(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = guard_of(app, tmp_path, monkeypatch, token_file="")
    assert ask(guard, authorization=None) == 200
    assert ask(guard, authorization=None, content_type="text/plain") == 415
    assert ask(guard, authorization=None, host="evil.example:8000") == 421
    assert ask(guard, "/collective_rpc", pieces=(b'{"method": "x"}',)) == 403


def test_a_guard_that_lacks_its_token_does_not_start(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard_of(app, tmp_path, monkeypatch)
    (tmp_path / "token").write_text("")
    with pytest.raises(ValueError, match="is empty"):
        Guard(app)
    (tmp_path / "token").chmod(0o644)
    with pytest.raises(RunError, match="others may read"):
        Guard(app)
    (tmp_path / "token").unlink()
    with pytest.raises(FileNotFoundError):
        Guard(app)
    monkeypatch.delenv(SETTINGS)
    with pytest.raises(KeyError):
        Guard(app)


def test_start_and_end_of_the_server_are_passed_on(guard: Guard, app: App) -> None:
    asyncio.run(guard({"type": "lifespan"}, None, None))  # pyright: ignore[reportArgumentType]
    assert len(app.asked) == 1
