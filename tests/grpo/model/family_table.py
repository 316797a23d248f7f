"""What each causal family gets, measured on its tiny model: `python -m
tests.grpo.model.family_table`.

The command writes the table of docs/models.md; `test_families.py` compares the two.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from grpo.config.schema import Algorithm
from grpo.config.schema import Learner as Config
from grpo.errors import RecipeError
from grpo.learner.forward import check_model
from grpo.learner.learner import TorchLearner
from grpo.model.families import check_packing, refusal
from grpo.rollout.embedded.cpu.fused import FusedDecoder
from grpo.rollout.embedded.own_cache import OwnCacheDecoder, ReplayDecoder
from grpo.rollout.embedded.torch_engine import TorchEngine
from grpo.types import Request, Row, Sampling, Version

from .families import TEXT, config, quiet, tiny

PAGE = Path(__file__).parents[3] / "docs" / "models.md"
PROMPTS = ((5, 9, 17, 33, 60, 71), (12, 3, 44, 52, 8, 80, 31, 7, 66))
SAMPLES, LENGTH, EOS = 3, 7, 1
SAMPLING = {
    FusedDecoder: "grouped",
    OwnCacheDecoder: "own cache",
    ReplayDecoder: "no cache",
}


class Ids:
    """A tokenizer of numbers."""

    def decode(self, ids: Any, skip_special_tokens: bool) -> str:
        return " ".join(map(str, ids))


def engine_of(model: Any, **settings: Any) -> TorchEngine:
    return TorchEngine(model, Ids(), version=Version(step=0, hash=""), max_rows=4, **settings)


def sampled(engine: TorchEngine) -> list[Row]:
    """Some completions of every prompt, of several lengths, with made-up advantages."""
    drawn = Sampling(max_tokens=LENGTH, eos_ids=(EOS,))
    requests = [
        Request(uid=str(i), ids=ids, n=SAMPLES, sampling=drawn, key=(i,))
        for i, ids in enumerate(PROMPTS)
    ]
    engine.submit(requests)
    rows: list[Row] = []
    while done := engine.poll():
        for completion in done:
            group = int(completion.request)
            (segment,) = completion.segments
            # of different lengths, also where no eos is drawn
            size = max(1, len(segment.ids) - completion.index)
            rows.append(
                Row(
                    group=group,
                    prompt_ids=PROMPTS[group],
                    ids=segment.ids[:size],
                    mask=np.ones(size, dtype=np.bool_),
                    columns={
                        "logp_sampler": segment.logprobs[:size],
                        "advantages": np.full(size, 1.0 - completion.index, dtype=np.float32),
                        "weights": np.full(size, 0.1, dtype=np.float32),
                    },
                )
            )
    assert len(rows) == SAMPLES * len(PROMPTS)
    return sorted(rows, key=lambda row: (row.group, row.ids.tolist()))


def learner_of(
    model: Any, *, share: bool = True, budget: int = 64, recompute: bool = False, **settings: Any
) -> TorchLearner:
    config = Config(
        learning_rate=1e-2,
        share_prompts=share,
        tokens_per_micro_batch=budget,
        gradient_checkpointing=recompute,
    )
    return TorchLearner(model, algorithm=Algorithm(), config=config, **settings)


def plain_logprobs(model: Any, row: Row) -> np.ndarray:
    """Of one row by itself, by the model's own forward pass."""
    ids = torch.tensor([[*row.prompt_ids, *row.ids.tolist()]])
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, len(row.prompt_ids) - 1 : -1]
    logp = torch.log_softmax(logits.double(), -1)
    return logp.gather(-1, ids[0, len(row.prompt_ids) :, None])[:, 0].numpy()


def gradients(learner: TorchLearner, rows: list[Row]) -> torch.Tensor:
    """Of all weights, of one pass over the rows."""
    learner.optimizer.zero_grad()
    for prepared in learner._prepare(rows, recompute=False):
        learner.loss(prepared)[0].backward()
    found = [p.grad for p in learner.model.parameters() if p.grad is not None]
    return torch.cat([g.to_dense().flatten() if g.is_sparse else g.flatten() for g in found])


@dataclass(frozen=True, kw_only=True)
class Treatment:
    """A line of the page."""

    sampling: str
    learning: str
    packing: str
    vllm: str

    def line(self, family: str) -> str:
        return f"| `{family}` | {self.sampling} | {self.learning} | {self.packing} | {self.vllm} |"


@functools.cache
def in_vllm() -> frozenset[str]:
    """Classes that vLLM has code of its own for."""
    lines = Path(__file__).with_name("vllm_architectures.txt").read_text().splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))


def refused(family: str) -> Treatment | None:
    """The line of a family whose model is refused, None for any other."""
    with quiet():
        try:
            check_model(tiny(family))
        except RecipeError:
            reason = refusal(config(family)) or "for a reason that the page does not know"
            return Treatment(sampling="refused", learning=reason, packing="-", vllm="-")
    return None


def treatment(family: str, engine: TorchEngine, learner: TorchLearner) -> Treatment:
    """The line of a family by its engine and its learner."""
    with quiet():
        try:
            check_packing(learner.model)
            packing = "yes"
        except RecipeError:
            packing = "no"
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family]
    return Treatment(
        sampling=SAMPLING.get(type(engine._decoder), "continuous batching"),
        learning="prompts shared" if learner.share_prompts else "one completion a row",
        packing=packing,
        vllm="yes" if architecture in in_vllm() else "-",
    )


def measure(family: str) -> Treatment:
    """The line of a family."""
    return refused(family) or treatment(family, engine_of(tiny(family)), learner_of(tiny(family)))


def committed() -> dict[str, str]:
    """The lines of the page."""
    _, _, below = PAGE.read_text().partition(HEAD)
    lines = below.splitlines()
    return {line.split("`")[1]: line for line in lines if line.startswith("| `")}


HEAD = "| family | sampling | learning | packing | vLLM |"


def main() -> None:
    """Write the table of the page."""
    torch.set_num_threads(1)  # more only wait for one another: the models are tiny
    text = PAGE.read_text()
    start = text.index(HEAD)
    end = text.index("\n\n", start)
    with quiet():
        lines = [measure(family).line(family) for family in TEXT]
    PAGE.write_text(text[:start] + "\n".join([HEAD, "|---|---|---|---|---|", *lines]) + text[end:])


if __name__ == "__main__":
    main()
