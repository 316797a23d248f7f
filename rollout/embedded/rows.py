"""The rows an engine is decoding: hot numbers as arrays, the rest as one record a row."""

from __future__ import annotations

import numpy as np

from grpo.rollout.embedded.sampling import noise_key
from grpo.rollout.samples import Job, Sample, segments_of
from grpo.types import Completion, FinishReason, Version


class RunningRows:
    """Running completions; rows 0..count-1 are in use.

    Arrays over rows: `made` tokens so far, `prompt` length, `limit` on made tokens, `noise` key,
    `deadline` (inf = none), `eos` ids padded with -1, `reads` (whether there are stop strings to
    look for); over rows x tokens: `tokens`, `logprobs`.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.count = 0
        self.owners: list[Sample] = []
        self.made = np.zeros(capacity, dtype=np.int64)
        self.prompt = np.zeros(capacity, dtype=np.int64)
        self.limit = np.zeros(capacity, dtype=np.int64)
        self.noise = np.zeros(capacity, dtype=np.uint64)
        self.deadline = np.full(capacity, np.inf)
        self.eos = np.full((capacity, 1), -1, dtype=np.int64)
        self.reads = np.zeros(capacity, dtype=bool)
        self.tokens = np.zeros((capacity, 64), dtype=np.int64)
        self.logprobs = np.zeros((capacity, 64), dtype=np.float32)

    def set(self, row: int, job: Job, index: int, version: Version) -> None:
        """Row `row` starts sample `index` of `job`; the next free row, or one to reuse."""
        request = job.request
        owner = Sample(job=job, index=index, marks=[(0, version)])
        if row == self.count:
            self.owners.append(owner)
            self.count += 1
        else:
            self.owners[row] = owner
        self.made[row] = 0
        self.prompt[row] = len(request.ids)
        self.limit[row] = request.sampling.max_tokens
        self.noise[row] = noise_key(request.key, index)
        self.deadline[row] = np.inf if request.deadline is None else request.deadline
        eos = request.sampling.eos_ids
        if len(eos) > self.eos.shape[1]:
            self.eos = _wider(self.eos, len(eos), -1)
        self.eos[row] = -1
        self.eos[row, : len(eos)] = eos
        self.reads[row] = bool(request.sampling.stop)

    def append(self, rows: np.ndarray, tokens: np.ndarray, logprobs: np.ndarray) -> None:
        """One more token for each of `rows`."""
        at = self.made[rows]
        if at.max() >= self.tokens.shape[1]:
            width = 2 * self.tokens.shape[1]
            self.tokens = _wider(self.tokens, width, 0)
            self.logprobs = _wider(self.logprobs, width, 0)
        self.tokens[rows, at] = tokens
        self.logprobs[rows, at] = logprobs
        self.made[rows] = at + 1

    def move(self, source: int, target: int) -> None:
        """Row `target` becomes what row `source` was."""
        self.owners[target] = self.owners[source]
        arrays = (self.made, self.prompt, self.limit, self.noise, self.deadline, self.eos)
        for array in (*arrays, self.reads, self.tokens, self.logprobs):
            array[target] = array[source]

    def truncate(self, count: int) -> None:
        """Forget rows from `count` on."""
        self.count = count
        del self.owners[count:]

    def mark(self, version: Version) -> None:
        """Tokens from here on are written by the weights `version`."""
        for row, owner in enumerate(self.owners):
            owner.mark(int(self.made[row]), version)

    def completion(self, row: int, text: str, finish: FinishReason) -> Completion:
        """The completion in `row`, as it stands."""
        owner = self.owners[row]
        made = int(self.made[row])
        return Completion(
            request=owner.job.request.uid,
            index=owner.index,
            segments=segments_of(
                self.tokens[row, :made].copy(), self.logprobs[row, :made].copy(), owner.marks
            ),
            text=text,
            finish=finish,
        )


def _wider(array: np.ndarray, width: int, fill: int) -> np.ndarray:
    new = np.full((array.shape[0], width), fill, dtype=array.dtype)
    new[:, : array.shape[1]] = array
    return new
