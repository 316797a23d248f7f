"""What `rollout.engine_args` may say, one record an engine; each default stands here alone.

These records import neither torch nor vLLM: a recipe is checked against them before an engine is
made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from grpo.outside.web.address import USUAL_KEY


@dataclass(frozen=True, kw_only=True)
class TorchSettings:
    """The embedded engine."""

    max_rows: int = 256  # completions decoded at once
    compile: bool = False  # decode with the model's own code under torch.compile, for GPUs


@dataclass(frozen=True, kw_only=True)
class VllmSettings:
    """vLLM in this process, named as in vLLM where it has them; docs/vllm.md says what each does.

    0 or None leaves a setting to vLLM, but for max_model_len (the longest request of the recipe)
    and, on CPUs, kv_cache_gib (1) and enforce_eager (true).
    """

    tensor_parallel_size: int = 1  # GPUs of one engine
    gpu_memory_utilization: float = 0.45  # share of GPU memory; the learner has the rest
    max_model_len: int = 0  # tokens, prompt and completion
    max_num_batched_tokens: int = 0  # of a step
    max_num_seqs: int = 256  # completions under way
    kv_cache_gib: float = 0.0
    kv_cache_dtype: str = "auto"
    head_dtype: str = ""  # of the logits; "": the model's
    enforce_eager: bool | None = None  # no compilation
    enable_prefix_caching: bool = True
    enable_sleep_mode: bool = False  # on GPUs `sleep` moves weights to the host
    speculative_tokens: int = 0  # drafts a step; 0: off
    speculative_model: str = ""  # "": n-grams; "mtp"; or a draft model's folder or hub id


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """A server that `grpo serve` started. Times are seconds."""

    url: str = "http://127.0.0.1:8000"
    timeout: float = 600.0  # of one call for completions
    retries: int = 3  # how often a call is made again before the run stops
    wait: float = 300.0  # how long a server may be gone that is being restarted
    concurrency: int = 64  # calls under way at a time
    # File with the server's token. "": of a server that this user started on this machine it is
    # found by its port.
    key_file: str = ""
    api_key_env: str = ""  # environment variable with the key of a server started otherwise


@dataclass(frozen=True, kw_only=True)
class EndpointSettings:
    """A server with OpenAI's API. Times are seconds."""

    url: str  # up to and with /v1
    model: str = ""  # the server's name for the model; "": the first that it lists
    timeout: float = 600.0  # of one call
    retries: int = 6  # how often a sample is asked for again before the run stops
    concurrency: int = 16  # calls under way at a time
    api_key_env: str = USUAL_KEY  # environment variable with the server's key
    # Further fields of each call, say {"reasoning_effort": "low"}.
    body: Mapping[str, Any] | None = None
    limit_field: str = "max_tokens"  # the server's name for the most tokens of a completion


@dataclass(frozen=True, kw_only=True)
class PromptSettings(EndpointSettings):
    """The same for a recipe's engine, which decodes prompts from their ids.

    The text of a prompt becomes a user's message (with data.template=raw, since the server has a
    template of its own), or, with chat=false, what the server goes on with.
    """

    chat: bool = True
