"""A batch as plain data, for a checkpoint that has some sampled ahead of their step."""

from __future__ import annotations

from typing import Any

import numpy as np

from grpo.errors import DataError, RunError
from grpo.rundir.identity import row_digest
from grpo.training.drawing import RolloutSpec
from grpo.training.gathering import Batch
from grpo.types import Completion, Group, Prompt, Rollout, Score, Segment, Version


def to_json(batch: Batch) -> dict[str, Any]:
    """A batch as plain data, exact to the bit; prompts are found again by their positions."""
    return {
        "step": batch.step,
        "metrics": batch.metrics,
        "outcomes": batch.outcomes,
        "groups": [
            {
                "position": position,
                "prompt": _digest(group.prompt),
                "completions": [_completion_json(r.completion) for r in group.rollouts],
                "scores": [_score_json(r.score) for r in group.rollouts],
            }
            for position, group in zip(batch.positions, batch.groups, strict=True)
        ],
    }


def _digest(prompt: Prompt) -> str:
    """Of a task and the tokens it became."""
    task = prompt.task
    return row_digest(task.uid, task.prompt, task.answer, dict(task.columns), prompt.ids).hex()


def _score_json(score: Score) -> list[Any]:
    right = None if score.right is None else dict(score.right)
    return [score.value, score.status, score.detail, dict(score.parts), right]


def _completion_json(completion: Completion) -> dict[str, Any]:
    return {
        "request": completion.request,
        "text": completion.text,
        "finish": completion.finish,
        "segments": [
            [s.ids.tolist(), s.source, [s.version.step, s.version.hash], s.logprobs.tolist()]
            for s in completion.segments
        ],
    }


def from_json(saved: dict[str, Any], spec: RolloutSpec) -> Batch:
    """The batch that `to_json` wrote; prompts are rendered again from the tasks."""
    groups: list[Group] = []
    for entry in saved["groups"]:
        task, visit = spec.tasks.at(entry["position"])
        prompt = spec.template.render(task)
        if prompt is None:
            raise DataError(f"task {task.uid} of a saved batch no longer fits its template")
        if entry.get("prompt", _digest(prompt)) != _digest(prompt):
            raise RunError(
                f"the data gives other tasks than those whose completions are saved for step "
                f"{saved['step']} (now {task.uid} there): its source, the chat template or the "
                "tokenizer is not what it was; put it back, or start a new run from the checkpoint"
            )
        fields = ("value", "status", "detail", "parts", "right")
        pairs = zip(entry["completions"], entry["scores"], strict=True)
        rollouts = tuple(
            Rollout(
                prompt=prompt,
                completion=_completion(completion, index),
                score=Score(**dict(zip(fields, score, strict=True))),
            )
            for index, (completion, score) in enumerate(pairs)
        )
        groups.append(Group(prompt=prompt, visit=visit, rollouts=rollouts))
    return Batch(
        step=saved["step"],
        groups=tuple(groups),
        positions=tuple(entry["position"] for entry in saved["groups"]),
        metrics=saved["metrics"],
        outcomes=tuple((place, uid, rate) for place, uid, rate in saved["outcomes"]),
    )


def _completion(saved: dict[str, Any], index: int) -> Completion:
    segments = tuple(
        Segment(
            ids=np.array(ids, dtype=np.int64),
            source=source,
            version=Version(step=step, hash=digest),
            logprobs=np.array(logprobs, dtype=np.float32),
        )
        for ids, source, (step, digest), logprobs in saved["segments"]
    )
    return Completion(
        request=saved["request"],
        index=index,
        segments=segments,
        text=saved["text"],
        finish=saved["finish"],
    )
