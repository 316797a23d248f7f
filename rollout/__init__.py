"""Engines that sample completions, and how weights reach them.

    embedded/   on plain torch, in this process
    vllm/       vLLM, in this process
    remote/     behind a URL: `grpo serve`, or any server of OpenAI's API
    pool/       several engines elsewhere behind one
    fake        plays completions from a script, for tests

What all of them pass: `answers` checks what an engine says, `texts` makes text of ids, `collect`
puts completions back into groups. When they sample is decided in `grpo/training/`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from grpo.types import Engine, EngineSpec, Request


def make_torch(*, spec: EngineSpec, max_rows: int = 256, compile: bool = False) -> Engine:
    """The embedded engine. `max_rows`: completions decoded at once; `compile`: torch.compile."""
    from grpo.rollout.embedded.torch_engine import TorchEngine

    return TorchEngine.from_spec(spec, max_rows=max_rows, compile=compile)


def make_vllm(
    *,
    spec: EngineSpec,
    tensor_parallel_size: int = 1,
    gpu_memory_utilization: float = 0.45,
    max_model_len: int = 0,
    max_num_batched_tokens: int = 0,
    max_num_seqs: int = 256,
    kv_cache_gib: float = 0.0,
    kv_cache_dtype: str = "auto",
    head_dtype: str = "",
    enforce_eager: bool | None = None,
    enable_prefix_caching: bool = True,
    enable_sleep_mode: bool = False,
    speculative_tokens: int = 0,
    speculative_model: str = "",
) -> Engine:
    """vLLM in this process; docs/vllm.md has the settings. Named as in vLLM where it has them.

    0 or None leaves a setting to vLLM, but for max_model_len (the longest request of the recipe)
    and, on CPUs, kv_cache_gib (1) and enforce_eager (true).
    """
    from grpo.rollout.vllm.engine import VllmEngine

    return VllmEngine.from_spec(
        spec,
        tensor_parallel_size=tensor_parallel_size,
        gpu_memory_utilization=gpu_memory_utilization,
        max_model_len=max_model_len,
        max_num_batched_tokens=max_num_batched_tokens,
        max_num_seqs=max_num_seqs,
        kv_cache_gib=kv_cache_gib,
        kv_cache_dtype=kv_cache_dtype,
        head_dtype=head_dtype,
        enforce_eager=enforce_eager,
        enable_prefix_caching=enable_prefix_caching,
        enable_sleep_mode=enable_sleep_mode,
        speculative_tokens=speculative_tokens,
        speculative_model=speculative_model,
    )


def make_server(
    *,
    spec: EngineSpec,
    url: str = "http://127.0.0.1:8000",
    timeout: float = 600.0,
    retries: int = 3,
    wait: float = 300.0,
    concurrency: int = 64,
    key_file: str = "",
    api_key_env: str = "",
) -> Engine:
    """A server that `grpo serve` started; rollout/remote/server.py has the settings.

    Texts are made from the ids that come, by the tokenizer of `spec.model`, as in every engine.
    """
    from grpo.model import pretrained
    from grpo.rollout.remote.server import ServerEngine

    return ServerEngine(
        spec,
        url=url,
        timeout=timeout,
        retries=retries,
        wait=wait,
        concurrency=concurrency,
        key_file=key_file,
        api_key_env=api_key_env,
        tokenizer=pretrained.tokenizer(spec.model),
    )


def make_endpoint(
    *,
    spec: EngineSpec,
    url: str,
    model: str = "",
    chat: bool = True,
    timeout: float = 600.0,
    retries: int = 6,
    concurrency: int = 16,
    api_key_env: str = "OPENAI_API_KEY",
    body: dict[str, Any] | None = None,
    limit_field: str = "max_tokens",
) -> Engine:
    """Any server with OpenAI's API; rollout/remote/endpoint.py has the settings.

    It gets each prompt as text, decoded by the tokenizer of `spec.model`: as a user's message (with
    data.template=raw, since the server has a template of its own), or, with chat=false, to go on
    with. For sampling alone: it takes no weights.
    """
    from grpo.model import pretrained
    from grpo.rollout.remote.endpoint import EndpointEngine, Said

    tokenizer = pretrained.tokenizer(spec.model)

    def say(request: Request) -> Said:
        ids = request.ids[request.ids[0] == tokenizer.bos_token_id :]  # the server adds its own
        text = str(tokenizer.decode(ids, skip_special_tokens=False))
        return [{"role": "user", "content": text}] if chat else text

    return EndpointEngine(
        spec,
        url=url,
        say=say,
        model=model,
        timeout=timeout,
        retries=retries,
        concurrency=concurrency,
        api_key_env=api_key_env,
        body=body,
        limit_field=limit_field,
    )


# Imported on first use, so that listing engines does not import torch. Called with `spec` and the
# recipe's `rollout.engine_args`.
ENGINES: dict[str, Callable[..., Any]] = {
    "torch": make_torch,
    "vllm": make_vllm,
    "server": make_server,
    "endpoint": make_endpoint,
}
# Those of them that read the weights of the model's folder themselves.
LOADING = ("torch", "vllm")
