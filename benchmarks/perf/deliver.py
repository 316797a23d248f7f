"""Delivery of a learner's weights to an engine in the same process, part by part."""

from __future__ import annotations

from typing import Any

from grpo.config.schema import Algorithm, Learner
from grpo.learner.learner import TorchLearner
from grpo.method.advantage import reward_matrix
from grpo.method.table import ADVANTAGES
from grpo.method.weighted_rows import make_rows
from grpo.rollout.embedded import torch_engine
from grpo.rollout.embedded.torch_engine import TorchEngine
from grpo.rollout.settings import TorchSettings, VllmSettings
from grpo.rollout.vllm import engine as vllm_engine
from grpo.rollout.vllm import readback
from grpo.rollout.vllm.engine import VllmEngine
from grpo.types import EngineSpec
from perf import work
from perf.learn_ours import to_groups
from perf.worker import Settings, device, now, serve

# {engine: {part: (owner, name) of the function that does it}}
PARTS: dict[str, dict[str, tuple[Any, str]]] = {
    "torch": {
        "copy": (torch_engine, "copy_weights"),
        "engine's hash": (torch_engine, "resident_hash"),
        "engine's canary": (torch_engine, "canary_logprob"),
    },
    "vllm": {
        "copy": (readback, "load"),
        "reading back": (readback, "find_difference"),
        "engine's hash": (vllm_engine, "content_hash"),
        "engine's canary": (VllmEngine, "logprobs"),
    },
}
# Enough for every weight to move; not timed.
STEP = {"groups": 1, "samples": 2, "prompt": 4, "completion": 4, "kind": "fixed", "dead": 0}


def prepare(settings: Settings) -> Any:
    """A learner and an engine; a repetition is an optimizer step and the delivery after it."""
    learner = TorchLearner(
        settings["model"],
        algorithm=Algorithm(loss_type="dapo", sampling_correction="none"),
        config=Learner(),
        dtype=settings["dtype"],
    )
    engine = make_engine(settings)
    spent: dict[str, float] = {}
    for part, (owner, name) in PARTS[settings["engine"]].items():
        watch(owner, name, part, spent, settings)
    size = sum(t.numel() * t.element_size() for _, t in learner.weights())
    groups = to_groups(work.rollouts(**STEP, vocab=learner.model.config.vocab_size))
    advantages = ADVANTAGES["grpo"].function(reward_matrix(groups))
    rows = make_rows(groups, advantages, loss_type="dapo", max_completion_length=4)

    def repetition() -> dict[str, Any]:
        learner.step(rows)
        spent.clear()
        started = now(settings)
        version = learner.version()
        hashed = now(settings)
        ack = engine.load_weights(learner.weights(), version)
        loaded = now(settings)
        canary = learner.canary()
        ended = now(settings)
        if ack.version.hash != version.hash or not abs(ack.canary - canary) < 1.0:
            raise RuntimeError(f"{ack} is no acknowledgment of {version} with canary {canary}")
        told = {part: spent[part] for part in PARTS[settings["engine"]] if part in spent}
        parts = {"learner's hash": hashed - started, **told, "learner's canary": ended - loaded}
        rest = loaded - hashed - sum(spent.values())
        return {
            "seconds": ended - started,
            "bytes": size,
            "parts": {k: round(v, 4) for k, v in {**parts, "the rest": rest}.items()},
        }

    return repetition


def make_engine(settings: Settings) -> Any:
    """The engine that the settings name, with room for a few short completions."""
    spec = EngineSpec(model=settings["model"], dtype=settings["dtype"], max_length=64)
    if settings["engine"] == "torch":
        return TorchEngine.from_spec(spec, TorchSettings(max_rows=8))
    if device(settings) == "cpu":
        return VllmEngine.from_spec(spec, VllmSettings(max_num_seqs=8))
    return VllmEngine.from_spec(spec, VllmSettings(max_num_seqs=8, gpu_memory_utilization=0.3))


def watch(owner: Any, name: str, part: str, spent: dict[str, float], settings: Settings) -> None:
    """Let a function add the time of its calls to `spent[part]`."""
    plain = getattr(owner, name)

    def timed(*arguments: Any, **named: Any) -> Any:
        started = now(settings)
        found = plain(*arguments, **named)
        spent[part] = spent.get(part, 0.0) + now(settings) - started
        return found

    setattr(owner, name, timed)


if __name__ == "__main__":
    serve(prepare)
