"""Learner steps of TRL on recorded rollouts: its own loss, its optimizer, injected completions."""

from __future__ import annotations

from typing import Any

import torch

from perf import work
from perf.trl_trainer import make_trainer
from perf.worker import Settings, device, now, serve


def prepare(settings: Settings) -> Any:
    """A trainer and its scored batch; a repetition is what TRL does from there to new weights."""
    from trl.trainer.utils import split_tensor_dict

    shape = settings["rollouts"]
    rows = shape["groups"] * shape["samples"]
    rewards: list[float] = []
    trainer = make_trainer(
        model=settings["model"],
        precision=settings["precision"],
        micro_batch=settings["micro_batch"],
        rows=rows,
        samples=shape["samples"],
        completion=shape["completion"],
        gradient_checkpointing=settings["gradient_checkpointing"],
        prompts=["1="],
        rewards=lambda completions, **_: rewards,
        device=device(settings),
    )
    model: Any = trainer.model
    recorded = work.rollouts(**shape, vocab=model.config.vocab_size)
    flops = work.needed(recorded, work.shape_of(model))
    rewards += [value for group in recorded.rewards for value in group]
    inject(trainer, recorded)
    micro_batches = rows // min(settings["micro_batch"], rows)
    trainer.current_gradient_accumulation_steps = micro_batches
    model.train()
    if settings["gradient_checkpointing"]:
        kwargs = trainer.args.gradient_checkpointing_kwargs
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
    trainer.create_optimizer()
    parameters = list(model.parameters())
    batch = trainer._generate_and_score_completions([{"prompt": "1="}] * rows)
    parts = split_tensor_dict(batch, micro_batches)

    def repetition() -> dict[str, Any]:
        started = now(settings)
        for part in parts:
            trainer._compute_loss(model, part).backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, trainer.args.max_grad_norm)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        seconds = now(settings) - started
        return {
            "seconds": seconds,
            "tokens": recorded.completion_tokens,
            "rows": rows,
            "micro_batches": len(parts),
            "grad_norm": float(norm),
            "micro_batch": min(settings["micro_batch"], rows),
            "precision": settings["precision"],
            "gradient_checkpointing": settings["gradient_checkpointing"],
            "needed_flops": flops,
        }

    return repetition


def inject(trainer: Any, recorded: work.Rollouts) -> None:
    """Put the recorded tokens in the place of TRL's generation."""
    prompts = [p for p, g in zip(recorded.prompts, recorded.completions, strict=True) for _ in g]
    completions = [c for group in recorded.completions for c in group]
    nothing = ["" for _ in completions]

    def generate(_: Any) -> tuple[Any, ...]:
        return prompts, completions, None, nothing, None, {}, None, None

    trainer._generate = generate


if __name__ == "__main__":
    serve(prepare)
