"""Gradients in bfloat16 and float16 on the card: as exact as plain torch in the same type.

Plain is the model's own forward pass under autocast and `cross_entropy`, one completion at a time;
both are measured against float64 on the host. Ours may be off by 1.5 times as much: it rounds in
other places (shared prompts, the head in chunks), and no more often.

First suspicion: `jobs` and `flex` fail, attention keeps its probabilities in the half type; float16
alone, something under- or overflows; everything, the head's product is rounded once more.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from grpo.attention import interface
from grpo.learner import packing
from grpo.learner.forward import token_scores
from grpo.learner.packing import micro_batches, place
from tests.gpu.learners import (
    distance,
    gradients,
    learner,
    long_groups,
    plain_gradients,
    rows_of,
)
from tests.grpo.rows import tiny_model

TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "initializer_range": 0.08,
}
WHOLE = {"tokens_per_micro_batch": 10_000}


@functools.cache
def exact() -> torch.Tensor:
    return plain_gradients(tiny_model(**SHAPE), rows_of(long_groups()), torch.float64)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("way", ["flex", "jobs", "padded"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_as_exact_as_plain_torch(
    device: torch.device,
    flex_calls: list[int],
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    way: str,
    checkpointing: bool,
) -> None:
    monkeypatch.setattr(packing, "SHARE_ABOVE", -1.0)
    if way != "flex":
        monkeypatch.setattr(interface, "uses_flex", lambda *_: False)
    rows = rows_of(long_groups())
    model = tiny_model(dtype=torch.float32, **SHAPE)
    theirs = plain_gradients(model.to(device), rows, TYPES[dtype])
    config = {**WHOLE, "share_prompts": way != "padded", "gradient_checkpointing": checkpointing}
    algorithm = {"sampling_correction": "none"}
    ours = learner(model, device, dtype=dtype, algorithm=algorithm, config=config)
    ours.scaler.scale(torch.zeros((), device=device))  # the scaler makes its state on first use
    ours.scaler.update(2.0**10 if dtype == "float16" else None)
    metrics = ours.step(rows)
    assert metrics["optimizer_steps/overflow"] == 0
    norm = float(gradients(ours).norm())
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4), "measured before it was unscaled"
    assert bool(flex_calls) == (way == "flex")
    assert distance(gradients(ours), exact()) < 1.5 * distance(theirs, exact())
    assert {p.dtype for p in ours.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", TYPES)
def test_log_probs(device: torch.device, dtype: str) -> None:
    """Mean difference from float64 of each token's log-prob, against that of plain torch."""
    rows = rows_of(long_groups())
    right = [torch.from_numpy(x) for x in _logprobs_of(tiny_model(**SHAPE), rows)]
    model = tiny_model(dtype=torch.float32, **SHAPE).to(device)
    ours = learner(model, device, dtype=dtype, config=WHOLE).logprobs(rows)
    ours_off, theirs_off = [], []
    for row, found, exact in zip(rows, ours, right, strict=True):
        ids = torch.tensor([[*row.prompt_ids, *row.ids.tolist()]], device=device)
        with torch.no_grad(), torch.autocast(device.type, dtype=TYPES[dtype]):
            logits = model(input_ids=ids).logits[0, len(row.prompt_ids) - 1 : -1]
        plain = logits.float().log_softmax(-1).gather(1, ids[0, len(row.prompt_ids) :, None])
        theirs_off.append((plain[:, 0].double().cpu() - exact).abs())
        ours_off.append((torch.from_numpy(found).double() - exact).abs())
    assert torch.cat(ours_off).mean() < 1.5 * torch.cat(theirs_off).mean()


def _logprobs_of(model: Any, rows: list[Any]) -> list[Any]:
    """float64 on the host."""
    found: list[Any] = [None] * len(rows)
    with torch.no_grad():
        for one in micro_batches(rows, 10_000, False, 0):
            logp = token_scores(model, place(one, torch.device("cpu")), 1.0).logp
            for at, index in enumerate(one.rows):
                found[index] = logp.numpy()[one.completions == at]
    return found
