"""Pretrain a tiny base model from scratch, for the recipes that need no download.

The loss is cross-entropy on the completion tokens of a source's demonstrations; prompts are context
only. AdamW, warm-up and cosine. Rows of about equal length share a forward pass, without an
attention mask, so little is padding. The result loads with AutoModelForCausalLM and AutoTokenizer.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from grpo.config.schema import PretrainStage, Recipe
from grpo.config.schema.pretrain import PretrainLearner, PretrainModel
from grpo.data.source import DemonstrationSource, TaskOrder, stable_hash
from grpo.errors import DataError
from grpo.outside.code import plugins
from grpo.outside.terminal.console import Console
from grpo.rundir import checkpoint
from grpo.rundir.log import RunLog
from grpo.stages.from_scratch import build_model, build_tokenizer, save_tokenizer, words_of
from grpo.stages.preflight.stage_data import demonstrating
from grpo.types import Metrics, TaskSource

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

IGNORED = -100
# Rows share a forward pass when the shorter is at least this share of the longest: little padding.
MIN_FILL = 0.85

Pair = tuple[list[int], list[int]]  # prompt ids, completion ids with <eos>


def run(stage: PretrainStage, recipe: Recipe, folder: Path, console: Console) -> dict[str, Any]:
    """Leave a tiny base in `folder/model`; the summary. An interrupted stage starts over."""
    source = plugins.load("source", stage.data.source, stage.data.args)
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    with RunLog(
        folder,
        title=stage.name,
        max_steps=stage.learner.max_steps,
        trackers=recipe.run.trackers,
        config=stage.model_dump(mode="json"),
        console=console,
    ) as log:
        metrics = pretrain(
            source,
            out_dir=str(folder / "model"),
            model=stage.model,
            learner=stage.learner,
            seed=recipe.run.seed,
            progress=log.step,
        )
    size = f"{metrics['parameters'] / 1e6:.2f}M parameters"
    result = f"{size}, loss {metrics['loss']:.3f} after {metrics['tokens'] / 1e6:.1f}M tokens"
    return {"result": result, "model": str(folder / "model"), **metrics}


def pretrain(
    source: TaskSource,
    *,
    out_dir: str,
    model: PretrainModel,
    learner: PretrainLearner,
    seed: int = 0,
    progress: Callable[[int, Metrics], None] | None = None,
) -> Metrics:
    """Pretrain on demonstrations of the train split and save model and tokenizer in `out_dir`.

    `progress(step, {"loss", "learning_rate"})` is called after each step (from 1). Returns loss
    (nats a completion token, mean of the last 10 steps), tokens, parameters and seconds.
    Raises DataError for a source without demonstrations or a row longer than `max_position`,
    RecipeError for sizes that no model has.
    """
    source = demonstrating(source)
    tokenizer = build_tokenizer(source.alphabet(), words_of(source))
    policy = build_model(tokenizer, **model.model_dump(), seed=seed)
    optimizer = torch.optim.AdamW(
        policy.parameters(),
        lr=learner.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=learner.weight_decay,
    )
    order = TaskOrder(source, "train", seed)
    started = time.perf_counter()
    losses: list[float] = []
    tokens = 0
    policy.train()
    for step in range(learner.max_steps):
        rows = demonstration_rows(source, order, tokenizer, learner.batch_size)
        tokens += count_tokens(rows, model.max_position)
        share = schedule(step, learner.max_steps, learner.warmup_steps)
        rate = learner.learning_rate * share
        losses.append(_learn(policy, optimizer, rows, rate))
        if progress is not None:
            progress(step + 1, {"loss": losses[-1], "learning_rate": rate})
    _save(policy.eval(), tokenizer, Path(out_dir))
    return {
        "loss": sum(losses[-10:]) / len(losses[-10:]),
        "tokens": float(tokens),
        "parameters": float(sum(p.numel() for p in policy.parameters())),
        "seconds": time.perf_counter() - started,
    }


def _save(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Model and tokenizer in the folder `out`, whole or not at all."""
    aside = out.with_name(f"{out.name}.tmp")

    def write(folder: Path) -> None:
        policy.save_pretrained(folder)
        save_tokenizer(tokenizer, str(folder))

    checkpoint.make_folder(aside, write)
    checkpoint.replace(aside, out)


