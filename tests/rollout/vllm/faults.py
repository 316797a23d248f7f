"""Faults planted in a VllmEngine, as deep as they could happen, and its guard switched off.

    with fault(engine, "layer_skipped"):
        engine.load_weights(...)  # WeightsError: model.layers.1.self_attn.q_proj.weight is not ...
    with guard_off(engine, learner.version, learner.canary), fault(engine, "dropped"):
        ...  # trains on, silently

Weights faults sit in vLLM's own `reload_weights` (what arrives there, and what it does), the
adapter fault in its `add_request`, the sampler fault in its sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from grpo.rollout.vllm import compat, readback
from grpo.types import Ack, Version

WEIGHTS_FAULTS = (
    "dropped",
    "corrupted",
    "half_delivered",
    "acknowledged_not_loaded",
    "layer_skipped",
)
ADAPTER_FAULTS = ("adapter_unused",)


@contextmanager
def fault(engine: Any, name: str) -> Iterator[None]:
    """Plant the fault `name` in a VllmEngine."""
    if name == "adapter_unused":
        plain = engine.llm.add_request

        def without(*arguments: Any, **keywords: Any) -> Any:
            return plain(*arguments, **keywords | {"lora_request": None})

        with mock.patch.object(engine.llm, "add_request", without):
            yield
        return
    runner = compat.worker(engine.llm).model_runner
    reload = runner.reload_weights

    def faulty(*, weights_iterator: Any, is_checkpoint_format: bool) -> None:
        sent = list(weights_iterator)
        if name == "dropped":  # one tensor never gets there
            sent = [item for item in sent if not item[0].endswith("0.mlp.down_proj.weight")]
        elif name == "corrupted":  # one value changes on the way
            at = next(i for i, (n, _) in enumerate(sent) if n.endswith("1.mlp.up_proj.weight"))
            tensor = sent[at][1].clone()
            tensor[0, 0] += 0.25
            sent[at] = (sent[at][0], tensor)
        elif name == "half_delivered":
            sent = sent[: len(sent) // 2]
        elif name == "layer_skipped":
            sent = [item for item in sent if ".layers.1." not in item[0]]
        elif name == "acknowledged_not_loaded":
            return
        else:
            raise ValueError(f"no fault {name!r}")
        reload(weights_iterator=iter(sent), is_checkpoint_format=is_checkpoint_format)

    with mock.patch.object(runner, "reload_weights", faulty):
        yield


@contextmanager
def guard_off(
    engine: Any, version: Callable[[], Version], canary: Callable[[], float]
) -> Iterator[None]:
    """Make the engine acknowledge what the learner expects, whatever it holds."""
    load = engine.load_weights

    def believed(weights: Any, sent: Version, in_flight: Any = "finish") -> Ack:
        ack = load(weights, sent, in_flight)
        return Ack(version=version(), tensors=ack.tensors, canary=canary())

    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(engine, "load_weights", believed))
        patches.enter_context(mock.patch.object(readback, "find_difference", return_value=None))
        if engine.adapter is not None:
            patches.enter_context(mock.patch.object(engine.adapter, "check"))
        yield


@contextmanager
def hotter_sampler(engine: Any, factor: float = 1.1) -> Iterator[None]:
    """Draw at `factor` times the temperature asked for; report log-probs for that asked for."""
    runner = compat.worker(engine.llm).model_runner
    drawer = runner.sampler.topk_topp_sampler
    draw = drawer.forward

    def forward(logits: Any, generators: Any, k: Any, p: Any) -> Any:
        hot, _ = draw(logits / factor, generators, k, p)
        _, reported = draw(logits, {}, k, p)
        return hot, reported

    with mock.patch.object(drawer, "forward", forward):
        yield
