"""Each engine that needs nothing but this process is put through the contract of all engines."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from grpo.errors import WeightsError
from grpo.rollout.embedded.torch_engine import TorchEngine
from grpo.rollout.fake import FakeEngine
from grpo.rollout.pool.engine_pool import PoolEngine
from grpo.rollout.remote.server import ServerEngine
from grpo.rollout.settings import ServerSettings
from grpo.types import EngineSpec, Request, Sampling

from .contract import EngineContract
from .remote.fake_server import FakeServer, running
from .tiny_models import V0, VOCAB, Pairs, full_logprobs, run

ROWS = 7  # fewer than the contract asks for at a time, so that samples wait


def embedded(model: Any, **settings: Any) -> TorchEngine:
    return TorchEngine(model, Pairs(), version=V0, max_rows=ROWS, **settings)


class TestTorch(EngineContract):
    @pytest.fixture
    def engine(self) -> Iterator[TorchEngine]:
        engine = embedded(self.model())
        yield engine
        engine.close()


class TestTorchOverTheModelsOwnCache(TestTorch):
    """Groups are decoded one after another there, a sample of each in lockstep."""

    @pytest.fixture
    def engine(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[TorchEngine]:
        from grpo.rollout.embedded import decoder

        monkeypatch.setattr(decoder, "_refusal", lambda _: "layers unheard of")
        engine = embedded(self.model())
        yield engine
        engine.close()


class TestFake(EngineContract):
    """It plays letters that follow from the request's prompt and the sample's number."""

    models = stops = knows_limits = stepwise = False

    @pytest.fixture
    def engine(self) -> FakeEngine:
        def play(request: Request, index: int) -> list[int]:
            ends, ids = request.sampling.eos_ids, []
            for place in range(100):
                ids.append(1 + (7 * request.ids[0] + 3 * place + index) % (VOCAB - 1))
                if ids[-1] in ends:
                    break
            return ids

        return FakeEngine(play, Pairs(), version=V0, batch=2)


class ThreadWorker:
    """A worker of a pool: an engine in a thread of its own."""

    def __init__(self, index: int, model: Any) -> None:
        self.name = f"worker {index + 1}"
        self.model = model
        self.thread = ThreadPoolExecutor(1)
        self.engine: Any = None

    def call(self, method: str, *args: Any) -> Future[Any]:
        if method == "start":
            return self.thread.submit(self.start)
        return self.thread.submit(lambda: getattr(self.engine, method)(*args))

    def start(self) -> None:
        self.engine = embedded(self.model)

    def kill(self) -> None:
        self.thread.shutdown(wait=False, cancel_futures=True)


class TestPool(EngineContract):
    knows_limits = False  # its workers do, and say so from `poll`
    compares_hashes = True  # of what its workers acknowledge

    @pytest.fixture
    def engine(self) -> Iterator[PoolEngine]:
        pool = PoolEngine(
            lambda index: ThreadWorker(index, self.model()), 2, 20, version=V0, window=ROWS
        )
        yield pool
        pool.close()


class ModelServer(FakeServer):
    """A server that samples as vLLM's does: from a model, with the weights that were delivered."""

    def __init__(self, model: Any) -> None:
        self.engine = embedded(model)
        self.lock = threading.Lock()  # one call at a time has the engine
        super().__init__()

    def answer(self, path: str, body: Any) -> Any:
        if path == "/finish_weight_update":
            super().answer(path, body)
            with self.lock:
                try:
                    self.engine.load_weights(self.deliveries[-1].items(), V0)
                except WeightsError:
                    return 500
            return {}
        return super().answer(path, body)

    def rpc(self, method: str) -> Any:
        found = super().rpc(method)
        return found | {"vocab_size": VOCAB, "max_length": 128} if "hello" in method else found

    def generate(self, body: dict[str, Any]) -> Any:
        ids, asked = body["token_ids"], body["sampling_params"]
        if "prompt_logprobs" in asked:
            own = full_logprobs(self.engine.model, ids[:1], np.array(ids[1:]), 1.0)
            rows = [{str(i): {"logprob": float(x)}} for i, x in zip(ids[1:], own, strict=True)]
            return {"prompt_logprobs": [None, *rows], "choices": []}
        names = ("temperature", "top_p", "top_k", "min_p", "max_tokens")
        sampling = Sampling(
            **{name: asked[name] for name in names},
            stop=tuple(asked["stop"]),
            eos_ids=tuple(asked["stop_token_ids"]),
        )
        request = Request(
            uid=body["request_id"],
            ids=tuple(ids),
            n=asked["n"],
            sampling=sampling,
            key=(asked["seed"],),
        )
        with self.lock:
            label = self.label
            done = run(self.engine, [request])
        return {"choices": [self.choice(completion, label) for completion in done.values()]}

    @staticmethod
    def choice(completion: Any, label: str) -> dict[str, Any]:
        return {
            "index": completion.index,
            "token_ids": completion.ids.tolist(),
            "logprobs": {"content": [{"logprob": float(x)} for x in completion.logprobs]},
            "weight_versions": [{"version": label, "start": 0, "end": len(completion)}],
            "text": "the server's own",
            "finish_reason": completion.finish,
        }


class TestServer(EngineContract):
    stepwise = False  # an answer is of a whole request
    prompt_deadlines = False  # a call is made, and the server told to end it: it may be faster

    @pytest.fixture
    def engine(self) -> Iterator[ServerEngine]:
        with running(ModelServer(self.model())) as server:
            spec = EngineSpec(model="tiny", max_length=64, version=V0)
            settings = ServerSettings(url=server.url, timeout=20.0, wait=5.0)
            engine = ServerEngine(spec, settings, tokenizer=Pairs())
            yield engine
            engine.close()
