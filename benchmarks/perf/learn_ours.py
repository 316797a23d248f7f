"""Learner steps of ours on recorded rollouts, from groups to the updated weights."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from grpo.commands.memory import keep_freed_memory
from grpo.config.schema import Algorithm, Learner
from grpo.kernels import native
from grpo.learner import head
from grpo.learner.learner import TorchLearner
from grpo.method.advantage import reward_matrix
from grpo.method.table import ADVANTAGES
from grpo.method.weighted_rows import drop_dead, make_rows
from grpo.types import Completion, Group, Prompt, Rollout, Score, Segment, Task, Version
from perf import work
from perf.worker import Settings, now, serve


def prepare(settings: Settings) -> Any:
    """A learner; a repetition is one step. Switches for ablations: see perf/ablations.py."""
    if not settings.get("return_memory"):
        keep_freed_memory()  # as `grpo train` does
    if settings.get("torch_only"):  # ablation: no compiled kernel
        os.environ["GRPO_NATIVE"] = "0"
    if settings.get("no_tiles"):  # ablation: kernels that know no matrix tiles
        native.FLAGS = (*native.FLAGS, "-mno-amx-bf16")
    if "chunk_elements" in settings:
        head.CHUNK_ELEMENTS = settings["chunk_elements"]
    learner = TorchLearner(
        settings["model"],
        algorithm=Algorithm(loss_type="dapo", sampling_correction="none"),
        config=Learner(
            tokens_per_micro_batch=settings["tokens_per_micro_batch"],
            share_prompts=settings.get("share_prompts", True),
            gradient_checkpointing=settings.get("gradient_checkpointing", False),
        ),
        dtype=settings["dtype"],
    )
    recorded = work.rollouts(**settings["rollouts"], vocab=learner.model.config.vocab_size)
    groups = to_groups(recorded)
    limit = settings["rollouts"]["completion"]
    keep_dead = settings.get("keep_dead", False)
    flops = work.needed(recorded, work.shape_of(learner.model))

    def repetition() -> dict[str, Any]:
        started = now(settings)
        advantages = ADVANTAGES["grpo"].function(reward_matrix(groups))
        rows = make_rows(groups, advantages, loss_type="dapo", max_completion_length=limit)
        live = rows if keep_dead else drop_dead(rows, beta=0.0, loss_type="dapo")[0]
        metrics = learner.step(live)
        seconds = now(settings) - started
        return {
            "seconds": seconds,
            "tokens": recorded.completion_tokens,
            "rows": recorded.rows,
            "rows_trained": len(live),
            "micro_batches": metrics["learner/micro_batches"],
            "grad_norm": metrics["grad_norm"],
            "needed_flops": flops,
        }

    return repetition


def to_groups(recorded: work.Rollouts) -> list[Group]:
    """Scored groups of the recorded tokens."""
    groups: list[Group] = []
    version = Version(step=0, hash="recorded")
    for number, (ids, completions, rewards) in enumerate(
        zip(recorded.prompts, recorded.completions, recorded.rewards, strict=True)
    ):
        prompt = Prompt(task=Task(uid=str(number), prompt=""), text="", ids=tuple(ids))
        members = [
            Rollout(
                prompt=prompt,
                completion=Completion(
                    request=str(number),
                    index=index,
                    segments=(
                        Segment(
                            ids=np.array(tokens, dtype=np.int64),
                            version=version,
                            logprobs=np.zeros(len(tokens), dtype=np.float32),
                        ),
                    ),
                    text="",
                    finish="stop",
                ),
                score=Score(value=reward, status="scored"),
            )
            for index, (tokens, reward) in enumerate(zip(completions, rewards, strict=True))
        ]
        groups.append(Group(prompt=prompt, visit=0, rollouts=tuple(members)))
    return groups


if __name__ == "__main__":
    serve(prepare)
