"""The parity gate: does this engine sample from the policy that learns?

Two questions, asked of each engine with fresh samples and the learner at the same weights.

Does it report the right log-probs? |sampler - learner| over the same tokens, mean and maximum, and
the KL divergence KL(sampler || learner) estimated by k3 (http://joschu.net/blog/kl-approx.html).

Does it draw from the distribution it reports? A sampler that is wrong and consistent passes the
first question. Under the learner's own distribution each -log p has the entropy as its mean, and a
variance that is computed with it; so over all tokens

    z = sum(-log p - entropy) / sqrt(sum(variance))

is a standard normal number, whatever the lengths (the terms are martingale differences). Its
numerator is the derivative of the log-likelihood by the inverse temperature, so nothing sees a
wrong temperature with fewer tokens: drawing at T / (1 - d) moves z by about d times
sqrt(sum(variance)).

Where the policy is nearly sure of every token, z is no longer normal: almost all of the variance
lies in tokens so rare that one of them is chance and stands many deviations out. Such tokens are
Poisson events, and z without the two most surprising passes its limit as rarely as a normal number
does (in at most 1 of 10,000 checks, whatever their rate).

An engine can be right about probes and wrong about batches: another length, another load. So the
batch of a step with a check is asked the same two questions, and every step's trained tokens have a
limit (`Limits`): the log-probs are there anyway.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from grpo.data.mixture import task_sampling
from grpo.data.source import stable_hash
from grpo.errors import EngineError, ParityError
from grpo.rollout.collect import collect
from grpo.types import (
    Completion,
    Engine,
    EnginePool,
    Group,
    Learner,
    Metrics,
    NoiseSplit,
    Prompt,
    Request,
    Row,
    Sampling,
)

Z_LIMIT = 4.0  # a clean check fails once in 16,000
INFORMATION = 6400.0  # sum of variances at which a temperature 10% too high stands at z = 7
FEWEST = 512  # tokens of a batch below which nothing is said about it
TOKENS = 4096  # asked at most, where a policy so sure of itself never gives that much information
LENGTH = 64  # of a probe's completion at most
PROMPTS = 8
FIRST_ROUND = 0.5  # of TOKENS, if every completion were as long as it may be
MOST = 128  # completions of one prompt that are asked for at once: servers have such limits
MARGIN = 1.1  # of a further round: a third one for a few tokens takes as long as the second


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How far the trained tokens of any step may be from what the sampler said of them.

    `difference`: mean |sampler - learner| log-prob in nats a token, for each step that the schedule
    lets the weights differ, and one more. `ess`: effective share of samples under the importance
    ratios, 0 to 1. 0 lifts either limit.
    """

    difference: float
    ess: float
    staleness: int = 0

    def check(self, step: int, metrics: Metrics) -> None:
        """Raise ParityError where a step's `metrics` pass a limit; it is not delivered or saved."""
        apart = metrics.get("sampling/sampling_logp_difference/mean", 0.0)
        share = metrics.get("sampling/ess", 1.0)
        lag = 1 + self.staleness
        fault = ""
        if self.difference and not apart <= self.difference * lag:
            times = f" times {lag} for a schedule {self.staleness} steps behind" if lag > 1 else ""
            fault = (
                f"differ from the learner's by {apart:.3f} nats a token "
                f"(parity.max_step_difference = {self.difference}{times})"
            )
        elif self.ess and not share >= self.ess:
            fault = (
                f"leave an effective sample size of {share:.3f} of the tokens "
                f"(parity.min_ess = {self.ess})"
            )
        if fault:
            behind = ", or the policy moves too fast for the schedule" if lag > 1 else ""
            raise ParityError(
                f"step {step}: the log-probs that came with its completions {fault}: the engine "
                f"draws from another policy, or reports another{behind}. This step was neither "
                "delivered nor saved. Look at the engine's settings (precision, cache, "
                f"speculation){', lower learner.learning_rate' if behind else ''}, or set the "
                "limit to 0 to train on all the same"
            )


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What is probed, and what is too much: `max_difference` in nats per token, the mean."""

    prompts: Sequence[Prompt]
    sampling: Sampling
    seed: int
    steps: int  # between checks
    max_difference: float
    decode: Callable[[list[int]], str]
    vocab_size: int | None = None  # token ids that the policy knows; None: not checked

    def due(self, step: int) -> bool:
        """Whether `step` begins with a check."""
        return self.steps > 0 and (step - 1) % self.steps == 0

    def check(self, engine: Engine, learner: Learner, step: int) -> Metrics:
        """Check every engine behind `engine`; the figures of the worst. Raises EngineError.

        Nothing may be under way in the engine.
        """
        members = engine.members if isinstance(engine, EnginePool) else [("engine", engine)]
        found = [self._check(name, member, learner, step) for name, member in members]
        return {
            name: (min if name in LEAST else max)(figures[name] for figures in found)
            for name in found[0]
        }

    def _check(self, name: str, engine: Engine, learner: Learner, step: int) -> Metrics:
        rows: list[Row] = []
        surprise_3_N = np.zeros((3, 0))
        asked = 0  # completions of each prompt
        # on all ranks as many rounds: what the learner computes for them is collective
        while any(learner.gather([_too_little(surprise_3_N)])):
            samples = self._samples(surprise_3_N, asked)
            try:
                drawn = self._sample(engine, step, len(rows), samples)
            except EngineError as error:
                raise EngineError(f"{name}: {error}") from error
            asked += samples
            if not drawn:
                raise ParityError(
                    f"{name} with weights {learner.version()} returned no token for "
                    f"{len(self.prompts[:PROMPTS])} probes; nothing can be compared"
                )
            rows += drawn
            surprise_3_N = np.concatenate([surprise_3_N, learner.surprise(drawn)], axis=1)
        return self._judged(name, rows, surprise_3_N, learner)

    def check_batch(self, groups: Sequence[Group], learner: Learner, step: int) -> Metrics:
        """The same of a batch before it is learned from; {} where it cannot tell.

        `groups` are this rank's, the dead ones too, as they were sampled: had some been left out
        for their rewards, the tokens of the others would not be a sample of the policy's.
        Completions of older weights say nothing about these. Raises ParityError.
        """
        current = learner.version()
        temperatures = [task_sampling(g.prompt.task, self.sampling).temperature for g in groups]
        rows = [
            _row(index, group.prompt, rollout.completion, temperatures[index])
            for index, group in enumerate(groups)
            for rollout in group.rollouts
            if rollout.completion.mask.any()
            and all(segment.version == current for segment in rollout.completion.segments)
        ]
        ends = np.cumsum([row.mask.sum() for row in rows])
        rows = rows[: int(np.searchsorted(ends, TOKENS)) + 1]
        surprise_3_N = learner.surprise(rows)
        if surprise_3_N.shape[1] < FEWEST:
            return {}
        found = self._judged(
            f"the engine, for the batch of step {step},", rows, surprise_3_N, learner
        )
        return {f"parity/batch_{name.removeprefix('parity/')}": found[name] for name in BATCH}

    def _judged(
        self, name: str, rows: Sequence[Row], surprise_3_N: np.ndarray, learner: Learner
    ) -> Metrics:
        """Both questions about the trained tokens of `rows`. Raises ParityError."""
        logp_N, entropy_N, variance_N = surprise_3_N
        sampler_N = np.concatenate([row.logprobs[row.mask] for row in rows]).astype(np.float64)
        difference_N = np.abs(sampler_N - logp_N)
        with np.errstate(all="ignore"):  # a log-prob of -inf or NaN is an error below
            ratio_N = logp_N - sampler_N
            kl = float((np.expm1(ratio_N) - ratio_N).mean())
        deviation = math.sqrt(max(float(variance_N.sum()), 1e-12))
        excess_N = -logp_N - entropy_N
        z = float(excess_N.sum()) / deviation
        without_rare = float(np.sort(excess_N)[:-2].sum()) / deviation
        metrics = {
            "parity/difference_mean": float(difference_N.mean()),
            "parity/difference_max": float(difference_N.max()),
            "parity/kl": kl,
            "parity/z": abs(z),
            "parity/tokens": float(len(logp_N)),
            # the relative error of the temperature that a check like this one would find
            "parity/temperature_seen": (Z_LIMIT + 2) / deviation,
        }
        worst = int(difference_N.argmax())
        if not metrics["parity/difference_mean"] <= self.max_difference:
            raise ParityError(
                f"{name} with weights {learner.version()} reports other log-probs than the learner "
                f"computes: mean difference {difference_N.mean():.4f} nats over {len(logp_N)} "
                f"tokens, parity.max_difference = {self.max_difference}. Worst: "
                f"{self._describe(rows, worst)}, sampler {sampler_N[worst]:.4f}, learner "
                f"{logp_N[worst]:.4f}"
            )
        if not (z >= -Z_LIMIT and without_rare <= Z_LIMIT):
            surprise, entropy = float(-logp_N.mean()), float(entropy_N.mean())
            raise ParityError(
                f"{name} with weights {learner.version()} does not draw from the distribution it "
                f"reports: mean -log p of {len(logp_N)} sampled tokens is {surprise:.4f} nats, the "
                f"entropy they were drawn at {entropy:.4f} ({abs(z):.1f} standard errors apart); "
                f"samples are too {'random' if z > 0 else 'certain'}, as if the temperature were "
                f"{1 + z / deviation:.2f} times what was asked. Worst: "
                f"{self._describe(rows, int(np.argmax(excess_N)))}"
            )
        return metrics

    def _samples(self, surprise_3_N: np.ndarray, asked: int) -> int:
        """Completions of each prompt in the next round, after `asked` that gave these tokens.

        As many as it takes if they turn out like those so far: an engine decodes many completions
        in little more time than a few, so rounds are to be few.
        """
        if not asked:
            longest = len(self.prompts[:PROMPTS]) * self._length
            return min(MOST, math.ceil(FIRST_ROUND * TOKENS / longest))
        missing = MARGIN * min(
            share / max(found, 1e-9) - 1
            for share, found in (
                (TOKENS, surprise_3_N.shape[1]),
                (INFORMATION, float(surprise_3_N[2].sum())),
            )
        )
        return min(MOST, max(1, math.ceil(missing * asked)))

    @property
    def _length(self) -> int:
        return min(LENGTH, self.sampling.max_tokens)

    def _sample(self, engine: Engine, step: int, place: int, samples: int) -> list[Row]:
        """One round of probes; `place` keeps the noise of the rounds of one check apart."""
        prompts = self.prompts[:PROMPTS]
        sampling = replace(self.sampling, max_tokens=self._length)
        requests = [
            Request(
                uid=f"parity/{index}",
                ids=prompt.ids,
                n=samples,
                sampling=task_sampling(prompt.task, sampling),
                key=NoiseSplit.PROBE.key(self.seed, stable_hash(prompt.task.uid, step), place),
            )
            for index, prompt in enumerate(prompts)
        ]
        rows: list[Row] = []
        for uid, completions in sorted(collect(engine, requests, vocab_size=self.vocab_size)):
            index = int(uid.rpartition("/")[2])
            for completion in completions:
                if not len(completion):  # aborted before its first token
                    continue
                rows.append(
                    _row(index, prompts[index], completion, requests[index].sampling.temperature)
                )
        return rows

    def _describe(self, rows: Sequence[Row], place: int) -> str:
        for row in rows:
            trained = np.flatnonzero(row.mask)
            if place < len(trained):
                at = int(trained[place])
                text = self.decode(row.ids[: at + 1].tolist())
                return f"token {int(row.ids[at])} at the end of {text[-60:]!r}"
            place -= len(trained)
        raise AssertionError("a place beyond the probes")


LEAST = ("parity/tokens",)
BATCH = ("parity/difference_mean", "parity/z", "parity/tokens")  # what is kept of a batch's check


def _row(group: int, prompt: Prompt, completion: Completion, temperature: float) -> Row:
    """A completion to be looked at and not learned from."""
    length = len(completion)
    return Row(
        group=group,
        prompt_ids=prompt.ids,
        ids=completion.ids,
        mask=completion.mask,
        logprobs=completion.logprobs,
        advantages=np.zeros(length, dtype=np.float32),
        weights=np.ones(length, dtype=np.float32),
        temperature=temperature,
    )


def _too_little(surprise_3_N: np.ndarray) -> bool:
    """Whether these tokens cannot tell a wrong temperature yet."""
    return surprise_3_N.shape[1] < TOKENS and float(surprise_3_N[2].sum()) < INFORMATION
