"""The server engine against a fake server: nothing sampled twice, lost, or from other weights."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from grpo.errors import EngineError, WeightsError
from grpo.model.canary import CANARY_LENGTH
from grpo.model.content_hash import content_hash
from grpo.rollout.collect import collect
from grpo.rollout.remote.server import ServerEngine
from grpo.rollout.remote.server_answers import seed_of
from grpo.rollout.settings import ServerSettings
from grpo.types import EngineSpec, LoraSpec, Request, Sampling, Version

from .fake_server import CANARY, FakeServer, running

SPEC = EngineSpec(model="tiny", max_length=64)
WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(5, dtype=torch.bfloat16)}
V1 = Version(step=1, hash=content_hash(WEIGHTS.items()))


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with running() as fake:
        yield fake


def engine_for(server: FakeServer, spec: EngineSpec = SPEC, **settings: Any) -> ServerEngine:
    return ServerEngine(
        spec, ServerSettings(url=server.url, **{"timeout": 5.0, "wait": 5.0, **settings})
    )


def requests(count: int = 3, **sampling: Any) -> list[Request]:
    return [
        Request(
            uid=str(i),
            ids=(2, 3, i),
            n=2,
            sampling=Sampling(**{"max_tokens": 8, "eos_ids": (1, 9), **sampling}),
            key=(7, 0, i, 0),
        )
        for i in range(count)
    ]


def test_what_is_asked_and_what_comes(server: FakeServer) -> None:
    engine = engine_for(server)
    engine.load_weights(WEIGHTS.items(), V1)
    groups = dict(collect(engine, requests(stop=("!",), top_k=4)))
    assert sorted(groups) == ["0", "1", "2"]
    second = groups["1"][1]
    assert second.ids.tolist() == [1, seed_of((7, 0, 1, 0)) % 50, 1]
    assert second.logprobs.tolist() == [-0.5, -0.5, -0.5]
    assert second.logprobs.dtype == np.float32
    assert (second.segments[0].version, second.text, second.finish) == (V1, "sample 1", "stop")
    asked = {tuple(body["token_ids"]): body["sampling_params"] for body in server.asked}[2, 3, 1]
    expected = {
        "n": 2,
        "seed": seed_of((7, 0, 1, 0)),
        "stop": ["!"],
        "stop_token_ids": [1, 9],
        "ignore_eos": True,
        "include_stop_str_in_output": True,
        "top_k": 4,
        "repetition_penalty": 1.0,  # or a server takes that of generation_config.json
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "logprobs": 0,
    }
    assert asked == asked | expected


def test_seeds_differ_between_requests_and_leave_room_for_samples() -> None:
    seeds = {seed_of((a, 0, b, 0)) for a in range(20) for b in range(20)}
    assert len(seeds) == 400
    assert max(seeds) < 2**62


@pytest.mark.parametrize("fault", [500, "drop", "half", "hang", {"finish_reason": "abort"}])
def test_a_call_that_fails_is_made_again_and_delivered_once(server: FakeServer, fault: Any) -> None:
    engine = engine_for(server, timeout=0.3)
    server.faults = [fault, fault]
    # `collect` raises for completions that come twice.
    groups = dict(collect(engine, requests()))
    assert [len(groups[str(i)]) for i in range(3)] == [2, 2, 2]
    assert len(server.asked) == 5
    names = [body["request_id"] for body in server.asked]
    assert len(set(names)) == 5
    assert len({body["sampling_params"]["seed"] for body in server.asked}) == 3
    assert engine.take_metrics()["rollout/requests_retried"] == 2
    assert engine.take_metrics()["rollout/requests_retried"] == 0
    time.sleep(0.5 if fault == "hang" else 0)
    assert engine.poll(0.0) == []  # the late answers of calls that were given up


def test_a_request_that_keeps_failing_stops_the_run_by_name(server: FakeServer) -> None:
    engine = engine_for(server, retries=1)
    server.faults = [500] * 2
    engine.submit(requests(1))
    with pytest.raises(EngineError, match=r"request '0' failed 2 times.*status 500: so it is"):
        engine.poll()


def test_a_server_that_restarts_mid_step_gets_its_weights_back(server: FakeServer) -> None:
    engine = engine_for(server)
    engine.load_weights(WEIGHTS.items(), V1)
    server.faults = [None, "restart"]
    groups = dict(collect(engine, requests(5)))
    assert len(groups) == 5
    versions = {c.segments[0].version for group in groups.values() for c in group}
    assert versions == {V1}
    assert len(server.deliveries) == 2
    assert torch.equal(server.deliveries[1]["a"], WEIGHTS["a"])
    assert engine.take_metrics()["rollout/server_restarts"] == 1


def test_weights_lost_without_a_failure_are_noticed(server: FakeServer) -> None:
    engine = engine_for(server)
    engine.load_weights(WEIGHTS.items(), V1)
    server.faults = ["forget"]
    (group,) = dict(collect(engine, requests(1))).values()
    assert group[0].segments[0].version == V1
    assert len(server.deliveries) == 2
    # Between batches too, before anything is asked.
    server.forget()
    before = len(server.asked)
    (group,) = dict(collect(engine, requests(1))).values()
    assert (len(server.deliveries), len(server.asked)) == (3, before + 1)


def test_the_weights_kept_for_a_restart_are_those_delivered(server: FakeServer) -> None:
    engine = engine_for(server)
    live = {name: tensor.clone() for name, tensor in WEIGHTS.items()}
    engine.load_weights(live.items(), V1)
    live["a"].add_(1.0)  # the learner steps while its old weights sample
    server.faults = ["restart"]
    dict(collect(engine, requests(1)))
    assert torch.equal(server.deliveries[1]["a"], WEIGHTS["a"])


def test_a_server_that_stays_away_is_named(server: FakeServer) -> None:
    engine = engine_for(server, wait=0.2)
    server.refuse = "/collective_rpc"
    engine.submit(requests(1))
    with pytest.raises(EngineError, match="has been gone for 0 s"):
        engine.poll()


def test_the_limits_are_those_of_the_server_that_is_there_now(server: FakeServer) -> None:
    engine = engine_for(server)
    long = requests(1, max_tokens=80)
    with pytest.raises(EngineError, match=r"needs 83 positions .* the engine has 64"):
        engine.submit(long)
    server.strange["grpo_hello"] = server.rpc("grpo_hello") | {"instance": "2", "max_length": 128}
    dict(collect(engine, requests(1)))  # the restart is met here
    assert sorted(dict(collect(engine, long))) == ["0"]


def test_another_runs_weights_are_not_sampled_from(server: FakeServer) -> None:
    engine = engine_for(server)
    server.label = "12-abc"
    engine.submit(requests(1))
    with pytest.raises(WeightsError, match="weights '12-abc' of another run"):
        engine.poll()


def test_the_ack_says_what_arrived(server: FakeServer) -> None:
    engine = engine_for(server)
    ack = engine.load_weights(WEIGHTS.items(), V1)
    assert (ack.version, ack.tensors) == (V1, 2)
    assert ack.canary == pytest.approx(CANARY * (CANARY_LENGTH - 1))
    assert server.labels == ["loading", f"1-{V1.hash}"]
    changed = {**WEIGHTS, "a": WEIGHTS["a"] + 1}
    assert engine.load_weights(changed.items(), V1).version != V1


@pytest.mark.parametrize(
    ("lie", "message"),
    [({"missing": ["norm"]}, "got no weights.*norm"), ({"different": "b"}, "'b' is not resident")],
)
def test_weights_that_did_not_all_arrive_are_not_sampled_from(
    server: FakeServer, lie: dict[str, Any], message: str
) -> None:
    engine = engine_for(server)
    server.spoil = lambda report: report.update(lie)
    with pytest.raises(WeightsError, match=message):
        engine.load_weights(WEIGHTS.items(), V1)
    assert server.label == "loading"  # no completion of this server is taken
    engine.submit(requests(1))
    with pytest.raises(WeightsError, match="half-way"):
        engine.poll()


def test_a_refused_update_is_a_sentence(server: FakeServer) -> None:
    engine = engine_for(server)
    server.refuse = "/update_weights"
    with pytest.raises(WeightsError, match=r"did not load weights .*status 500: so it is"):
        engine.load_weights(WEIGHTS.items(), V1)


def test_continue_gives_a_segment_for_each_weights(server: FakeServer) -> None:
    engine = engine_for(server)
    engine.load_weights(WEIGHTS.items(), V1)
    v2 = Version(step=2, hash=V1.hash)
    spans = [
        {"version": f"1-{V1.hash}", "start": 0, "end": 1},
        {"version": f"2-{V1.hash}", "start": 1, "end": 3},
    ]
    server.faults = [{"weight_versions": spans}]
    server.hold.clear()
    engine.submit(requests(1))
    assert engine.poll(0.1) == []
    engine.load_weights(WEIGHTS.items(), v2, "continue")
    assert server.paused[-1] == "keep"
    server.hold.set()
    completions = engine.poll()
    assert [(s.version, len(s.ids)) for s in completions[0].segments] == [(V1, 1), (v2, 2)]


def test_older_weights_than_the_calls_own_are_refused(server: FakeServer) -> None:
    engine = engine_for(server)
    engine.load_weights(WEIGHTS.items(), V1)
    engine.load_weights(WEIGHTS.items(), Version(step=2, hash=V1.hash))
    stale = [{"version": f"1-{V1.hash}", "start": 0, "end": 3}]
    server.faults = [{"weight_versions": stale}]
    (group,) = dict(collect(engine, requests(1))).values()
    assert group[0].segments[0].version.step == 2
    assert engine.take_metrics()["rollout/requests_retried"] == 1


@pytest.mark.parametrize("spans", [[], [{"version": "default", "start": 0, "end": 2}]])
def test_tokens_without_known_weights_are_refused(server: FakeServer, spans: list[Any]) -> None:
    engine = engine_for(server, retries=0)
    server.faults = [{"weight_versions": spans}]
    engine.submit(requests(1))
    with pytest.raises(EngineError, match="does not say which weights"):
        engine.poll()


def test_finish_waits(server: FakeServer) -> None:
    engine = engine_for(server)
    engine.load_weights(WEIGHTS.items(), V1)
    server.hold.clear()
    engine.submit(requests(1))
    assert engine.poll(0.1) == []
    started = time.monotonic()
    threading.Timer(0.3, server.hold.set).start()
    engine.load_weights(WEIGHTS.items(), Version(step=2, hash=V1.hash))
    assert time.monotonic() - started >= 0.25
    assert engine.poll()[0].segments[0].version == V1


def test_a_deadline_aborts_on_the_server(server: FakeServer) -> None:
    engine = engine_for(server)
    server.hold.clear()
    (plain,) = requests(1)
    late = Request(
        uid="late",
        ids=plain.ids,
        n=2,
        sampling=plain.sampling,
        key=plain.key,
        deadline=time.monotonic() + 0.2,
    )
    engine.submit([late])
    completions = engine.poll()
    assert [c.finish for c in completions] == ["abort", "abort"]
    assert server.aborted == [f"generate-tokens-{server.asked[0]['request_id']}"]


def test_canceled_requests_do_not_come_back(server: FakeServer) -> None:
    engine = engine_for(server)
    server.hold.clear()
    engine.submit(requests(2))
    assert engine.poll(0.1) == []
    engine.cancel(["0"])
    server.hold.set()
    assert {c.request for c in engine.poll()} == {"1"}
    assert engine.poll() == []
    engine.submit(requests(1))  # the name is free again
    assert {c.request for c in engine.poll()} == {"0"}


def test_a_text_only_server_samples_and_takes_no_weights(server: FakeServer) -> None:
    server.ours = server.tokens = False
    engine = engine_for(server)
    (group,) = dict(collect(engine, requests(1), text=True)).values()
    assert [(c.text, len(c)) for c in group] == [("7", 0), ("7", 0)]
    assert server.asked[0]["model"] == "some-model"
    with pytest.raises(WeightsError, match="evaluation and distillation only"):
        engine.load_weights(WEIGHTS.items(), V1)
    with pytest.raises(EngineError, match="top_k or min_p"):
        engine.submit(requests(1, top_k=3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "bfloat16"}, "--dtype bfloat16"),
        ({"max_length": 65}, "--max-model-len 65"),
        ({"lora": LoraSpec(rank=8)}, "rollout.engine=vllm"),
    ],
)
def test_a_server_that_does_not_fit_the_recipe(
    server: FakeServer, change: dict[str, Any], message: str
) -> None:
    spec = EngineSpec(**{"model": "tiny", "max_length": 64, **change})
    with pytest.raises(EngineError, match=re.escape(message)):
        engine_for(server, spec)


def test_another_model_is_not_taken_for_ours(server: FakeServer) -> None:
    engine = engine_for(server, EngineSpec(model="other", max_length=64))
    engine.submit(requests(1))
    with pytest.raises(EngineError, match="serves 'tiny', not 'other'"):
        engine.poll()


@pytest.mark.parametrize(
    ("url", "message"),
    [("http://127.0.0.1:9", "grpo serve tiny"), ("127.0.0.1:8000", "not an address like http")],
)
def test_nobody_there(url: str, message: str) -> None:
    with pytest.raises((EngineError, ValueError), match=message):
        ServerEngine(SPEC, ServerSettings(url=url))
