"""Learners on the card and on the host beside it, and how far their gradients are apart."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from grpo.config.schema import Algorithm
from grpo.config.schema import Learner as Config
from grpo.learner.learner import TorchLearner
from grpo.method.advantage import reward_matrix
from grpo.method.table import ADVANTAGES
from grpo.method.weighted_rows import make_rows
from grpo.model import ranks
from grpo.types import Group, Row
from tests.grpo.rows import group

CPU = torch.device("cpu")
LIMIT = 400  # max_completion_length
# Relative to the norm. float32 rounds at 6e-8; hundreds of terms a sum and a few layers make 1e-6
# of it (3e-7 to 1.4e-6 on a CPU). Products in TF32 keep 11 bits and are off by 3e-4. The bar lies
# between, a decade from both.
FLOAT32 = 2e-5


@dataclass(frozen=True, kw_only=True)
class HostRanks(ranks.Ranks):
    """One process that computes on the CPU although there is a card."""

    @property
    def device(self) -> torch.device:
        return CPU


def learner(model: Any, where: torch.device, **settings: Any) -> TorchLearner:
    """A learner of a copy of `model` on `where`; settings of `TorchLearner`, flat.

    `algorithm` and `config` are dicts.
    """
    algorithm = Algorithm(**settings.pop("algorithm", {}))
    config = Config(
        **{"learning_rate": 1e-2, "max_grad_norm": 0.0, **settings.pop("config", {})},
    )
    join = ranks.join

    def on_host() -> ranks.Ranks:
        found = join()
        return HostRanks(accelerator=found.accelerator, sharding=None)

    with mock.patch.object(ranks, "join", on_host if where.type == "cpu" else join):
        made = TorchLearner(
            copy.deepcopy(model) if isinstance(model, torch.nn.Module) else model,
            algorithm=algorithm,
            config=config,
            **settings,
        )
    assert made.device.type == where.type
    return made


def rows_of(groups: Sequence[Group], loss_type: str = "dapo", **settings: Any) -> list[Row]:
    """Rows of the groups with their advantages."""
    advantages = ADVANTAGES["grpo"].function(reward_matrix(groups))
    return make_rows(
        groups, advantages, loss_type=loss_type, max_completion_length=LIMIT, **settings
    )


def long_groups(seed: int = 0) -> list[Group]:
    """Prompts of 150, 3 and 64 tokens with completions of 1 to 200: some blocks of 128 whole."""
    return [
        group(0, 150, [200, 30, 77, 1], [1.0, 0.0, 0.0, 0.5], seed=seed),
        group(1, 3, [30, 5], [0.0, 1.0], seed=seed),
        group(2, 64, [128, 64, 90], [1.0, 0.0, 0.3], seed=seed),
    ]


def gradients(learner: TorchLearner) -> Tensor:
    """float64 on the CPU, all of them in one row."""
    found = [p.grad for p in learner.model.parameters() if p.requires_grad]
    return torch.cat(
        [g.detach().to_dense().double().cpu().flatten() for g in found if g is not None]
    )


def distance(found: Tensor, exact: Tensor) -> float:
    """Relative to the norm of what is exact; NaN is never less than anything."""
    return float((found.double().cpu() - exact.cpu()).norm() / exact.norm())


def plain_gradients(model: Any, rows: Sequence[Row], dtype: torch.dtype) -> Tensor:
    """As anyone would write it: the model's own logits, cross entropy, autocast to `dtype`.

    On policy and without correction the loss has the gradient of -weight * advantage * log-prob.
    """
    model = copy.deepcopy(model)
    where = model.device
    for row in rows:
        ids = torch.tensor([[*row.prompt_ids, *row.ids.tolist()]], device=where)
        factor = torch.from_numpy(
            row.columns["weights"].astype(np.float64) * row.columns["advantages"]
        ).to(where)
        narrow = dtype in (torch.bfloat16, torch.float16)
        with torch.autocast(where.type, dtype=dtype if narrow else None, enabled=narrow):
            logits = model(input_ids=ids, use_cache=False).logits[0, len(row.prompt_ids) - 1 : -1]
        wide = logits if logits.dtype == torch.float64 else logits.float()
        losses = functional.cross_entropy(wide, ids[0, len(row.prompt_ids) :], reduction="none")
        # as a scaler would: the smallest gradients of float16 are not lost
        (losses * factor.to(losses.dtype) * 2.0**10).sum().backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    return torch.cat([g.double().cpu().flatten() for g in found]) / 2.0**10
