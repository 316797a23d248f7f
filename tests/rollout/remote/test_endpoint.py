"""The endpoint engine against a server of OpenAI's API that fails to order."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from grpo.errors import EngineError, WeightsError
from grpo.rollout import ENGINES
from grpo.rollout.collect import collect
from grpo.rollout.remote import endpoint
from grpo.rollout.remote.endpoint import EndpointEngine
from grpo.rollout.remote.server_answers import seed_of
from grpo.rollout.settings import EndpointSettings
from grpo.types import EngineSpec, Request, Sampling, Version
from tests.grpo.outside.hostile import drips, hostile

SPEC = EngineSpec(model="student", max_length=64)
CHAT = [{"role": "system", "content": "Think."}, {"role": "user", "content": "7 * 8?"}]
PARITY = Path(__file__).parents[3] / "recipes" / "assets" / "parity-base"


class Served:
    """What the server was asked, and the faults it has left: a status, "drop", "hang" or a dict."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.faults: list[Any] = []
        self.keys: set[str | None] = set()
        self.url = ""
        self.most = self.busy = 0
        self.lock = threading.Lock()

    def answer(self, path: str, body: Any) -> Any:
        if path == "/v1/models":
            return {"data": [{"id": "teacher"}, {"id": "other"}]}
        with self.lock:
            self.asked.append((path, body))
            fault = self.faults.pop(0) if self.faults else None
            self.busy += 1
            self.most = max(self.most, self.busy)
        time.sleep(0.02)
        with self.lock:
            self.busy -= 1
        if fault == "hang":
            time.sleep(0.5)
        if isinstance(fault, int) or fault == "drop":
            return None if fault == "drop" else fault
        if isinstance(fault, (dict, list, tuple)):
            return fault
        text = f"<answer>{body['seed']}</answer> and more"
        said = {"message": {"content": text}} if "messages" in body else {"text": text}
        choice = {"index": 0, "finish_reason": "stop", **said}
        return {"choices": [choice], "usage": {"completion_tokens": 3}}


@contextmanager
def running() -> Iterator[Served]:
    served = Served()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(None)

        def do_POST(self) -> None:
            self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def reply(self, body: Any) -> None:
            served.keys.add(self.headers["Authorization"])
            found = served.answer(self.path, body)
            if found is None:
                self.close_connection = True
                return
            status = found if isinstance(found, int) else 200
            content = json.dumps({"error": {"message": "no"}} if status > 299 else found).encode()
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except OSError:
                pass  # the client hung up

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    served.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.01)
    with running() as served:
        yield served


def engine_for(server: Served, said: Any = CHAT, **settings: Any) -> EndpointEngine:
    return EndpointEngine(
        SPEC,
        EndpointSettings(url=server.url, **{"timeout": 5.0, **settings}),
        say=lambda _: said,
    )


def requests(count: int = 2, n: int = 2, **sampling: Any) -> list[Request]:
    drawn = Sampling(max_tokens=8, temperature=0.6, top_p=0.95, **sampling)
    return [
        Request(uid=str(i), ids=(2, 3, i), n=n, sampling=drawn, key=(7, 0, i, 0))
        for i in range(count)
    ]


def test_every_sample_is_asked_for_once_with_a_seed_of_its_own(server: Served) -> None:
    engine = engine_for(server, body={"top_k": 20}, limit_field="max_completion_tokens")
    groups = dict(collect(engine, requests(3, 4), text=True))
    seeds = [body["seed"] for _, body in server.asked]
    assert len(seeds) == len(set(seeds)) == 12
    expected = [(seed_of((7, 0, 1, 0)) + i) % 2**31 for i in range(4)]
    texts = [completion.text for completion in groups["1"]]
    assert texts == [f"<answer>{seed}</answer> and more" for seed in expected]
    assert all(len(completion) == 0 for completion in groups["1"])
    path, body = server.asked[0]
    assert path == "/v1/chat/completions"
    assert body["messages"] == CHAT
    wanted = {"model": "teacher", "n": 1, "temperature": 0.6, "top_p": 0.95, "top_k": 20}
    assert body == body | wanted | {"max_completion_tokens": 8}
    assert "max_tokens" not in body
    assert engine.take_metrics() == {
        "rollout/requests_retried": 0.0,
        "rollout/completion_tokens": 36.0,
    }


def test_text_goes_to_the_route_for_text(server: Served) -> None:
    [group] = dict(
        collect(engine_for(server, "Once", model="other"), requests(1, 1), text=True)
    ).values()
    [(path, body)] = server.asked
    assert (path, body["prompt"], body["model"]) == ("/v1/completions", "Once", "other")
    assert group[0].finish == "stop"


