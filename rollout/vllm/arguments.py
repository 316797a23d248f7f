"""What vLLM is given, for an engine and for a request, and the settings it cannot follow."""

from __future__ import annotations

import hashlib
from typing import Any

from grpo.errors import EngineError
from grpo.model import pretrained
from grpo.rollout.settings import VllmSettings
from grpo.rollout.vllm import compat, lora
from grpo.rollout.vllm.speculation import Speculation
from grpo.types import EngineSpec, Request

_SEEDS = 2**31  # vLLM's generators take 32 bits of a seed; samples of a request are numbered on


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
    if spec.lora:
        arguments |= lora.engine_arguments(spec.lora)
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


def sampling_params(request: Request, first: int, n: int) -> Any:
    """vLLM's SamplingParams for samples `first` .. `first` + `n` - 1 of a request."""
    sampling = request.sampling
    vllm = compat.import_vllm()
    outputs = compat.module("sampling_params").RequestOutputKind
    return vllm.SamplingParams(
        n=n,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        max_tokens=sampling.max_tokens,
        seed=_seed(request.key) + first,
        stop=list(sampling.stop) or None,
        stop_token_ids=list(sampling.eos_ids),
        ignore_eos=True,  # those of the request count, not the checkpoint's
        include_stop_str_in_output=True,
        detokenize=bool(sampling.stop),
        skip_special_tokens=False,  # a stop string may be one, or hold one
        logprobs=0,  # of the sampled token alone
        flat_logprobs=True,
        output_kind=outputs.DELTA,
    )


def _seed(key: tuple[int, ...]) -> int:
    """A seed below 2^31 from a request's noise key; sample i adds i."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % _SEEDS
