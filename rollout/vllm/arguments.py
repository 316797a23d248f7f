"""What vLLM's `EngineArgs` are given, and the settings that it cannot follow."""

from __future__ import annotations

from typing import Any

from grpo.errors import EngineError
from grpo.model import pretrained
from grpo.rollout.settings import VllmSettings
from grpo.rollout.vllm import compat, lora
from grpo.rollout.vllm.speculation import Speculation
from grpo.types import EngineSpec


def chosen(
    spec: EngineSpec, settings: VllmSettings, speculation: Speculation | None, *, cpu: bool
) -> dict[str, Any]:
    """All arguments of an engine. Raises EngineError."""
    config = pretrained.config(spec.model)
    positions = getattr(config, "max_position_embeddings", None) or spec.max_length
    # Room for the canary and one token after it.
    length = min(max(settings.max_model_len or spec.max_length, 17), positions)
    eager = settings.enforce_eager
    arguments: dict[str, Any] = {
        **_fixed(spec, length, speculation),
        "max_num_seqs": settings.max_num_seqs,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "kv_cache_dtype": settings.kv_cache_dtype,
        "enforce_eager": cpu if eager is None else eager,
        "enable_prefix_caching": settings.enable_prefix_caching,
        **_step_size(settings, length),
    }
    if settings.kv_cache_gib or cpu:
        arguments["kv_cache_memory_bytes"] = int((settings.kv_cache_gib or 1.0) * 2**30)
    if compilation := compat.compilation_config(config):
        arguments["compilation_config"] = compilation
    if settings.enable_sleep_mode and not cpu:
        arguments["enable_sleep_mode"] = True
    if settings.head_dtype:
        arguments["hf_overrides"] = {"head_dtype": settings.head_dtype}
    return arguments


def _fixed(spec: EngineSpec, length: int, speculation: Speculation | None) -> dict[str, Any]:
    """vLLM's arguments that no setting of the engine changes. Raises EngineError."""
    if spec.quantization != "none":
        raise EngineError(
            f"model.quantization = {spec.quantization!r}: vLLM rounds weights in a way of its "
            "own, and would sample another policy; use rollout.engine=torch"
        )
    arguments: dict[str, Any] = {
        **_model(spec.model),
        "dtype": spec.dtype,
        "trust_remote_code": False,
        "seed": spec.seed,
        "max_model_len": length,
        "logprobs_mode": "processed_logprobs",  # of the distribution that was sampled
        "generation_config": "vllm",  # no defaults from the checkpoint
        "async_scheduling": False,  # or a step is under way when weights change
        # Tokens come when a sample ends; speculation counts those of every step.
        "stream_interval": 2**30 if speculation is None else 1,
        "disable_log_stats": speculation is None,
        "use_tqdm_on_load": False,
    }
    if spec.lora_rank:
        arguments |= lora.engine_arguments(spec.lora_rank)
    if speculation is not None:
        arguments["speculative_config"] = speculation.config()
    return arguments


def _model(path: str) -> dict[str, Any]:
    """Where vLLM finds model and tokenizer, without asking the hub what was asked before."""
    where = pretrained.place_of(path)
    found = {"model": where.path, "tokenizer": where.path}
    if where.revision is None:
        return found
    return {**found, "revision": where.revision, "tokenizer_revision": where.revision}


def _step_size(settings: VllmSettings, length: int) -> dict[str, Any]:
    """How many tokens a step may hold; 0: as vLLM has it."""
    tokens, rows = settings.max_num_batched_tokens, settings.max_num_seqs
    if compat.needs("chunked_prefill_seeds"):
        # Whole prompts only, so a step has to hold the longest request.
        most = max(tokens or 2048, length, rows)
        return {"enable_chunked_prefill": False, "max_num_batched_tokens": most}
    return {"max_num_batched_tokens": tokens} if tokens else {}


def speculation_of(settings: VllmSettings) -> Speculation | None:
    """Drafts a step; None without any. Raises EngineError; RecipeError for no model."""
    tokens, model = settings.speculative_tokens, settings.speculative_model
    if tokens:
        if model and model != "mtp":
            pretrained.place_of(model, "rollout.engine_args.speculative_model")
        return Speculation(tokens=tokens, model=model)
    if model:
        raise EngineError(
            f"speculative_model = {model!r} does nothing with speculative_tokens = 0; set "
            "speculative_tokens to the drafts per step, say 3"
        )
    return None