@pytest.mark.parametrize(
    "fault",
    [
        500,
        429,
        503,
        "drop",
        [],
        {"choices": []},
        {"choices": {"a": 1}},
        {"choices": [[]]},
        {"choices": [{"message": None}]},
        {"choices": [{"message": {"content": None}}]},
        {"choices": [{"message": {"content": [{"type": "text", "text": "7"}]}}]},
        {"choices": [{"message": {"content": "7", "reasoning": {"a": 1}}}]},
    ],
)
def test_what_fails_is_asked_again_and_given_out_once(server: Served, fault: Any) -> None:
    server.faults = [fault, None, fault, fault]
    engine = engine_for(server)
    groups = dict(collect(engine, requests(2, 3), text=True))
    assert {uid: [c.index for c in group] for uid, group in groups.items()} == {
        "0": [0, 1, 2],
        "1": [0, 1, 2],
    }
    asked = Counter(body["seed"] for _, body in server.asked)
    assert sum(asked.values()) == 6 + 3
    assert len(asked) == 6  # a sample asked for again keeps its seed
    assert engine.take_metrics()["rollout/requests_retried"] == 3.0
    assert engine.poll(0.1) == []


def test_an_answer_that_comes_too_late_is_not_looked_at(server: Served) -> None:
    server.faults = ["hang"]
    engine = engine_for(server, timeout=0.2)
    [group] = dict(collect(engine, requests(1, 2), text=True)).values()
    assert len(group) == 2
    time.sleep(0.5)  # the first call's answer would be here by now
    assert engine.poll(0.1) == []


def test_a_byte_now_and_then_does_not_hold_the_engine() -> None:
    drip = drips(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n" + b" " * 999, 0.05)
    with hostile(drip) as slow:
        engine = EndpointEngine(
            SPEC,
            EndpointSettings(url=slow.url, model="m", timeout=0.3, retries=0),
            say=lambda _: "",
        )
        started = time.monotonic()
        with pytest.raises(EngineError, match=r"of request '0' failed 1 times .*in time"):
            dict(collect(engine, requests(1), text=True))
        assert time.monotonic() - started < 1.5


def test_failures_without_end_and_refusals_stop_the_run(server: Served) -> None:
    server.faults = [500] * 9
    with pytest.raises(EngineError, match=r"sample 0 of request '0' failed 3 times .*status 500"):
        dict(collect(engine_for(server, retries=2), requests(1, 1), text=True))
    server.faults = [401]
    before = len(server.asked)
    with pytest.raises(EngineError, match=r"refused .* '0' to model 'teacher': status 401: no"):
        dict(collect(engine_for(server), requests(1, 1), text=True))
    assert len(server.asked) == before + 1
    with pytest.raises(EngineError, match="does not say which models"):
        EndpointEngine(
            SPEC, EndpointSettings(url="http://127.0.0.1:9/v1", timeout=0.5), say=lambda _: ""
        )


def test_endings_stop_strings_and_hidden_thoughts(server: Served) -> None:
    def choice(finish: str, **message: Any) -> dict[str, Any]:
        return {"choices": [{"finish_reason": finish, "message": message}]}

    server.faults = [
        choice("length", content="a </answer> b"),
        choice("length", content="never ends"),
        choice("content_filter", content=""),
        choice("stop", content="<answer>7</answer>", reasoning_content="Let me see. "),
    ]
    asked = requests(4, 1, stop=("</answer>",))
    found = dict(collect(engine_for(server, concurrency=1), asked, text=True))
    ended = [(group[0].text, group[0].finish) for _, group in sorted(found.items())]
    assert ended == [
        ("a </answer>", "stop"),
        ("never ends", "length"),
        ("", "abort"),
        ("<think>\nLet me see.\n</think>\n\n<answer>7</answer>", "stop"),
    ]
    assert "stop" not in server.asked[0][1]


def test_concurrency_is_a_limit(server: Served) -> None:
    dict(collect(engine_for(server, concurrency=3), requests(6, 4), text=True))
    assert server.most == 3


def test_canceled_and_overdue_requests(server: Served) -> None:
    engine = engine_for(server, concurrency=1)
    late = Request(
        uid="late",
        ids=(1,),
        n=2,
        sampling=Sampling(max_tokens=4),
        key=(1,),
        deadline=time.monotonic() - 1,
    )
    engine.submit([*requests(2, 1), late])
    engine.cancel(["0"])
    found = []
    while len(found) < 3:
        found += engine.poll()
    assert sorted((c.request, c.index, c.finish) for c in found) == [
        ("1", 0, "stop"),
        ("late", 0, "abort"),
        ("late", 1, "abort"),
    ]
    assert engine.poll() == []


def test_what_it_cannot_do_is_refused(server: Served) -> None:
    engine = engine_for(server)
    with pytest.raises(EngineError, match="top_k or min_p"):
        engine.submit(requests(1, 1, top_k=3))
    engine.submit(requests(1, 1))
    with pytest.raises(EngineError, match="is queued already"):
        engine.submit(requests(1, 1))
    with pytest.raises(WeightsError, match="takes no weights"):
        engine.load_weights([], Version(step=1, hash="x"))


def test_key_and_prompt_of_a_recipes_engine(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    spec = EngineSpec(model=str(PARITY), max_length=64)
    engine = ENGINES["endpoint"](spec=spec, url=server.url, api_key_env="MY_KEY")
    dict(collect(engine, [Request(**{**vars_of(requests(1, 1)[0]), "ids": (6, 7, 8)})], text=True))
    assert server.keys == {"Bearer secret"}
    [message] = server.asked[0][1]["messages"]
    assert message["role"] == "user"
    assert len(message["content"]) == 3


def vars_of(request: Request) -> dict[str, Any]:
    return {name: getattr(request, name) for name in ("uid", "n", "sampling", "key")}
