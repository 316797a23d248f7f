"""A TRL GRPOTrainer with what the benchmarks share: no logging, no disk, dapo loss, AdamW."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

# How bf16 is done: compute in bf16 over float32 weights and moments, as ours does it; or weights,
# gradients and moments all in bf16, which is less work and at small learning rates learns nothing.
PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {"weights": torch.float32, "bf16": False},
    "autocast": {"weights": torch.float32, "bf16": True},
    "bf16 weights": {"weights": torch.bfloat16, "bf16": False},
}


def make_trainer(
    *,
    model: str,
    precision: str,
    micro_batch: int,
    rows: int,
    samples: int,
    completion: int,
    gradient_checkpointing: bool,
    prompts: Sequence[str],
    rewards: Any,
    device: str = "cpu",
    **arguments: Any,
) -> Any:
    """The trainer: `rows` completions a step in micro-batches of `micro_batch`, on `device`."""
    trl: Any = importlib.import_module("trl")
    from datasets import Dataset

    how = PRECISIONS[precision]
    args = trl.GRPOConfig(
        output_dir=tempfile.mkdtemp(prefix="bench-trl-"),
        per_device_train_batch_size=min(micro_batch, rows),
        gradient_accumulation_steps=max(1, rows // micro_batch),
        num_generations=samples,
        max_completion_length=completion,
        temperature=1.0,
        beta=0.0,
        loss_type="dapo",
        bf16=how["bf16"],
        gradient_checkpointing=gradient_checkpointing,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        use_cpu=device == "cpu",
        disable_tqdm=True,
        **{"learning_rate": 1e-6, "lr_scheduler_type": "constant", "max_steps": 1000, **arguments},
    )
    trainer = trl.GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=how["weights"]),
        reward_funcs=rewards,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": list(prompts)}),
        processing_class=AutoTokenizer.from_pretrained(model, padding_side="left"),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
