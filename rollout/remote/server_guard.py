"""Who may talk to a server of `grpo serve`: an ASGI middleware for vLLM's `--middleware`.

vLLM's development routes, through which weights arrive, know no password, and --api-key covers
/v1 alone. Four things are asked of every request, on every route:

token          `Authorization: Bearer …`, compared in constant time; /health alone goes without
Host           an address that is served. A page that rebinds its own name to 127.0.0.1 sends that
               name. Where all of a machine's addresses are served, any number is fine: only names
               can be rebound
no Origin      browsers add it to what a page sends; a learner has none
JSON           as content type of all that may change something: what a page can send without asking
               the server first is text or a form

`/collective_rpc` runs methods of vLLM's workers by name; it runs ours, without arguments.
Settings come as JSON in the environment variable `SETTINGS`, which holds the token's file and not
the token.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import os
import socket
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import asdict, dataclass
from typing import Any

from grpo.outside.web import private

SETTINGS = "GRPO_SERVE_GUARD"
MIDDLEWARE = "grpo.rollout.remote.server_guard.Guard"
RPC_METHODS = ("grpo_hello", "grpo_begin", "grpo_report")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
ANYWHERE = ("0.0.0.0", "::", "")
_LARGEST_RPC = 4096  # bytes
_OPEN = "/health"

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """host, port: as given to `grpo serve`; token_file: "" for a server without a token."""

    host: str
    port: int
    token_file: str

    def dumps(self) -> str:
        """For the environment."""
        return json.dumps(asdict(self))


class Guard:
    """The application `app` behind the checks. Raises where its settings or token are not there."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.settings = Settings(**json.loads(os.environ[SETTINGS]))
        file = self.settings.token_file
        self.token = private.read_key(file).encode() if file else b""
        if file and not self.token:
            raise ValueError(f"{file} is empty")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request. (The server's own start and end are passed on.)"""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        status, problem = self._problem(scope)
        if problem:
            await _refuse(scope, send, status, problem)
        elif "collective_rpc" in scope["path"]:  # wherever --root-path puts it
            await self._rpc(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _problem(self, scope: Scope) -> tuple[int, str]:
        """Status and reason of a refusal, "" for none."""
        if scope["type"] != "http":
            return 403, "this server speaks plain HTTP only"
        hosts = _values(scope, b"host")
        if len(hosts) != 1 or not serves(self.settings, hosts[0]):
            return 421, (
                f"{', '.join(hosts)[:80]!r} is no address of this server: call it as its --host "
                "says, or by a number (10.1.2.3) where that is 0.0.0.0 or ::"
            )
        if _values(scope, b"origin"):
            return 403, "web pages may not call this server"
        if scope["method"] in ("GET", "HEAD") and scope["path"] == _OPEN:
            return 200, ""
        if self.token and not self._is_ours(_values(scope, b"authorization")):
            return 401, (
                "this server wants its token: set rollout.engine_args.key_file to the file that "
                "grpo serve named at its start"
            )
        kinds = [kind.partition(";")[0].strip().lower() for kind in _values(scope, b"content-type")]
        if scope["method"] not in ("GET", "HEAD") and kinds != ["application/json"]:
            return 415, "the content type has to be application/json"
        return 200, ""

    def _is_ours(self, given: list[str]) -> bool:
        scheme, _, token = (given[0] if len(given) == 1 else "").partition(" ")
        same = hmac.compare_digest(token.strip().encode(), self.token)
        return same and scheme.lower() == "bearer"

    async def _rpc(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a call of one of our methods on, and nothing else that stood in it."""
        body = b""
        more = True
        while more and len(body) <= _LARGEST_RPC:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        method = _method(body) if len(body) <= _LARGEST_RPC else None
        if method not in RPC_METHODS:
            await _refuse(
                scope, send, 403, f"/collective_rpc runs {', '.join(RPC_METHODS)} and nothing else"
            )
            return
        content = json.dumps({"method": method}).encode()
        headers = [(k, v) for k, v in scope["headers"] if k.lower() not in _ABOUT_THE_BODY]
        headers.append((b"content-length", str(len(content)).encode()))
        once = iter([{"type": "http.request", "body": content, "more_body": False}])

        async def receive_ours() -> MutableMapping[str, Any]:
            return next(once, None) or await receive()

        await self.app({**scope, "headers": headers}, receive_ours, send)


_ABOUT_THE_BODY = (b"content-length", b"transfer-encoding")


def serves(settings: Settings, host: str) -> bool:
    """Whether a Host header names an address that is served, with its port."""
    name, colon, port = host.rpartition(":")
    if not colon or "]" in port:
        name, port = host, "80"
    name = name.removeprefix("[").removesuffix("]").lower()
    if port != str(settings.port):
        return False
    if settings.host in LOOPBACK:
        return name in LOOPBACK
    if settings.host in ANYWHERE:
        return name in ("localhost", socket.gethostname().lower()) or _is_number(name)
    return name == settings.host.lower()


def _is_number(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _method(body: bytes) -> Any:
    """The method that a call names; None where it cannot be read."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return asked.get("method") if isinstance(asked, dict) else None


def _values(scope: Scope, name: bytes) -> list[str]:
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    return [value.decode("latin-1") for key, value in headers if key.lower() == name]


async def _refuse(scope: Scope, send: Send, status: int, problem: str) -> None:
    """An error as vLLM's own look like."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    content = json.dumps({"error": {"message": problem, "code": status}}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
