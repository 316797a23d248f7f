"""The hub is asked once, and a wrong name ends at once: counted by a server that stands for it."""

from __future__ import annotations

import importlib
import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from grpo.cli import main
from grpo.data.published import load_rows
from grpo.errors import DataError, RecipeError
from grpo.model import hub, pretrained
from tests.grpo.tiny_bases import save_tiny_base

SHA = "a" * 40
REFUSED = "http://127.0.0.1:9"  # nothing listens there


class Hub(ThreadingHTTPServer):
    """Answers everything with `status`, headers and body, after `delay` seconds."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[str] = []
        self.status, self.body, self.delay = 200, {"id": "org/tiny", "sha": SHA}, 0.0
        self.headers: dict[str, str] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server: Any = self.server
        server.asked.append(self.path)
        time.sleep(server.delay)
        self.send_response(server.status)
        for name, value in server.headers.items():
            self.send_header(name, value)
        body = json.dumps(server.body).encode()
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with suppress(BrokenPipeError):  # the caller waits no longer
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Hub]:
    with Hub() as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As users have it: the hub is asked. Nothing listens, and the cache is empty."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    at(monkeypatch, REFUSED)
    hub._found.clear()
    hub._refused.clear()


def at(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """The model org/tiny in the cache, as huggingface_hub leaves it."""
    place = tmp_path / "cache" / "models--org--tiny"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(SHA)
    save_tiny_base(place / "snapshots" / SHA)
    return place / "snapshots" / SHA


@pytest.mark.parametrize("path", ["nomodel", "org/name"])
def test_a_wrong_path_without_a_network_ends_every_command_at_once(
    path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nomodle").mkdir()
    file = tmp_path / "r.yaml"
    stage: dict[str, Any] = {
        "model": {"path": path},
        "data": {"source": "parity"},
        "rewards": [{"name": "accuracy"}],
    }
    file.write_text(json.dumps(stage))
    importlib.import_module(
        "grpo.commands.ray_learners"
    )  # torch and what else takes long to import
    importlib.import_module("grpo.commands.eval_tasks")
    for words in (
        ["train", str(file)],
        ["eval", path, "--tasks", "parity"],
        ["chat", path],
    ):
        began = time.monotonic()
        assert main(words) == 2
        assert time.monotonic() - began < 5  # before: 23 s for each file that was looked for
        said = capsys.readouterr().err
        assert f"= {path!r}: there is no such folder, no copy of that name in the local" in said
        assert "the hub at 127.0.0.1:9 could not be reached (" in said
        assert sum(line.startswith("grpo: error: ") for line in said.splitlines()) == 1
        assert ("Did you mean 'nomodle'?" in said) == (path == "nomodel")


def test_rows_that_are_nowhere_end_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(DataError, match=r"'org/rows' .* no copy .* could not be reached"):
        load_rows("org/rows", None, "train")
    assert time.monotonic() - began < 3


def test_a_cached_model_needs_no_network(cached: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = pretrained.load_model("org/tiny")
    assert model.config.model_type == "llama"
    assert len(pretrained.tokenizer("org/tiny")) == model.config.vocab_size
    assert pretrained.generation_config("org/tiny").eos_token_id is not None
    pretrained.check_model("org/tiny")
    assert caplog.text.count("so the copy in the local cache is used") == 1
    (cached / "model.safetensors").unlink()  # a download that was cut
    with pytest.raises(RecipeError, match=r"and no weights.*model\.safetensors"):
        pretrained.check_model("org/tiny")


def test_what_is_cached_at_the_hubs_commit_costs_one_question(
    cached: Path, server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, server.url)
    shutil.rmtree(cached.parent.parent / "refs")  # not even a branch is known here
    assert hub.find_repo("org/tiny", "model") == hub.Repo(path="org/tiny", revision=SHA)
    assert server.asked == ["/api/models/org/tiny"]
    assert pretrained.config("org/tiny").model_type == "llama"
    assert pretrained.load_model("org/tiny").config.model_type == "llama"
    files = {file.name for file in cached.iterdir()}
    assert not [path for path in server.asked[1:] if Path(path).name in files]


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (404, {"X-Error-Code": "RepoNotFound"}, "the hub has no model of this name"),
        (401, {}, "the hub has no model of this name"),
        (403, {"X-Error-Code": "GatedRepo"}, "is gated: accept its terms at .*org/tiny"),
        (418, {}, "refuses the request with status 418"),
        (503, {}, r"could not be reached \(status 503\)"),
    ],
)
def test_what_the_hub_answers_is_said(
    status: int,
    headers: dict[str, str],
    expected: str,
    server: Hub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at(monkeypatch, server.url)
    server.status, server.headers, server.body = status, headers, {"error": "no"}
    for _ in range(2):
        with pytest.raises(RecipeError, match=f"there is no such folder, .*{expected}"):
            pretrained.config("org/tiny")
    assert len(server.asked) == 1


def test_a_hub_that_says_nothing_is_not_waited_for(
    server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, server.url)
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "0.3")
    server.delay = 3
    began = time.monotonic()
    with pytest.raises(RecipeError, match="could not be reached"):
        pretrained.check_model("org/tiny")
    assert time.monotonic() - began < 2


def test_words_that_are_no_id_are_not_asked_for(
    server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, server.url)
    for path in ("my model", "--name", "/not/there", "a/b/c", "./here"):
        with pytest.raises(RecipeError, match=r"there is no such folder"):
            pretrained.check_model(path)
    assert server.asked == []
