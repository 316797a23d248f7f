"""`grpo serve`: a vLLM server that takes weights from a learner on this machine.

It is vLLM's own OpenAI server with three things added: our worker extension and weight-transfer
backend (rollout/remote/server_transport.py), its development routes, through which weights are
updated, and log-probs of the distribution that is sampled. Those routes obey whoever reaches them,
so a guard stands before all (rollout/remote/server_guard.py) and asks for a token that is made here
at each start. The server runs in a process group of its own that ends with this process, however
that ends.

Token and log lie in a folder of this user alone, so no other user can read them, or make the log a
link to something else beforehand.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from grpo.errors import EngineError, RecipeError, RunError
from grpo.model.compute_types import AUTO, check_type, chosen
from grpo.model.pretrained import check_model
from grpo.outside.web import private
from grpo.outside.web.address import Address
from grpo.outside.web.client import Client
from grpo.outside.web.replies import Refused, Unreachable
from grpo.rollout.remote.server_guard import ANYWHERE, LOOPBACK, MIDDLEWARE, SETTINGS, Settings
from grpo.rollout.remote.server_token import folder_of, write_token

START_SECONDS = 1800.0  # large models take long to read
_STOP_SECONDS = 15.0
# Options by which vLLM draws from another distribution than a request asks for.
_SAMPLING = (
    *("--generation-config", "--override-generation-config", "--logits-processors"),
    *("--logits-processor-pattern", "--logprobs-mode"),
)
_SHOWN_LINES = 12  # of the log, where the server ends by itself
# The guard reads a pipe that only this process holds open: when this process is killed, the pipe
# ends, and the guard kills the whole group. A server asked politely waits for its open requests.
_GUARDED = 'exec 3<&0; (cat <&3 >/dev/null; kill -9 0) & exec "$@" 3<&- </dev/null'


@dataclass(frozen=True, kw_only=True)
class Server:
    """What to serve. `kv_cache_gib` 0 and `max_model_len` 0 leave the choice to vLLM."""

    model: str
    host: str = "127.0.0.1"
    port: int = 8000
    dtype: str = "auto"
    max_model_len: int = 0
    kv_cache_gib: float = 0.0
    threads: int = 0  # CPU threads; 0: as vLLM chooses
    token: bool = True
    options: tuple[str, ...] = ()  # more of vLLM's own, say --tensor-parallel-size=2

    @property
    def address(self) -> Address:
        """Where a learner on this machine finds it."""
        host = "127.0.0.1" if self.host in (*ANYWHERE, *LOOPBACK[:2]) else self.host
        host = f"[{host}]" if ":" in host else host
        return Address(url=f"http://{host}:{self.port}", setting="--host and --port")


def main(arguments: Namespace) -> int:
    """Serve as the command line says; 0 when it has ended. Raises GrpoError."""
    names = {field.name for field in fields(Server)} & vars(arguments).keys()
    given = {name: getattr(arguments, name) for name in names}
    serve(Server(**given, token=not arguments.no_token, options=tuple(arguments.vllm)))
    return 0


def serve(server: Server) -> None:
    """Start the server, say when it answers, and stay until it ends or Ctrl-C.

    Raises RecipeError for settings that cannot work, RunError where the server does not come up.
    """
    _check(server)
    folder = folder_of(server.address)
    private.make(folder)
    # vLLM takes its port only once it has read the model: until then a second server would write
    # another token into the file of the first.
    lock = private.lock(folder / "lock")
    if lock is None:
        raise RecipeError(
            f"--port {server.port}: another `grpo serve` of yours starts or runs there; stop it, "
            "or choose another --port"
        )
    try:
        _run(server, folder / "log")
    finally:
        os.close(lock)


def _run(server: Server, log: Path) -> None:
    """Start the server and stay. Raises RunError where it ends, or does not come up."""
    if not server.token:
        print(f"grpo: warning: --no-token: {_reached(server)}", file=sys.stderr)
    elif server.host not in LOOPBACK:
        print(
            f"grpo: warning: what goes to and from {server.host}:{server.port} is not encrypted, "
            "the token included: use --host on private networks only",
            file=sys.stderr,
        )
    token = write_token(server.address) if server.token else None
    try:
        with (
            open(private.create(log), "wb") as output,
            _child(command(server), environment(server, token), output) as child,
        ):
            _await_health(child, server, log)
            print(_started(server, log, token), flush=True)
            code = child.wait()
    finally:
        if token is not None:
            token.unlink(missing_ok=True)
    raise RunError(f"the server ended by itself with code {code}:\n{_tail(log)}")


def _reached(server: Server) -> str:
    who = "every user of this machine" if server.host in LOOPBACK else "whoever reaches it"
    return f"{who} can pause this server, change its weights and read what it is asked"


def _started(server: Server, log: Path, token: Path | None) -> str:
    """What a learner has to be told."""
    url = server.address.url
    lines = [
        f"serving {server.model} at {url} (log: {log}); Ctrl-C stops it",
        f"  grpo train RECIPE rollout.engine=server rollout.engine_args.url={url}",
    ]
    if token is not None:
        lines[1] += f" \\\n      rollout.engine_args.key_file={shlex.quote(str(token))}"
    return "\n".join(lines)


def command(server: Server) -> list[str]:
    """The command line of vLLM's server."""
    options: dict[str, Any] = {
        "model": server.model,
        "host": server.host,
        "port": server.port,
        "dtype": "float32" if server.dtype == AUTO and is_cpu() else chosen(server.dtype),
        "logprobs-mode": "processed_logprobs",
        "generation-config": "vllm",  # what is sampled from is the recipe's business alone
        "worker-extension-cls": "grpo.rollout.remote.server_transport.ServerWorker",
        "weight-transfer-config": '{"backend": "grpo_shared_memory"}',
        "middleware": MIDDLEWARE,
    }
    if server.max_model_len:
        options["max-model-len"] = server.max_model_len
    # The route that takes and gives tokens belongs to the scale-out ones since 0.32.
    flags = ["--enable-scale-out", "--disable-log-stats"]
    if is_cpu():
        # vLLM 0.32 on a CPU dies of a seeded request whose prompt is read in parts ("CPU Generator
        # does not use offset"), also of one that was paused and is read anew.
        flags += ["--enforce-eager", "--no-enable-chunked-prefill"]
    elif server.kv_cache_gib:
        options["kv-cache-memory-bytes"] = int(server.kv_cache_gib * 2**30)
    named = [f"--{name}={value}" for name, value in options.items()]
    entry = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    return [*entry, *named, *flags, *server.options]


