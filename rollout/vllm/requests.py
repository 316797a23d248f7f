"""A request of ours as vLLM understands it."""

from __future__ import annotations

import hashlib
from typing import Any

from grpo.rollout.vllm import compat
from grpo.types import Request

_SEEDS = 2**31  # vLLM's generators take 32 bits of a seed; samples of a request are numbered on


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
