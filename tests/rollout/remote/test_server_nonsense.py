"""The server engine against a server that talks nonsense, and one that wants its token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from grpo.errors import EngineError, WeightsError
from grpo.outside.web.address import Address
from grpo.rollout.collect import collect
from grpo.rollout.remote.server_token import write_token

from .fake_server import FakeServer, running
from .test_server import V1, WEIGHTS, engine_for, requests


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with running() as fake:
        yield fake


STRANGE = [
    {"finish_reason": ["stop"]},
    {"index": "0"},
    {"index": None},
    {"token_ids": None},
    {"token_ids": "123"},
    {"token_ids": [1, 2.5, 1]},
    {"token_ids": [1, -2, 1]},
    {"token_ids": [1, True, 1]},
    {"token_ids": [1, 10**30, 1]},
    {"token_ids": list(range(9)), "logprobs": {"content": [{"logprob": -1.0}] * 9}},
    {"logprobs": None},
    {"logprobs": [1, 2, 3]},
    {"logprobs": {"content": [-1.0] * 3}},
    {"logprobs": {"content": [{"logprob": "-1"}] * 3}},
    {"logprobs": {"content": [{"logprob": 1.5}] * 3}},
    {"logprobs": {"content": [{"logprob": -(10**400)}] * 3}},
    {"logprobs": {"content": [{}] * 3}},
    {"weight_versions": {"version": "default"}},
    {"weight_versions": [None]},
    {"weight_versions": [{"version": ["default"], "start": 0, "end": 3}]},
    {"weight_versions": [{"version": "default", "start": "0", "end": "3"}]},
    {
        "weight_versions": [
            {"version": "default", "start": 0, "end": 5},
            {"version": "default", "start": 5, "end": 3},
        ]
    },
    {"text": None},
    {"text": ["7"]},
]


@pytest.mark.parametrize("fault", STRANGE)
def test_a_strange_answer_is_asked_for_again(server: FakeServer, fault: Any) -> None:
    engine = engine_for(server)
    server.faults = [fault]
    (group,) = dict(collect(engine, requests(1))).values()
    assert [completion.text for completion in group] == ["sample 0", "sample 1"]
    assert engine.take_metrics()["rollout/requests_retried"] == 1


@pytest.mark.parametrize("answer", [[], {}, "x", {"choices": 3}, {"choices": [[]]}])
def test_what_is_no_answer_stops_the_run_by_a_sentence(server: FakeServer, answer: Any) -> None:
    engine = engine_for(server, retries=1)
    server.strange["/inference/v1/generate"] = answer
    engine.submit(requests(1))
    with pytest.raises(EngineError, match=r"request '0' failed 2 times .* of 2 samples came"):
        engine.poll()


HELLO = {"instance": "a", "model": "tiny", "dtype": "float32", "vocab_size": 50, "max_length": 64}


@pytest.mark.parametrize(
    ("path", "answers"),
    [
        ("/collective_rpc", [[], {}, {"results": []}, {"results": {}}, {"results": [None]}]),
        ("grpo_hello", [[], "hello", {}, HELLO | {"max_length": "64"}, HELLO | {"instance": None}]),
        ("/weight_info", [[], {}, {"weight_version": None}]),
    ],
)
def test_a_server_that_talks_nonsense_between_batches(
    server: FakeServer, path: str, answers: list[Any]
) -> None:
    for answer in answers:
        server.strange.clear()
        engine = engine_for(server, wait=0.1, retries=1)
        server.strange[path] = answer
        engine.submit(requests(1))
        with pytest.raises(EngineError, match=r"has been gone|keeps going away"):
            engine.poll()
        if path != "/weight_info":
            with pytest.raises(EngineError, match="does not say what it holds"):
                engine_for(server)


@pytest.mark.parametrize(
    ("path", "answers"),
    [
        ("grpo_report", [None, [], {}, {"hash": "x", "tensors": "2", "missing": []}]),
        ("/inference/v1/generate", [[], {}, {"prompt_logprobs": [1, 2]}]),
    ],
)
def test_weights_are_not_taken_for_loaded_by_nonsense(
    server: FakeServer, path: str, answers: list[Any]
) -> None:
    engine = engine_for(server, retries=0)
    for answer in answers:
        server.strange[path] = answer
        with pytest.raises(WeightsError, match="did not reach"):
            engine.load_weights(WEIGHTS.items(), V1)
        with pytest.raises(WeightsError, match="half-way"):
            engine.poll()


def test_what_is_no_server_is_a_sentence(server: FakeServer) -> None:
    server.strange = {"/openapi.json": [], "/v1/models": {"data": {}}}
    with pytest.raises(EngineError, match="is not an OpenAI-compatible server"):
        engine_for(server)


def test_the_token_of_a_server_beside_us_is_found_and_read_anew(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    address = Address(url=server.url)
    first = write_token(address).read_text()
    engine = engine_for(server)
    engine.load_weights(WEIGHTS.items(), V1)
    assert set(server.keys) == {f"Bearer {first}"}
    # A server that was restarted has another one.
    server.keys.clear()
    second = write_token(address).read_text()
    server.faults = ["restart"]
    dict(collect(engine, requests(1)))
    assert set(server.keys) == {f"Bearer {second}"}
    assert len(server.deliveries) == 2
    with pytest.raises(EngineError, match="key_file and api_key_env are both set"):
        engine_for(server, key_file="a", api_key_env="B")


def test_a_wrong_token_is_a_sentence(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "wrong")
    server.strange["/openapi.json"] = 401
    with pytest.raises(EngineError, match=r"does not take our key \(status 401: so it is\); set"):
        engine_for(server, api_key_env="MY_KEY")
    assert server.keys == ["Bearer wrong"]
