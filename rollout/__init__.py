"""Engines that sample completions, and how weights reach them.

    base        what every engine shares; samples: a request on its way to being answered
    settings    what `rollout.engine_args` may say to each of ours
    embedded/   on plain torch, in this process
    vllm/       vLLM, in this process
    remote/     behind a URL: `grpo serve`, or any server of OpenAI's API
    pool/       several engines elsewhere behind one
    fake        plays completions from a script, for tests

What all of them pass: `answers` checks what an engine says, `texts` makes text of ids, `collect`
puts completions back into groups. When they sample is decided in `grpo/training/`.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from grpo.rollout.settings import PromptSettings, ServerSettings, TorchSettings, VllmSettings
from grpo.types import Engine, EngineSpec


def _maker(settings: type[Any], module: str, name: str) -> Callable[..., Engine]:
    """What makes an engine from `spec` and the fields of `settings`, as keyword arguments.

    The module is imported when an engine is made, so that listing engines imports no torch.
    """

    def make(*, spec: EngineSpec, **args: Any) -> Engine:
        engine = getattr(importlib.import_module(module), name)
        return engine.from_spec(spec, settings(**args))

    # What a recipe's arguments are compared with.
    spec = inspect.Parameter("spec", inspect.Parameter.KEYWORD_ONLY)
    fields = inspect.signature(settings).parameters.values()
    vars(make)["__signature__"] = inspect.Signature([spec, *fields])
    return make


# Called with `spec` and the recipe's `rollout.engine_args`.
ENGINES: dict[str, Callable[..., Engine]] = {
    "torch": _maker(TorchSettings, "grpo.rollout.embedded.torch_engine", "TorchEngine"),
    "vllm": _maker(VllmSettings, "grpo.rollout.vllm.engine", "VllmEngine"),
    "server": _maker(ServerSettings, "grpo.rollout.remote.server", "ServerEngine"),
    "endpoint": _maker(PromptSettings, "grpo.rollout.remote.endpoint", "EndpointEngine"),
}
# Those of them that read the weights of the model's folder themselves.
LOADING = ("torch", "vllm")
