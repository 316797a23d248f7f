"""Selective language modeling (Rho-1, arXiv 2404.07965): learn from part of the tokens.

    score = loss under the policy - loss under a reference that was trained on clean rows
    keep the best `keep` share of the completion tokens of the whole optimizer step; divide by those

Tokens that are no easier for the reference than for the policy are left out: noise, and what is
learned already. They lose their label, so the loss itself is the trainer's. Two controls select
without a reference: `random`, and `highest` loss, which selects the noise.

Unlike the paper's, the selection is over the whole optimizer step and not over each micro-batch, so
it does not depend on how the step is cut. This takes a forward pass without gradient over the whole
step before the first backward pass.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from grpo.config.schema import SLM
from grpo.learner.forward import token_scores
from grpo.learner.head import check_head
from grpo.learner.packing import micro_batches, place
from grpo.model.content_hash import content_hash
from grpo.stages.sft_trainer import IGNORED, MICRO_TOKENS, StageTrainer
from grpo.stages.supervised_rows import TokenRow
from grpo.types import Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COLUMN = "reference_losses"
CACHE = "reference_losses.safetensors"


def select_tokens(losses_N: Tensor, reference_N: Tensor, slm: SLM, seed: Sequence[int]) -> Tensor:
    """bool [N]: the round(keep * N) tokens to train on, at least one; earlier ones win ties.

    losses_N, reference_N: nats under policy and reference. seed: of select=random.
    """
    match slm.select:
        case "off":
            return torch.ones_like(losses_N, dtype=torch.bool)
        case "excess":
            scores_N = losses_N - reference_N
        case "highest":
            scores_N = losses_N
        case "random":
            drawn = np.random.default_rng(list(seed)).random(len(losses_N))
            scores_N = torch.from_numpy(drawn)  # on the CPU: some devices have no float64
    count = max(1, round(slm.keep * len(losses_N)))
    kept_N = torch.zeros_like(scores_N, dtype=torch.bool)
    kept_N[torch.argsort(scores_N, descending=True, stable=True)[:count]] = True
    return kept_N.to(losses_N.device)


@torch.no_grad()
def reference_losses(
    reference: PreTrainedModel,
    rows: Sequence[TokenRow],
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
) -> list[np.ndarray]:
    """Loss (float32, nats) of each row's completion tokens under the reference.

    The result is cached in `folder`, with a key made of the reference's weights and the rows' ids.
    """
    key = _key(reference, rows)
    file = folder / CACHE
    found = _cached(file, key)
    if found is None:
        found = _computed(reference, rows, progress)
        aside = file.with_suffix(".tmp")
        with open(aside, "wb") as stream:  # the umask decides who may read it
            stream.write(save({"losses": found}, metadata=_metadata(key, found)))
        aside.rename(file)
    borders = np.cumsum([len(row.ids) for row in rows])[:-1]
    return np.split(found, borders)


def columns(rows: Sequence[TokenRow], losses: Sequence[np.ndarray]) -> dict[str, list[list[float]]]:
    """The losses as a column of the training set, with 0 for prompt tokens."""
    return {
        COLUMN: [
            [0.0] * len(row.prompt_ids) + found.tolist()
            for row, found in zip(rows, losses, strict=True)
        ]
    }


class SLMTrainer(StageTrainer):
    """Trains on selected tokens; the others lose their label before the step begins."""

    def __init__(self, *, slm: SLM, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.slm = slm
        self.data_collator = _with_reference(self.data_collator)

    def prepared(self, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Labels of the tokens that are not selected become -100."""
        references = [batch.pop(COLUMN, None) for batch in batches]
        masks = [batch["labels"][:, 1:] != IGNORED for batch in batches]
        losses_N = self._losses(batches, masks)
        reference_N = torch.zeros_like(losses_N)
        if self.slm.select == "excess":
            reference_N = torch.cat([r[:, 1:][m] for r, m in zip(references, masks, strict=True)])
        seed = (self.args.seed, self.state.global_step)
        kept_N = select_tokens(losses_N, reference_N, self.slm, seed)
        parts = kept_N.split([int(mask.sum()) for mask in masks])
        for batch, mask, kept in zip(batches, masks, parts, strict=True):
            labels = batch["labels"][:, 1:]
            labels[mask] = torch.where(kept, labels[mask], IGNORED)
        metrics = self._metrics["train"]
        metrics["slm/kept"].append(float(kept_N.float().mean()))
        if self.slm.select != "random":
            metrics["slm/loss_of_all_tokens"].append(float(losses_N.mean()))
        return batches

    @torch.no_grad()
    def _losses(self, batches: list[dict[str, Any]], masks: list[Tensor]) -> Tensor:
        """Loss of every completion token of the step under the policy as it is now, [N]."""
        if self.slm.select == "random":
            count = sum(int(m.sum()) for m in masks)
            return torch.zeros(count, dtype=torch.float32, device=self.args.device)
        model: Any = self.model
        found: list[Tensor] = []
        for batch, mask in zip(batches, masks, strict=True):
            outputs = model(**batch, use_cache=False, fused_lm_head=True)
            if hasattr(outputs, "log_probs"):
                found.append(-outputs.log_probs[mask])
            else:  # TRL before 1.0 has no such head
                targets = batch["input_ids"][:, 1:][mask]
                logits = outputs.logits[:, :-1][mask].float()
                found.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none"))
        return torch.cat(found)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        known = self._signature_columns or []
        self._signature_columns = [*known, *([] if COLUMN in known else [COLUMN])]


