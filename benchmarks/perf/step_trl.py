"""Whole steps of TRL: `GRPOTrainer.train()`, stopped before every step until it is asked for.

It samples by transformers' generate, or by vLLM in the same process with the setting `vllm`.
"""

from __future__ import annotations

import threading
from typing import Any

from transformers import TrainerCallback

from grpo.data.prompts import PromptTemplate
from grpo.outside.code import plugins
from perf.reward import coin
from perf.step_ours import recipe_of
from perf.trl_trainer import make_trainer
from perf.worker import Settings, device, now, serve, use_threads


class Gate(TrainerCallback):
    """Holds the trainer between steps and takes the time of each."""

    def __init__(self, settings: Settings) -> None:
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.settings = settings
        self.seconds = 0.0
        self.began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Wait; prompts are sampled after this."""
        self.go.acquire()
        self.began = now(self.settings)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """After the optimizer's step."""
        self.seconds = now(self.settings) - self.began
        self.done.release()


def prepare(settings: Settings) -> Any:
    """A trainer under way; a repetition is one step of it."""
    (stage,) = recipe_of(settings).stages
    samples, completion = settings["samples"], settings["completion"]
    trainer = make_trainer(
        model=settings["model"],
        precision=settings["precision"],
        micro_batch=settings["micro_batch"],
        rows=settings["prompts"] * samples,
        samples=samples,
        completion=completion,
        gradient_checkpointing=False,
        prompts=prompt_texts(stage),
        rewards=coin,
        device=device(settings),
        **vllm_arguments(settings, stage.data.max_prompt_length),
    )
    if not settings.get("vllm"):
        trainer.generation_config.eos_token_id = None
        trainer.generation_kwargs["eos_token_id"] = None
    trainer.eos_token_ids = [-1]  # no such token
    gate = Gate(settings)
    trainer.add_callback(gate)
    failure: list[BaseException] = []

    def train() -> None:
        use_threads(settings)
        try:
            trainer.train()
        except BaseException as error:
            failure.append(error)
            gate.done.release()
            raise

    threading.Thread(target=train, daemon=True).start()

    def repetition() -> dict[str, Any]:
        gate.go.release()
        gate.done.acquire()
        if failure:
            raise RuntimeError("TRL's training ended") from failure[0]
        length = trainer._metrics["train"]["completions/mean_length"][-1]
        if length != completion:
            raise RuntimeError(f"completions of {length} tokens on average, not {completion}")
        return {
            "seconds": gate.seconds,
            "tokens": settings["prompts"] * samples * completion,
            "micro_batch": settings["micro_batch"],
            "precision": settings["precision"],
        }

    return repetition


def vllm_arguments(settings: Settings, max_prompt_length: int) -> dict[str, Any]:
    """What TRL is told of vLLM; {} for transformers' generate.

    0.3 of the card is TRL's own default.
    """
    if not settings.get("vllm"):
        return {}
    return {
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_gpu_memory_utilization": 0.3,
        "vllm_max_model_length": max_prompt_length + settings["completion"],
        "generation_kwargs": {"ignore_eos": True},
    }


def prompt_texts(stage: Any) -> list[str]:
    """The recipe's first training prompts as text."""
    from transformers import AutoTokenizer

    source = plugins.load("source", stage.data.source, stage.data.args)
    tokenizer = AutoTokenizer.from_pretrained(stage.model.path)
    template = PromptTemplate(
        stage.data.template,
        tokenizer,
        max_prompt_length=stage.data.max_prompt_length,
        overlong=stage.data.overlong,
    )
    size = min(source.size("train") or 64, 64)
    texts = (template.render(source.task("train", index)) for index in range(size))
    return [prompt.text for prompt in texts if prompt is not None]


if __name__ == "__main__":
    serve(prepare)
