"""TRL's GRPOTrainer on parity: the same task, rewards, batch and learning rate."""

from __future__ import annotations

import random
import time
from typing import Any

from transformers import TrainerCallback

from grpo.recipes import minimal_loop
from perf.trl_trainer import make_trainer
from perf.worker import Settings, serve


class Watch(TrainerCallback):
    """The last step's metrics; TRL forgets them when training ends."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.found: dict[str, float] = {}

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Keep them."""
        self.found = {k: v[-1] for k, v in self.trainer._metrics["train"].items() if v}


def accuracy(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """1 where the answer is right."""
    return [parts(p, c)[0] for p, c in zip(prompts, completions, strict=True)]


def form(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """1 where the completion thinks and answers."""
    return [parts(p, c)[1] for p, c in zip(prompts, completions, strict=True)]


def parts(prompt: str, completion: str) -> tuple[float, float]:
    """Both, by minimal_loop's own function."""
    return minimal_loop.reward(prompt.removesuffix("="), completion)


def prepare(settings: Settings) -> Any:
    """A repetition is `train()` of a new trainer from the shipped base; making it is not timed."""
    loop: Any = minimal_loop
    train, _ = loop.make_splits(0)
    strings = random.Random(0).sample(train, 2048)

    def repetition() -> dict[str, Any]:
        trainer: Any = make_trainer(
            model=str(loop.BASE),
            precision="float32",
            micro_batch=settings["micro_batch"],
            rows=loop.P * loop.G,
            samples=loop.G,
            completion=loop.MAX_TOKENS,
            gradient_checkpointing=False,
            prompts=[f"{bits}=" for bits in strings],
            rewards=[accuracy, form],
            learning_rate=loop.LEARNING_RATE,
            max_steps=settings["steps"],
        )
        watch = Watch(trainer)
        trainer.add_callback(watch)
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
        return {
            "seconds": seconds,
            "steps": settings["steps"],
            "accuracy": watch.found["rewards/accuracy/mean"],
            "frac_reward_zero_std": watch.found["frac_reward_zero_std"],
            "micro_batch": settings["micro_batch"],
        }

    return repetition


if __name__ == "__main__":
    serve(prepare)
