"""trl.SFTTrainer on rows of token ids, in an order fixed beforehand.

Ours are the labels (completion and eos, whatever the pad token is), the order of the rows over all
epochs (one sequence, so that a resumed run only skips), the micro-batches, and the form of metrics
and checkpoints. Forward pass, loss, packing, optimizer, schedule and resumption are the trainer's.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl.data_utils import pack_dataset
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from grpo.config.schema import Run, SFTLearner
from grpo.errors import LearnerError
from grpo.outside.files import hashes
from grpo.rundir import checkpoint
from grpo.rundir.log import RunLog
from grpo.stages.supervised_rows import TokenRow, draw

IGNORED = -100
MICRO_TOKENS = 4096  # of one forward pass, padding included
WARMUP = 0.03  # of all steps
SHOWN = ("loss", "learning_rate", "grad_norm", "mean_token_accuracy", "entropy")


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """The trainer's input: rows in training order, `micro` of them in a forward pass."""

    data: Dataset
    steps: int
    micro: int


def training_set(
    rows: Sequence[TokenRow],
    learner: SFTLearner,
    seed: int,
    columns: dict[str, list[list[float]]] | None = None,
) -> TrainingSet:
    """Rows over all epochs in the order of `seed`, packed if `learner.packing`.

    columns: more columns of the rows, each with a number for every token of prompt and completion.
    In an optimizer step the longest rows come first: this saves padding and changes no sum.
    """
    table = {
        "input_ids": [[*row.prompt_ids, *row.ids] for row in rows],
        "labels": [[IGNORED] * len(row.prompt_ids) + list(row.ids) for row in rows],
        **(columns or {}),
    }
    data = Dataset.from_dict(table)
    if learner.packing:
        data = pack_dataset(data, learner.max_length, "bfd")
    lengths = [len(ids) for ids in data["input_ids"]]
    size = learner.batch_size
    total = learner.max_steps * size or max(1, round(learner.num_train_epochs * len(lengths)))
    order = draw(len(lengths), total, seed)
    batches = [order[start : start + size] for start in range(0, total, size)]
    ordered = [i for batch in batches for i in sorted(batch, key=lambda i: (-lengths[i], i))]
    # One packed sequence at a time: attention over several is quadratic in their total length.
    most = 1 if learner.packing else max(1, MICRO_TOKENS // max(lengths))
    micro = max(d for d in range(1, size + 1) if size % d == 0 and d <= most)
    return TrainingSet(data=data.select(ordered), steps=len(batches), micro=micro)


def settings(
    data: TrainingSet,
    learner: SFTLearner,
    run: Run,
    folder: Path,
    dtype: str,
    device: torch.device,
    recomputes: bool = True,
) -> SFTConfig:
    """The trainer's arguments. bfloat16 and float16 are compute types (autocast).

    `recomputes`: the model can recompute activations, which is done on accelerators.
    """
    config = SFTConfig(
        output_dir=str(folder),
        max_steps=data.steps,
        num_train_epochs=1,
        per_device_train_batch_size=data.micro,
        gradient_accumulation_steps=learner.batch_size // data.micro,
        train_sampling_strategy="sequential",
        dataset_kwargs={"skip_prepare_dataset": True},
        packing=learner.packing,
        max_length=learner.max_length,
        learning_rate=learner.learning_rate,
        lr_scheduler_type="cosine_warmup_with_min_lr",  # cosine_with_min_lr begins with a step at 0
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=math.ceil(WARMUP * data.steps),
        bf16=dtype == "bfloat16",
        fp16=dtype == "float16",
        **_of_device(device.type, recomputes),
        seed=run.seed,
        save_strategy="no",  # the journal says when
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
    )
    if config.n_gpu > 1:  # the stage is one process on one device; more would be torch.DataParallel
        config._n_gpu = 1
    return config


def _of_device(kind: str, recomputes: bool) -> dict[str, Any]:
    """The arguments that a kind of device decides."""
    # renamed in transformers 5.2x; the old name warns there
    names = ("activation_checkpointing", "gradient_checkpointing")
    name = next(name for name in names if name in SFTConfig.__dataclass_fields__)
    return {
        name: kind != "cpu" and recomputes,
        "use_cpu": kind == "cpu",
        "dataloader_pin_memory": kind not in ("cpu", "mps"),  # which share their memory
    }


class StageTrainer(SFTTrainer):
    """The trainer of a stage: counts what it trains on, and leaves only the run's own files."""

    tokens_trained = 0

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        # The loss is divided by the count that `get_batch_samples` gives. This is not set on the
        # class: with transformers before 5.19, TRL would then put a text where SFTTrainer expects
        # a loss function. These versions read the second name.
        self.loss_is_scaled_for_ga = True
        self.model_accepts_loss_kwargs = True

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro-batches of an optimizer step, and how many tokens it trains on."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        batches = self.prepared(batches)
        count = sum((b["labels"][:, 1:] != IGNORED).sum() for b in batches)
        self.tokens_trained += int(count)
        return batches, torch.as_tensor(count, device=device)

    def prepared(self, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The micro-batches of an optimizer step as they are trained on; for subclasses."""
        return batches

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """None: the run folder says where the model comes from."""

    def _send_telemetry(self) -> None:
        """None: nothing about a user's run leaves the machine."""


class Journal(TrainerCallback):
    """Writes metrics and checkpoints, and stops, as an rl stage does."""

    def __init__(
        self, log: RunLog, run: Run, saver: checkpoint.Saver, stop: Any, seconds: float
    ) -> None:
        self.log, self.run, self.saver, self.stop = log, run, saver, stop
        self.began = time.perf_counter() - seconds
        self.trainer: Any = None
        self.stopped = False

    @property
    def seconds(self) -> float:
        """Spent on training, earlier parts of a resumed run included."""
        return time.perf_counter() - self.began

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step = state.global_step
        due = self.run.save_steps and step % self.run.save_steps == 0
        last = step >= state.max_steps
        self.stopped = bool(self.stop()) and not last
        control.should_save = bool(due or last or self.stopped)
        control.should_training_stop = control.should_training_stop or self.stopped

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" not in logs:  # the trainer's own summary
            return
        known = {name: float(logs[name]) for name in (*SHOWN, *self.more(logs)) if name in logs}
        skipped = args.fp16 and not math.isfinite(known.get("grad_norm", 0.0))  # by the loss scale
        for name in ("loss", "grad_norm"):
            if not math.isfinite(known.get(name, 0.0)) and not skipped:
                raise LearnerError(
                    f"step {state.global_step}: {name} is {known[name]}; lower "
                    f"learner.learning_rate = {args.learning_rate:g}, or use model.dtype=float32"
                )
        self.log.step(state.global_step, known | {"tokens_trained": self.trainer.tokens_trained})

    @staticmethod
    def more(logs: dict[str, Any]) -> list[str]:
        """Names of metrics that a subclass of the trainer adds: they have a slash."""
        return [name for name in logs if "/" in name]

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        made = Path(args.output_dir) / f"checkpoint-{state.global_step}"

        def write(aside: Path) -> None:
            for file in sorted(made.iterdir()):
                os.rename(file, aside / file.name)
            shutil.rmtree(args.output_dir)

        facts = {
            "step": state.global_step,
            "tokens_trained": self.trainer.tokens_trained,
            "seconds": self.seconds,
        }
        beside = {checkpoint.LOG: hashes.start_of(self.log.path, self.log.position())}
        self.saver.save(state.global_step, write, facts, beside)
