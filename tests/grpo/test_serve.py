"""`grpo serve` without vLLM: what it refuses, and that nothing outlives it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grpo import serve
from grpo.cli import main
from grpo.errors import EngineError, RecipeError

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
        "from grpo import serve\n"
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