def environment(server: Server, token: Path | None = None) -> dict[str, str]:
    """The environment of the server's process; what the user has set stays.

    It names the file with the token; the token itself is in no environment.
    """
    guard = Settings(host=server.host, port=server.port, token_file=str(token or ""))
    wanted = {
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the learner computes on the same cores
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": f"{max(1, round(server.kv_cache_gib))}",
    }
    if server.threads:
        wanted["OMP_NUM_THREADS"] = str(server.threads)
    ours = {"VLLM_SERVER_DEV_MODE": "1", SETTINGS: guard.dumps()}
    if token is not None:
        ours["VLLM_API_KEY"] = ""  # a call has one key
    return {**wanted, **os.environ, **ours}


def is_cpu() -> bool:
    """Whether the installed vLLM is the CPU build."""
    with suppress(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("vllm-cpu")
        return True
    return "cpu" in importlib.metadata.version("vllm")


def _check(server: Server) -> None:
    """What would otherwise end in a traceback half a minute later."""
    if importlib.util.find_spec("vllm") is None:
        raise EngineError(
            "grpo serve needs vLLM, which is not installed: pip install 'grpo-toolkit[vllm]' on a "
            "GPU machine, make test-vllm or docs/vllm.md on a CPU"
        )
    for option in server.options:
        name = option.partition("=")[0].replace("_", "-")
        if name == "--api-key" and server.token:
            raise RecipeError(
                "--vllm=--api-key: a call has one key, and this server asks for the token of grpo "
                "serve on every route; leave --api-key out"
            )
        if name in _SAMPLING:
            raise RecipeError(
                f"--vllm={option}: the learner would compute other probabilities than those its "
                "tokens were drawn with; a recipe says how completions are sampled"
            )
        if name in ("--host", "--port", "--uds"):
            raise RecipeError(
                f"--vllm={option}: say where to serve by --host and --port of grpo serve itself"
            )
    with socket.socket(socket.AF_INET6 if ":" in server.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((server.host, server.port))
        except OSError as error:
            raise RecipeError(
                f"--port {server.port} on {server.host} cannot be used ({error.strerror}); another "
                "server may have it: choose another --port"
            ) from error
    check_model(server.model, "MODEL")
    if not is_cpu():
        check_type("--dtype", server.dtype)


@contextmanager
def _child(argv: list[str], env: dict[str, str], output: Any) -> Iterator[subprocess.Popen[bytes]]:
    """The server in a process group of its own, gone with all its processes at the end."""
    # start_new_session makes the shell, its guard and the server one process group.
    child = subprocess.Popen(
        ["sh", "-c", _GUARDED, "sh", *argv],
        env=env,
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        umask=0o077,  # what vLLM leaves among temporary files is this user's alone
    )
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield child
    finally:
        # A second Ctrl-C must not leave processes behind.
        interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
        _stop(child)
        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, before)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt("stopped")


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Ask the group to end, then make it."""
    with suppress(ProcessLookupError):
        child.terminate()
    with suppress(subprocess.TimeoutExpired):
        child.wait(_STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    if child.stdin is not None:
        child.stdin.close()


def _await_health(child: subprocess.Popen[bytes], server: Server, log: Path) -> None:
    """Return once the server answers; a line on the terminal says how long it has been."""
    client = Client(server.address)
    started = time.monotonic()
    live = sys.stderr.isatty()
    print(f"vLLM starts with {server.model}; this takes 20 to 60 s on a CPU", file=sys.stderr)
    while True:
        seconds = time.monotonic() - started
        if child.poll() is not None:
            raise RunError(f"vLLM did not start (log: {log}):\n{_tail(log)}")
        if seconds > START_SECONDS:
            raise RunError(f"vLLM did not answer within {START_SECONDS:.0f} s; see {log}")
        try:
            client.call("GET", "/health", timeout=5)
            break
        except (Unreachable, Refused):
            if live:
                print(f"\r{seconds:.0f} s ", end="", file=sys.stderr, flush=True)
            time.sleep(0.5)
    print(f"{chr(13) if live else ''}up after {seconds:.0f} s", file=sys.stderr)


def _tail(log: Path) -> str:
    """The last lines of the log, errors preferred."""
    text = log.read_text(errors="replace").splitlines()
    errors = [line for line in text if "Error" in line or "error:" in line]
    return "\n".join((errors or text)[-_SHOWN_LINES:])
