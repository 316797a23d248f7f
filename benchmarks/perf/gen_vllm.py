"""Generation by vLLM's offline `LLM`, in this process; no log-probs are asked for."""

from __future__ import annotations

import importlib
from typing import Any

from perf import work
from perf.worker import Settings, device, now, serve


def prepare(settings: Settings) -> Any:
    """An engine; a repetition samples everything, a request a sample, prompts cached by prefix."""
    vllm: Any = importlib.import_module("vllm")
    limit = settings["completion"]
    llm = vllm.LLM(
        model=settings["model"],
        dtype=settings["dtype"],
        max_model_len=settings["prompt"] + limit,
        max_num_seqs=settings.get("max_num_seqs", 256),
        **memory(settings),
        enable_prefix_caching=True,
        generation_config="vllm",
        disable_log_stats=True,
        **settings.get("arguments", {}),
    )
    vocab = llm.llm_engine.model_config.get_vocab_size()
    ids = work.prompts(settings["prompts"], settings["prompt"], vocab)
    samples = settings["samples"]
    planned = work.lengths(len(ids) * samples, limit, settings["kind"])
    params = [
        vllm.SamplingParams(temperature=1.0, max_tokens=n, ignore_eos=True, detokenize=False)
        for n in planned
    ]
    inputs = [{"prompt_token_ids": prompt} for prompt in ids for _ in range(samples)]

    def repetition() -> dict[str, Any]:
        llm.reset_prefix_cache()
        started = now(settings)
        done = llm.generate(inputs, params, use_tqdm=False)
        seconds = now(settings) - started
        if [len(d.outputs[0].token_ids) for d in done] != planned:
            raise RuntimeError("completions do not have the planted lengths")
        return {"seconds": seconds, "tokens": sum(planned)}

    return repetition


def memory(settings: Settings) -> dict[str, Any]:
    """vLLM's room: a cache of one GiB on a CPU; on a card 0.3 of it, weights and all.

    0.3 is 41 GiB of an H200, room for every sample at once in the shapes measured here.
    """
    if device(settings) == "cpu":
        return {"kv_cache_memory_bytes": 2**30}
    return {"gpu_memory_utilization": 0.3}


if __name__ == "__main__":
    serve(prepare)
