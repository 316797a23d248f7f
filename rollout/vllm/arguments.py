"""What vLLM's `EngineArgs` are given, and the settings that it cannot follow."""

from __future__ import annotations

from typing import Any

from grpo.errors import EngineError
from grpo.model import pretrained
from grpo.rollout.vllm import compat, lora
from grpo.rollout.vllm.speculation import Speculation
from grpo.types import EngineSpec


def fixed(spec: EngineSpec, length: int, speculation: Speculation | None) -> dict[str, Any]:
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


def step_size(tokens: int, length: int, rows: int) -> dict[str, Any]:
    """How many tokens a step may hold; 0: as vLLM has it."""
    if compat.needs("chunked_prefill_seeds"):
        # Whole prompts only, so a step has to hold the longest request.
        most = max(tokens or 2048, length, rows)
        return {"enable_chunked_prefill": False, "max_num_batched_tokens": most}
    return {"max_num_batched_tokens": tokens} if tokens else {}


def speculation_of(tokens: int, model: str) -> Speculation | None:
    """Drafts of `tokens` tokens a step; 0: none. Raises EngineError; RecipeError for no model."""
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
