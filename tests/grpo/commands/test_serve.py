"""`grpo serve` without vLLM: what it refuses, and that nothing outlives it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grpo.cli import main
from grpo.commands import serve
from grpo.errors import EngineError, RecipeError, RunError
from grpo.outside.web.address import Address
from grpo.rollout.remote.server_guard import SETTINGS
from grpo.rollout.remote.server_token import folder_of, found_token, token_of, write_token

# Answers /health, tells its log what it was told, and ends.
BRIEF = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
    def log_message(self, *_):
        pass
server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
print("told", os.environ["GRPO_SERVE_GUARD"], "key", repr(os.environ.get("VLLM_API_KEY")))
print("argv", sys.argv, "mask", oct(os.umask(0)), flush=True)
server.handle_request()
"""
SLEEPER = "import time; print('up', flush=True); time.sleep(60)"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that vLLM is there."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())


def test_a_port_in_use_is_a_sentence(installed: None, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RecipeError, match=f"--port {port} on 127.0.0.1 cannot be used"):
            serve.serve(serve.Server(model=str(tmp_path), port=port))


def test_a_model_that_is_not_there(installed: None, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is an empty folder"):
        serve.serve(serve.Server(model=str(tmp_path)))
    with pytest.raises(RecipeError, match="there is no such folder"):
        serve.serve(serve.Server(model=str(tmp_path / "nowhere")))


def test_without_vllm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EngineError, match="pip install 'grpo-toolkit"):
        serve.serve(serve.Server(model="some/model"))
    assert main(["serve", "some/model"]) == 2
    assert "grpo serve needs vLLM" in capsys.readouterr().err


def test_log_probs_are_those_of_the_sampled_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "is_cpu", lambda: True)
    server = serve.Server(model="m", max_model_len=99, options=("--seed=3",))
    argv = serve.command(server)
    wanted = {"--logprobs-mode=processed_logprobs", "--max-model-len=99", "--host=127.0.0.1"}
    assert wanted < set(argv)
    assert argv[-1] == "--seed=3"
    assert serve.environment(server)["VLLM_SERVER_DEV_MODE"] == "1"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this user's files lie in a test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "grpo"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("token", [True, False])
def test_a_server_has_a_token_and_a_log_of_its_user_alone(
    installed: None,
    own: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    token: bool,
) -> None:
    (tmp_path / "config.json").write_text("{}")
    server = serve.Server(model=str(tmp_path), port=free_port(), token=token)
    monkeypatch.setattr(serve, "check_model", lambda *_: None)
    monkeypatch.setattr(serve, "is_cpu", lambda: True)
    monkeypatch.setenv("VLLM_API_KEY", "another")
    argv = [sys.executable, "-c", BRIEF, str(server.port)]
    monkeypatch.setattr(serve, "command", lambda _: argv)
    written: list[str] = []
    monkeypatch.setattr(
        serve,
        "write_token",
        lambda address: written.append((file := write_token(address)).read_text()) or file,
    )
    # A link where the log is to be, as another user would have laid it.
    precious = tmp_path / "precious"
    precious.write_text("precious")
    folder = folder_of(server.address)
    folder.parent.mkdir(parents=True)
    folder.mkdir()
    (folder / "log").symlink_to(precious)

    with pytest.raises(RunError, match="ended by itself with code 0"):
        serve.serve(server)
    said, log = capsys.readouterr(), (folder / "log").read_text()
    assert precious.read_text() == "precious"
    assert folder.parent == own
    assert {oct(path.stat().st_mode & 0o777) for path in (own, folder)} == {"0o700"}
    assert (folder / "log").stat().st_mode & 0o777 == 0o600
    assert "mask 0o77" in log
    told = json.loads(log.partition("told ")[2].partition(" key ")[0])
    file = str(token_of(server.address)) if token else ""
    assert told == {"host": "127.0.0.1", "port": server.port, "token_file": file}
    assert ("rollout.engine_args.key_file=" + file in said.out) == token
    assert ("--no-token: every user of this machine can pause" in said.err) == (not token)
    assert not token_of(server.address).exists()  # gone with the server
    if token:
        assert len(written[0]) == 43  # 32 bytes in base64
        assert written[0] not in said.out + said.err + log
        assert "key ''" in log  # vLLM's own would ask for another one on the same header
    else:
        assert "key 'another'" in log