def _with_reference(collate: Any) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """`collate` that also lays out the reference losses like the labels, padded with 0."""

    def call(examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = collate(examples)
        if COLUMN not in examples[0]:
            return batch
        rows = [torch.tensor(example[COLUMN], dtype=torch.float32) for example in examples]
        if len(rows) != len(batch["labels"]):  # laid end to end
            rows = [torch.cat(rows)]
        laid = torch.zeros(batch["labels"].shape, dtype=torch.float32)
        for number, row in enumerate(rows):
            laid[number, : len(row)] = row
        return {**batch, COLUMN: laid}

    return call


def _computed(
    reference: PreTrainedModel,
    rows: Sequence[TokenRow],
    progress: Callable[[int, int], None] | None,
) -> np.ndarray:
    """float32 [all completion tokens], in the order of the rows."""
    check_head(reference)
    batches = micro_batches([_row(row) for row in rows], MICRO_TOKENS, False, 0)
    found: list[np.ndarray] = [np.empty(0, np.float32)] * len(rows)
    done = 0
    for batch in batches:
        placed = place(batch, reference.device)
        logps = token_scores(reference, placed, 1.0).logp.float().cpu()
        for number, index in enumerate(batch.rows):
            found[index] = -logps.numpy()[batch.completions == number]
        done += len(batch.rows)
        if progress is not None:
            progress(done, len(rows))
    return np.concatenate(found)


def _row(row: TokenRow) -> Row:
    return Row(
        group=0,
        prompt_ids=row.prompt_ids,
        ids=np.asarray(row.ids, np.int64),
        mask=np.ones(len(row.ids), bool),
        columns={},
    )


def _key(reference: PreTrainedModel, rows: Sequence[TokenRow]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        for ids in (row.prompt_ids, row.ids):
            digest.update(np.asarray([len(ids), *ids], np.int64).tobytes())
    return f"{content_hash(reference.state_dict().items())}-{digest.hexdigest()}"


def _cached(file: Path, key: str) -> np.ndarray | None:
    """The cached losses; None where they have another key or are damaged."""
    try:
        with safe_open(str(file), framework="np") as stored:
            found, said = stored.get_tensor("losses"), stored.metadata()
    except (OSError, SafetensorError):
        return None
    return found if said == _metadata(key, found) else None


def _metadata(key: str, losses: np.ndarray) -> dict[str, str]:
    return {"key": key, "sha256": hashlib.sha256(losses.tobytes()).hexdigest()}
