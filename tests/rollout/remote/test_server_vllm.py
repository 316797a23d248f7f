"""The server engine against a real vLLM server on the tiny model: weights, seeds, in flight."""

from __future__ import annotations

import http.client
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo.errors import WeightsError
from grpo.model.canary import canary_logprob
from grpo.model.content_hash import content_hash
from grpo.outside.web.address import Address
from grpo.outside.web.client import Client
from grpo.outside.web.replies import Refused
from grpo.rollout.collect import collect
from grpo.rollout.remote.server_token import found_token
from grpo.types import EngineSpec, Request, Sampling, Version

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(280)]

MODEL = str(Path(__file__).resolve().parents[3] / "recipes/assets/parity-base")
PORT = 8137
SPEC = EngineSpec(model=MODEL, max_length=64)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("vllm")
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [sys.executable, "-m", "grpo.cli", "serve", MODEL, f"--port={PORT}"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--max-model-len=64", "--threads=1"], stdout=output, stderr=output
        )
    try:
        while "serving" not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{PORT}"
    finally:
        process.terminate()
        process.wait(30)


def test_the_server_obeys_whoever_has_its_token(url: str) -> None:
    """Of vLLM's own routes, and of one that it shows to all where it has a key of its own."""
    address = Address(url=url)
    file = found_token(address)
    assert Path(file).stat().st_mode & 0o777 == 0o600
    assert (Path(file).parent / "log").stat().st_mode & 0o777 == 0o600
    assert Client(address).call("GET", "/health", timeout=5) is None
    rpc = {"method": "save_sharded_state", "args": ["/tmp/x"]}
    for path, body in (("/pause", None), ("/collective_rpc", rpc), ("/v1/models", None)):
        with pytest.raises(Refused, match="status 401"):
            Client(address).call("POST", path, body, timeout=5)
    client = Client(Address(url=url, key_file=file))
    with pytest.raises(Refused, match="status 403: /collective_rpc runs"):
        client.call("POST", "/collective_rpc", rpc, timeout=5)
    hello = client.call("POST", "/collective_rpc", {"method": "grpo_hello"}, timeout=5)
    assert hello["results"][0]["model"] == MODEL
    key = {"Authorization": f"Bearer {Path(file).read_text()}"}
    for extra, status in (
        ({}, 200),
        ({"Host": "evil.example"}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Content-Type": "text/plain"}, 415),
    ):
        sent = {"Content-Type": "application/json", **key, **extra}
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=5)
        connection.request("POST", "/update_weight_version", '{"new_version": "default"}', sent)
        assert connection.getresponse().status == status
        connection.close()


@pytest.fixture
def engine(url: str) -> Iterator[Any]:
    from grpo.rollout import ENGINES

    engine = ENGINES["server"](spec=SPEC, url=url, timeout=60.0, wait=60.0)
    yield engine
    engine.close()


@pytest.fixture
def model() -> Any:
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)


def deliver(engine: Any, model: Any, step: int, in_flight: str = "finish") -> Any:
    named = [(name, p.detach()) for name, p in model.named_parameters()]
    version = Version(step=step, hash=content_hash(named))
    ack = engine.load_weights(named, version, in_flight)
    assert ack.version == version
    return ack


def perturb(model: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.02 * parameter.std() * noise)


def requests(count: int, max_tokens: int = 16, **sampling: Any) -> list[Request]:
    settings = Sampling(max_tokens=max_tokens, eos_ids=(1,), **sampling)
    return [
        Request(uid=str(i), ids=(7, 8, 7, 2 + i % 4), n=3, sampling=settings, key=(0, 0, i, 0))
        for i in range(count)
    ]


def test_updated_weights_are_what_samples(engine: Any, model: Any) -> None:
    # Ties: the output head has to follow the embedding, which vLLM's CPU reload forgets.
    for step in range(1, 4):
        perturb(model, step)
        ack = deliver(engine, model, step)
        assert ack.canary == pytest.approx(canary_logprob(model), abs=1e-3)
    groups = dict(collect(engine, requests(4)))
    for request in requests(4):
        for completion in groups[request.uid]:
            ids = torch.tensor([[*request.ids, *completion.ids.tolist()]])
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, len(request.ids) - 1 : -1]
            wanted = logits.log_softmax(-1).gather(1, ids[0, len(request.ids) :, None])[:, 0]
            torch.testing.assert_close(
                torch.from_numpy(completion.logprobs), wanted, atol=1e-4, rtol=0
            )
            assert [s.version.step for s in completion.segments] == [3]


