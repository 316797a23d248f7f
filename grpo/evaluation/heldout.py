"""Held-out evaluation of the policy with the engine that trains it.

Each task is answered once greedily and `num_samples` times at the given temperature. The noise is
always the same: two evaluations of one model give the same figure, and two models are compared
sample by sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from grpo.data.prompts import PromptTemplate
from grpo.data.source import Split, stable_hash
from grpo.errors import DataError
from grpo.evaluation.tally import figures
from grpo.outside.files import durable
from grpo.outside.files.lines import from_lines
from grpo.rewards.calling import UNUSABLE
from grpo.rewards.compose import RewardSet
from grpo.rollout.collect import collect
from grpo.types import Completion, Engine, NoiseSplit, Prompt, Request, Sampling, Score, TaskSource

BARREN = 10_000  # tasks of an endless source tried in a row before giving up on new ones
NO_TASKS = (
    "the data source has no held-out tasks to evaluate on; with few rows, raise heldout_fraction "
    "in data.args, name a held-out file or split there, or set eval.num_tasks = 0: no evaluation"
)


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What is asked of the policy at every evaluation."""

    prompts: Sequence[Prompt]
    rewards: RewardSet  # accuracy is the first one's that says right or wrong
    sampling: Sampling
    num_samples: int
    seed: int
    answer_of: Callable[[str], str | None] | None = None  # text -> its vote in maj@k

    def evaluate(
        self, engine: Engine, path: Path, progress: Callable[[int, int], None] = lambda _a, _b: None
    ) -> dict[str, Any]:
        """Sample, score, write every completion to `path` (JSONL) and return the summary.

        The summary is `figures`: where nothing was scored, it says so with None. `progress` is
        called with (groups done, groups in all).
        """
        alone = replace(self.sampling, temperature=0.0, top_p=1.0, top_k=0, min_p=0.0)
        total = len(self.prompts)
        lines: list[dict[str, Any]] = []
        for mode, sampling, n, before in (
            ("greedy", alone, 1, 0),
            ("sample", self.sampling, self.num_samples, total),
        ):
            answered: dict[int, list[dict[str, Any]]] = {}
            for place, group in self._ask(engine, sampling, n, mode):
                answered[place] = group
                progress(before + len(answered), 2 * total)
            lines += [line for place in sorted(answered) for line in answered[place]]
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.write_lines(path, lines)
        return figures(lines, [name for name, _, _ in self.rewards.rewards], self.seed)

    def _ask(
        self, engine: Engine, sampling: Sampling, n: int, mode: str
    ) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """(place of a prompt, the lines of its completions), group by group as they finish."""
        requests = [
            Request(
                uid=f"{mode}/{place}",
                ids=prompt.ids,
                n=n,
                sampling=sampling,
                key=NoiseSplit.HELDOUT.key(self.seed, stable_hash(prompt.task.uid), 0),
            )
            for place, prompt in enumerate(self.prompts)
        ]
        for uid, completions in collect(engine, requests, text=True):
            place = int(uid.rpartition("/")[2])
            scores = self.rewards.score(self.prompts[place], completions)
            pairs = zip(completions, scores, strict=True)
            yield place, [self._line(mode, place, *pair) for pair in pairs]

    def _line(self, mode: str, place: int, completion: Completion, score: Score) -> dict[str, Any]:
        prompt = self.prompts[place]
        text = prompt.prefill + completion.text
        return {
            "mode": mode,
            "task": prompt.task.uid,
            "cluster": prompt.task.cluster or prompt.task.uid,
            "sample": completion.index,
            "prompt": prompt.text,
            "completion": text,
            "answer": prompt.task.answer,
            "tokens": len(completion),
            "finish": completion.finish,
            "value": score.value,
            "status": score.status,
            "parts": dict(score.parts),
            "right": dict(score.right or {}),
            **({"detail": score.detail} if score.status in UNUSABLE else {}),
            **({"vote": self.answer_of(text)} if self.answer_of else {}),
        }


def prepare(
    source: TaskSource, template: PromptTemplate, num_tasks: int, split: Split = "heldout"
) -> list[Prompt]:
    """The first `num_tasks` different tasks of the split that fit, as prompts, or all there are.

    An endless source repeats itself, and a task counted twice would not be two pieces of evidence.
    Raises DataError where there are none.
    """
    size = source.size(split)
    if size == 0:
        raise DataError(NO_TASKS)
    prompts: list[Prompt] = []
    seen: set[str] = set()
    index = barren = 0
    while len(prompts) < num_tasks and (barren < BARREN if size is None else index < size):
        task = source.task(split, index)
        prompt = None if task.uid in seen else template.render(task)
        prompts += [] if prompt is None else [prompt]
        seen.add(task.uid)
        index, barren = index + 1, barren + 1 if prompt is None else 0
    if not prompts:
        which = "held-out " if split == "heldout" else ""
        raise DataError(
            f"every {which}prompt is longer than {template.limit()[1]}: raise the limit, or "
            "shorten them"
        )
    return prompts


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The completions that `HeldOut.evaluate` wrote."""
    return from_lines(path.read_text(encoding="utf-8"))
