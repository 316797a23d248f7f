"""Append-only record of every rollout that was scored and what the learner did with it.

One gzipped JSONL shard a step, written aside and committed by rename: a shard either exists whole
or not at all. A line is one rollout: prompt, visit, token ids, sampler log-probs, weights versions,
score and advantage (a list where each token has its own), which is enough to recompute the step's
loss.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grpo.outside.files.durable import opener
from grpo.outside.files.lines import to_line
from grpo.types import Group


def shard(folder: Path, step: int) -> Path:
    """Path of the shard of `step`."""
    return folder / f"step_{step:06d}.jsonl.gz"


def append(
    folder: Path,
    step: int,
    groups: Sequence[Group],
    advantages_P_G: Sequence[Sequence[float | np.ndarray]],
) -> Path:
    """Commit the shard of `step`; the same groups give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        to_line(_line(group, index, advantage))
        for group, advantages_G in zip(groups, advantages_P_G, strict=True)
        for index, advantage in enumerate(advantages_G)
    ]
    path = shard(folder, step)
    aside = path.with_suffix(".tmp")
    with open(aside, "wb", opener=opener) as raw:
        with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0, compresslevel=3) as packed:
            packed.write("".join(lines).encode())
        raw.flush()
        os.fsync(raw.fileno())
    os.replace(aside, path)
    return path


def read(folder: Path, step: int) -> Iterator[dict[str, Any]]:
    """The lines of one shard."""
    with gzip.open(shard(folder, step), "rt", encoding="utf-8", newline="\n") as lines:
        yield from map(json.loads, lines)


def set_aside(folder: Path, after_step: int) -> int:
    """Move shards later than `after_step` to `replaced/`; returns how many there were."""
    shards = [p for p in folder.glob("step_*.jsonl.gz") if p.name[5:11].isdigit()]
    later = [p for p in shards if int(p.name[5:11]) > after_step]
    for path in later:
        (folder / "replaced").mkdir(exist_ok=True)
        os.replace(path, folder / "replaced" / path.name)
    return len(later)


def _line(group: Group, index: int, advantage: float | np.ndarray) -> dict[str, Any]:
    rollout = group.rollouts[index]
    return {
        "task": group.prompt.task.uid,
        "visit": group.visit,
        "sample": index,
        "prompt": group.prompt.text,
        "completion": rollout.completion.text,
        "finish": rollout.completion.finish,
        "value": rollout.score.value,
        "status": rollout.score.status,
        "parts": dict(rollout.score.parts),
        "right": dict(rollout.score.right or {}),
        "advantage": [round(a, 6) for a in advantage.tolist()]
        if isinstance(advantage, np.ndarray)
        else round(advantage, 6),
        "segments": [
            {
                "ids": s.ids.tolist(),
                "source": s.source,
                "version": [s.version.step, s.version.hash],
                "logprobs": np.round(s.logprobs.astype(np.float64), 6).tolist(),
            }
            for s in rollout.completion.segments
        ],
    }