def count_tokens(rows: Sequence[Pair], max_position: int) -> int:
    """The tokens of all rows. Raises DataError for a row longer than `max_position`."""
    lengths = [len(prompt) + len(completion) for prompt, completion in rows]
    if max(lengths) > max_position:
        raise DataError(
            f"a demonstration has {max(lengths)} tokens, more than "
            f"model.max_position={max_position}"
        )
    return sum(lengths)


def _learn(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, rows: Sequence[Pair], rate: float
) -> float:
    """One optimizer step on `rows`; the loss before it, in nats a completion token."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    trained = sum(len(completion) for _, completion in rows)
    loss = 0.0
    for chunk in by_length(rows):
        part = completion_loss(model, chunk) / trained
        part.backward()
        loss += part.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss


def schedule(step: int, steps: int, warmup_steps: int) -> float:
    """Share of the peak learning rate at `step` (from 0): linear warm-up, then cosine to 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * done))


def demonstration_rows(
    source: DemonstrationSource, order: TaskOrder, tokenizer: PreTrainedTokenizerFast, n: int
) -> list[Pair]:
    """The next `n` demonstrations as token ids; repeated tasks draw a fresh demonstration."""
    prompts: list[str] = []
    completions: list[str] = []
    start = order.position
    for place, (task, _) in enumerate(order.take(n), start):
        if not isinstance(task.prompt, str):
            raise DataError(f"task {task.uid}: pretraining needs text prompts")
        # Keyed by the place in the order: an endless source repeats tasks, always at visit 0.
        key = stable_hash("demonstration", order.seed, place)
        prompts.append(task.prompt)
        completions.append(source.demonstration(task, random.Random(key)))
    try:
        encoding: Any = tokenizer(prompts + completions, add_special_tokens=False)
    except Exception as error:  # the tokenizers library raises a bare Exception
        known = set(source.alphabet())
        text = "".join(prompts + completions)
        for whole in tokenizer.get_added_vocab():
            text = text.replace(whole, "")
        missing = sorted(set(text) - known)
        raise DataError(f"characters {missing} are missing from the source's alphabet") from error
    encoded: list[list[int]] = encoding["input_ids"]
    eos: Any = tokenizer.eos_token_id
    return [(p, [*c, eos]) for p, c in zip(encoded[:n], encoded[n:], strict=True)]


def by_length(rows: Sequence[Pair]) -> list[list[Pair]]:
    """The rows in batches of nearly equal length, longest first."""
    ordered = sorted(rows, key=lambda row: len(row[0]) + len(row[1]), reverse=True)
    chunks: list[list[Pair]] = []
    for row in ordered:
        longest = sum(map(len, chunks[-1][0])) if chunks else 0
        if chunks and len(row[0]) + len(row[1]) >= MIN_FILL * longest:
            chunks[-1].append(row)
        else:
            chunks.append([row])
    return chunks


def completion_loss(model: PreTrainedModel, rows: Sequence[Pair]) -> torch.Tensor:
    """Summed cross-entropy (float32 scalar, nats) of the completion tokens of a few rows.

    Padding is on the right, where a causal model never looks at it, so no mask is passed.
    """
    longest = max(len(p) + len(c) for p, c in rows)
    ids_R_L = torch.zeros(len(rows), longest, dtype=torch.long)
    labels_R_L = torch.full((len(rows), longest), IGNORED)
    for r, (prompt, completion) in enumerate(rows):
        end = len(prompt) + len(completion)
        ids_R_L[r, :end] = torch.tensor(prompt + completion)
        labels_R_L[r, len(prompt) : end] = torch.tensor(completion)
    logits_R_L_V = model(input_ids=ids_R_L[:, :-1], use_cache=False).logits
    return F.cross_entropy(
        logits_R_L_V.flatten(0, 1),
        labels_R_L[:, 1:].flatten(),
        ignore_index=IGNORED,
        reduction="sum",
    )