def test_every_start_has_another_token_in_a_file_for_its_port(own: Path) -> None:
    address = Address(url="http://127.0.0.1:8000")
    assert found_token(address) == ""
    file = write_token(address)
    first = file.read_text()
    assert (file.stat().st_mode & 0o777, file.parent.parent) == (0o600, own)
    assert write_token(address) == file
    assert file.read_text() != first
    assert found_token(Address(url="http://localhost:8000/")) == str(file)
    assert found_token(Address(url="http://127.0.0.1:8001")) == ""
    write_token(Address(url="http://gpu1:8000"))
    assert found_token(Address(url="http://gpu1:8000")) == ""  # a name may lead elsewhere


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--api-key=x", "leave --api-key out"),
        ("--api_key", "leave --api-key out"),
        ("--host=0.0.0.0", "by --host and --port"),
        ("--port=1", "by --host and --port"),
        ("--generation-config=auto", "other probabilities"),
        ("--override_generation_config={}", "other probabilities"),
        ("--logprobs-mode=raw_logprobs", "other probabilities"),
    ],
)
def test_options_that_would_go_round_the_guard(
    installed: None, tmp_path: Path, option: str, message: str
) -> None:
    (tmp_path / "config.json").write_text("{}")
    server = serve.Server(model=str(tmp_path), port=free_port(), options=(option,))
    with pytest.raises(RecipeError, match=message):
        serve.serve(server)


def test_the_guard_stands_before_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "is_cpu", lambda: True)
    server = serve.Server(model="m", host="10.0.0.1")
    assert "--middleware=grpo.rollout.remote.server_guard.Guard" in serve.command(server)
    assert json.loads(serve.environment(server)[SETTINGS])["host"] == "10.0.0.1"
    assert serve.Server(model="m", host="::1").address.url == "http://[::1]:8000"
    assert serve.Server(model="m", host="0.0.0.0").address.url == "http://127.0.0.1:8000"


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def wait_until_gone(pid: int) -> bool:
    end = time.monotonic() + 10
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(pid)


def test_the_child_ends_with_the_block(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        argv = [sys.executable, "-c", SLEEPER]
        with serve._child(argv, dict(os.environ), log) as child:
            assert child.poll() is None
    assert child.returncode == -signal.SIGTERM


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    code = (
        "import os, sys, time\n"
        "from grpo.commands import serve\n"
        f"argv = [sys.executable, '-c', {SLEEPER!r}]\n"
        f"with open({str(tmp_path / 'log')!r}, 'wb') as log, "
        "serve._child(argv, dict(os.environ), log) as child:\n"
        "    print(child.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        end = time.monotonic() + 10
        while "up" not in (tmp_path / "log").read_text() and time.monotonic() < end:
            time.sleep(0.02)
        assert alive(pid)
        parent.kill()
    assert wait_until_gone(pid)


def test_a_second_server_on_its_way_to_a_port_leaves_the_token_of_the_first(
    installed: None, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "check_model", lambda *_: None)
    monkeypatch.setattr(serve, "is_cpu", lambda: True)
    first = serve.Server(model=str(tmp_path), port=free_port())
    seen: list[tuple[str, str]] = []

    def started(*_: object) -> None:  # the first has not taken its port yet
        token = token_of(first.address)
        before = token.read_text()
        with pytest.raises(RecipeError, match=f"--port {first.port}: another `grpo serve`"):
            serve.serve(first)
        seen.append((before, token.read_text()))

    monkeypatch.setattr(serve, "_await_health", started)
    argv = [sys.executable, "-c", "pass"]
    monkeypatch.setattr(serve, "command", lambda _: argv)
    for _ in range(2):  # the lock ends with its server
        with pytest.raises(RunError, match="ended by itself"):
            serve.serve(first)
    assert len(seen) == 2
    assert all(before == after for before, after in seen)