def test_log_probs_are_of_the_distribution_sampled(engine: Any, model: Any) -> None:
    deliver(engine, model, 1)
    (request,) = requests(1, temperature=0.7, top_k=2)
    (group,) = dict(collect(engine, [request])).values()
    ids = torch.tensor([[*request.ids, *group[0].ids.tolist()]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, len(request.ids) - 1 : -1] / 0.7
    least = logits.topk(2).values[:, -1:]
    wanted = logits.masked_fill(logits < least, -torch.inf).log_softmax(-1)
    wanted = wanted.gather(1, ids[0, len(request.ids) :, None])[:, 0]
    torch.testing.assert_close(torch.from_numpy(group[0].logprobs), wanted, atol=1e-4, rtol=0)


def test_the_same_key_draws_the_same_tokens(engine: Any, model: Any) -> None:
    deliver(engine, model, 1)
    first = dict(collect(engine, requests(6, temperature=2.0)))
    again = dict(collect(engine, requests(3, temperature=2.0)))
    for uid, group in again.items():
        assert [c.ids.tolist() for c in group] == [c.ids.tolist() for c in first[uid]]
    assert len({tuple(c.ids.tolist()) for group in first.values() for c in group}) > 9


def test_stop_strings_and_ends_of_sequence(engine: Any, model: Any) -> None:
    deliver(engine, model, 1)
    groups = dict(collect(engine, requests(4, stop=("</answer>",))))
    stopped = [c for group in groups.values() for c in group if "</answer>" in c.text]
    assert stopped
    assert all(c.text.endswith("</answer>") and c.finish == "stop" for c in stopped)
    plain = [c for g in dict(collect(engine, requests(4))).values() for c in g]
    ended = [c for c in plain if c.finish == "stop"]
    assert ended
    assert all(c.ids[-1] == 1 and "<eos>" not in c.text for c in ended)


def test_weights_change_under_way(engine: Any, model: Any) -> None:
    """How far requests are after a given time depends on the machine: several are tried."""
    for attempt, wait in enumerate((0.25, 0.1, 0.5, 1.0, 0.05, 2.0)):
        deliver(engine, model, 2 * attempt + 1)
        settings = Sampling(max_tokens=58)  # nothing ends one early
        engine.submit(
            [
                Request(uid=str(i), ids=(7, 8, 2), n=8, sampling=settings, key=(0, 0, i, 0))
                for i in range(12)
            ]
        )
        completions = engine.poll(wait)
        perturb(model, 9 + attempt)
        deliver(engine, model, 2 * attempt + 2, "continue")
        while len(completions) < 96:
            completions += engine.poll()
        caught = [c for c in completions if len(c.segments) == 2]
        if caught:
            break
    else:
        pytest.fail("in six attempts no request was under way when the weights changed")
    assert all(len(c) == 58 for c in completions)
    mixed = caught[0]
    versions = [s.version.step for s in mixed.segments]
    assert versions == [2 * attempt + 1, 2 * attempt + 2]
    at = len(mixed.segments[0].ids)
    ids = torch.tensor([[7, 8, 2, *mixed.ids.tolist()]])
    with torch.no_grad():
        logp = model(input_ids=ids).logits[0, 2:-1].log_softmax(-1)
    wanted = logp.gather(1, ids[0, 3:, None])[at:, 0]
    # Keys and values were computed anew, so the rest is exactly what the new weights say.
    torch.testing.assert_close(
        torch.from_numpy(mixed.segments[1].logprobs), wanted, atol=1e-4, rtol=0
    )


def test_half_a_set_of_weights_is_refused(engine: Any, model: Any) -> None:
    named = [(name, p.detach()) for name, p in model.named_parameters()][:-3]
    with pytest.raises(WeightsError, match="got no weights"):
        engine.load_weights(named, Version(step=1, hash=content_hash(named)))
    deliver(engine, model, 2)  # a full set mends it
    assert len(dict(collect(engine, requests(2)))) == 2
