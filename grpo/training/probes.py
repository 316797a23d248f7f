"""Completions that only the agreement gate reads: how many, of which prompts, with which noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from grpo.data.mixture import task_sampling
from grpo.data.source import stable_hash
from grpo.rollout.collect import collect
from grpo.types import (
    Completion,
    Engine,
    Group,
    NoiseSplit,
    Prompt,
    Request,
    Row,
    Sampling,
    Version,
)

INFORMATION = 6400.0  # sum of variances at which a temperature 10% too high stands at z = 7
TOKENS = 4096  # asked at most, where a policy so sure of itself never gives that much information
LENGTH = 64  # of a probe's completion at most
PROMPTS = 8
FIRST_ROUND = 0.5  # of TOKENS, if every completion were as long as it may be
MOST = 128  # completions of one prompt that are asked for at once: servers have such limits
MARGIN = 1.1  # of a further round: a third one for a few tokens takes as long as the second


@dataclass(frozen=True, kw_only=True)
class Probes:
    """What engines are asked when they are compared with the learner.

    The first `PROMPTS` of `prompts` are asked, each at the sampling of its task. `vocab_size`:
    token ids that the policy knows; None: not checked.
    """

    prompts: Sequence[Prompt]
    sampling: Sampling
    seed: int
    vocab_size: int | None = None

    @property
    def asked(self) -> Sequence[Prompt]:
        """The prompts of a round."""
        return self.prompts[:PROMPTS]

    @property
    def _length(self) -> int:
        return min(LENGTH, self.sampling.max_tokens)

    def draw(self, engine: Engine, step: int, place: int, samples: int) -> list[Row]:
        """One round of probes; `place` keeps the noise of the rounds of one check apart."""
        sampling = replace(self.sampling, max_tokens=self._length)
        requests = [
            Request(
                uid=f"agreement/{index}",
                ids=prompt.ids,
                n=samples,
                sampling=task_sampling(prompt.task, sampling),
                key=NoiseSplit.PROBE.key(self.seed, stable_hash(prompt.task.uid, step), place),
            )
            for index, prompt in enumerate(self.asked)
        ]
        rows: list[Row] = []
        for uid, completions in sorted(collect(engine, requests, vocab_size=self.vocab_size)):
            index = int(uid.rpartition("/")[2])
            temperature = requests[index].sampling.temperature
            rows += [
                _row(index, self.prompts[index], completion, temperature)
                for completion in completions
                if len(completion)  # else aborted before its first token
            ]
        return rows

    def samples(self, surprise_3_N: np.ndarray, asked: int) -> int:
        """Completions of each prompt in the next round, after `asked` that gave these tokens.

        Enough to finish if they turn out like those so far: an engine decodes many completions in
        little more time than a few, so there should be few rounds.
        """
        if not asked:
            longest = len(self.asked) * self._length
            return min(MOST, math.ceil(FIRST_ROUND * TOKENS / longest))
        missing = MARGIN * min(
            share / max(found, 1e-9) - 1
            for share, found in (
                (TOKENS, surprise_3_N.shape[1]),
                (INFORMATION, float(surprise_3_N[2].sum())),
            )
        )
        return min(MOST, max(1, math.ceil(missing * asked)))

    def of_batch(self, groups: Sequence[Group], version: Version) -> list[Row]:
        """The first completions of a batch that the weights `version` alone sampled.

        From all `groups`, dead ones too: chosen by their rewards, they would no longer be a fair
        sample of the policy.
        """
        temperatures = [task_sampling(g.prompt.task, self.sampling).temperature for g in groups]
        rows = [
            _row(index, group.prompt, rollout.completion, temperatures[index])
            for index, group in enumerate(groups)
            for rollout in group.rollouts
            if rollout.completion.mask.any()
            and all(segment.version == version for segment in rollout.completion.segments)
        ]
        ends = np.cumsum([row.mask.sum() for row in rows])
        return rows[: int(np.searchsorted(ends, TOKENS)) + 1]


def too_little(surprise_3_N: np.ndarray) -> bool:
    """Whether these tokens cannot tell a wrong temperature yet."""
    return surprise_3_N.shape[1] < TOKENS and float(surprise_3_N[2].sum()) < INFORMATION


def _row(group: int, prompt: Prompt, completion: Completion, temperature: float) -> Row:
    """A completion as a row that is looked at, and never learned from."""
    return Row(
        group=group,
        prompt_ids=prompt.ids,
        ids=completion.ids,
        mask=completion.mask,
        columns={
            "logp_sampler": completion.logprobs,
            "weights": np.ones(len(completion), dtype=np.float32),
        },
        temperature=temperature,
    )
