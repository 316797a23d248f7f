"""Generation by transformers' `generate`; rows that ended are padded until the longest has.

The setting `generate` has further arguments: with a static cache it compiles its decoding on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList

from perf import work
from perf.worker import Settings, device, now, serve


class Planted(StoppingCriteria):
    """Row r is done at its planted length."""

    def __init__(self, ends: list[int], where: str) -> None:
        self.ends = torch.tensor(ends, device=where)

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        return self.ends <= input_ids.shape[1]


def prepare(settings: Settings) -> Any:
    """A model; a repetition samples everything in one batch."""
    dtype, where = getattr(torch, settings["dtype"]), device(settings)
    model: Any = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=dtype)
    model.to(where).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    ids = torch.tensor(
        work.prompts(settings["prompts"], settings["prompt"], model.config.vocab_size), device=where
    )
    samples, limit = settings["samples"], settings["completion"]
    planned = work.lengths(len(ids) * samples, limit, settings["kind"])
    stop = StoppingCriteriaList([Planted([settings["prompt"] + n for n in planned], where)])

    @torch.inference_mode()
    def repetition() -> dict[str, Any]:
        started = now(settings)
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=0,
            max_new_tokens=limit,
            num_return_sequences=samples,
            stopping_criteria=stop,
            **settings.get("generate", {}),
        )
        return {"seconds": now(settings) - started, "tokens": sum(planned)}

    return repetition


if __name__ == "__main__":
    serve(prepare)
