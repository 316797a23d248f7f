"""Held-out evaluation of the policy with the engine that trains it.

Each task is answered once greedily and `num_samples` times at the asked temperature, always with
the same noise, so that two evaluations of one model give one figure and two models are compared
sample by sample.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from grpo import behaviors, evaluate
from grpo.data.prompts import PromptTemplate
from grpo.data.source import stable_hash
from grpo.errors import DataError
from grpo.lines import from_lines, to_line
from grpo.rewards.combine import UNUSABLE
from grpo.rewards.compose import RewardSet
from grpo.rewards.latex import compare
from grpo.rollout.collect import collect
from grpo.types import Completion, Engine, Prompt, Request, Sampling, Score, TaskSource

HELDOUT_SPLIT = 1  # second number of a noise key; 0 is training
BARREN = 10_000  # tasks of an endless source tried in a row before giving up on new ones


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What is asked of the policy at every evaluation."""

    prompts: Sequence[Prompt]
    rewards: RewardSet  # the first one is reported as accuracy
    sampling: Sampling
    num_samples: int
    seed: int
    answer_of: Callable[[str], str | None] | None = None  # what a completion votes for in maj@k

    def evaluate(
        self, engine: Engine, path: Path, progress: Callable[[int, int], None] = lambda _a, _b: None
    ) -> dict[str, Any]:
        """Sample, score, write every completion to `path` (JSONL) and return the summary.

        Returns greedy and pass1 (means of the first reward), pass1_ci (95%, bootstrap over task
        clusters), mean_length (tokens, at the temperature) and more. `progress`
        is called with (groups done, groups in all).
        """
        alone = replace(self.sampling, temperature=0.0, top_p=1.0, top_k=0, min_p=0.0)
        greedy = self._ask(engine, alone, 1, "greedy")
        sampled = self._ask(engine, self.sampling, self.num_samples, "sample")
        groups = [*self._follow(greedy, progress, 0), *self._follow(sampled, progress, 1)]
        lines = [self._line(mode, place, c, s) for mode, place, c, s in groups]
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".tmp")
        aside.write_text("".join(map(to_line, lines)), encoding="utf-8", newline="\n")
        os.replace(aside, path)
        return summarize(lines, [name for name, _, _ in self.rewards.rewards], self.seed)

    def _ask(
        self, engine: Engine, sampling: Sampling, n: int, mode: str
    ) -> Iterator[tuple[str, int, Completion, Score]]:
        requests = [
            Request(
                uid=f"{mode}/{place}",
                ids=prompt.ids,
                n=n,
                sampling=sampling,
                key=(self.seed, HELDOUT_SPLIT, stable_hash(prompt.task.uid), 0),
            )
            for place, prompt in enumerate(self.prompts)
        ]
        for uid, completions in collect(engine, requests, text=True):
            place = int(uid.rpartition("/")[2])
            scores = self.rewards.score(self.prompts[place], completions)
            for completion, score in zip(completions, scores, strict=True):
                yield mode, place, completion, score

    def _follow(
        self,
        groups: Iterator[tuple[str, int, Completion, Score]],
        progress: Callable[[int, int], None],
        part: int,
    ) -> list[tuple[str, int, Completion, Score]]:
        total = len(self.prompts)
        seen: set[int] = set()
        kept: list[tuple[str, int, Completion, Score]] = []
        for item in groups:
            seen.add(item[1])
            kept.append(item)
            progress(part * total + len(seen), 2 * total)
        return sorted(kept, key=lambda item: (item[1], item[2].index))

    def _line(self, mode: str, place: int, completion: Completion, score: Score) -> dict[str, Any]:
        prompt = self.prompts[place]
        text = prompt.prefill + completion.text
        vote = {"vote": self.answer_of(text)} if self.answer_of else {}
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
            "status": score.status,
            "parts": dict(score.parts),
            **({"detail": score.detail} if score.status in UNUSABLE else {}),
            **vote,
        }


def prepare(source: TaskSource, template: PromptTemplate, num_tasks: int) -> list[Prompt]:
    """The first `num_tasks` different held-out tasks that fit, as prompts, or all there are.

    An endless source repeats itself, and a task counted twice would not be two pieces of evidence.
    """
    size = source.size("heldout")
    if size == 0:
        raise DataError(
            "the data source has no held-out tasks to evaluate on; with few rows, raise "
            "heldout_fraction in data.args, or name a held-out file or split there"
        )
    prompts: list[Prompt] = []
    seen: set[str] = set()
    index = barren = 0
    while len(prompts) < num_tasks and (barren < BARREN if size is None else index < size):
        task = source.task("heldout", index)
        prompt = None if task.uid in seen else template.render(task)
        prompts += [] if prompt is None else [prompt]
        seen.add(task.uid)
        index, barren = index + 1, barren + 1 if prompt is None else 0
    if not prompts:
        raise DataError("every held-out prompt is longer than data.max_prompt_length; raise it")
    return prompts


def summarize(lines: Sequence[dict[str, Any]], names: Sequence[str], seed: int) -> dict[str, Any]:
    """Figures of evaluation lines by `grpo.evaluate.summarize`, of `names[0]` at the top level.

    Beside them, of the sampled completions: clipped_ratio (cut by the length limit), length_right
    and length_wrong (mean tokens; None where there are none), statuses (verdict -> count) and what
    `grpo.behaviors.summarize` gives. With several rewards, `rewards` holds each one's greedy and
    pass1 with their intervals (None for one that scored nothing). Raises DataError if the first
    reward scored nothing.
    """
    sampled = [line for line in lines if line["mode"] == "sample"]
    places = list(dict.fromkeys(line["task"] for line in sampled))
    clusters = {line["task"]: line["cluster"] for line in sampled}
    votes = None
    if sampled and "vote" in sampled[0]:
        votes = [_alike(row) for row in _by_task(sampled, places, lambda line: line["vote"])]
    per_name = {
        name: evaluate.summarize(
            scores=_by_task(sampled, places, lambda line, name=name: line["parts"][name]),
            lengths=_by_task(sampled, places, lambda line: line["tokens"]),
            clusters=[clusters[place] for place in places],
            greedy=[line["parts"][name] for line in lines if line["mode"] == "greedy"],
            answers=votes,
            seed=seed,
        )
        for name in names
        if any(line["parts"][name] is not None for line in sampled)
    }
    if names[0] not in per_name:
        said = ", ".join(sorted({line["status"] for line in sampled}))
        details = Counter(line["detail"] for line in sampled if line.get("detail"))
        why = "".join(f"; most often: {detail}" for detail, _ in details.most_common(1))
        raise DataError(
            f"reward {names[0]!r} scored no held-out completion (status: {said}{why}), so there is "
            "no accuracy to report; eval.rewards names the verifiers to evaluate with"
        )
    right, wrong = ([x["tokens"] for x in sampled if x["parts"][names[0]] == v] for v in (1.0, 0.0))
    summary = {
        **per_name[names[0]],
        "clipped_ratio": float(np.mean([line["finish"] != "stop" for line in sampled])),
        "length_right": float(np.mean(right)) if right else None,
        "length_wrong": float(np.mean(wrong)) if wrong else None,
        "statuses": dict(Counter(line["status"] for line in sampled).most_common()),
        **behaviors.summarize(line["completion"] for line in sampled),
    }
    if len(names) > 1:
        shown = ("greedy", "greedy_ci", "pass1", "pass1_ci", "pass1_stderr")
        summary["rewards"] = {n: {k: per_name.get(n, {}).get(k) for k in shown} for n in names}
    return summary


def columns(lines: Sequence[dict[str, Any]], names: Sequence[str], seed: int) -> dict[str, Any]:
    """One model's row of a table: {heading: [value, low, high], a number, or None}.

    accuracy is pass@1 of the first reward, as in `summarize`; every other reward is its mean over
    the sampled completions that it applies to (not_applicable is no 0); length is in tokens, and
    truncated the share of completions cut by the length limit. Intervals resample task clusters.
    """
    first = summarize(lines, names[:1], seed)
    sampled = [line for line in lines if line["mode"] == "sample"]
    row: dict[str, Any] = {"accuracy": [first["pass1"], *first["pass1_ci"]]}
    row["greedy"] = first["greedy"]
    for name in names[1:]:
        row[name] = _pooled(sampled, lambda line, name=name: line["parts"][name], seed)
    row["length"] = _pooled(sampled, lambda line: float(line["tokens"]), seed)
    row["truncated"] = first["clipped_ratio"]
    return row


def difference(
    lines: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]], name: str, seed: int
) -> tuple[float, float, float] | None:
    """(lines - others, low, high) in pass@1 of reward `name` over the tasks both were asked.

    None where no task was scored in both.
    """
    mine, theirs = (_means(found, name) for found in (lines, others))
    shared = [task for task in mine if task in theirs]
    pairs = [(mine[task], theirs[task]) for task in shared]
    if not any(a == a and b == b for a, b in pairs):
        return None
    clusters = {line["task"]: line["cluster"] for line in lines}
    return evaluate.paired_difference(
        [a for a, _ in pairs], [b for _, b in pairs], [clusters[t] for t in shared], seed
    )


def unscored(lines: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, int]:
    """How many sampled completions each reward did not apply to, where there are any."""
    counts = {name: values(lines, name).count(None) for name in names}
    return {name: count for name, count in counts.items() if count}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The completions that `HeldOut.evaluate` wrote."""
    return from_lines(path.read_text(encoding="utf-8"))


def _means(lines: Sequence[dict[str, Any]], name: str) -> dict[str, float]:
    sampled = [line for line in lines if line["mode"] == "sample"]
    places = list(dict.fromkeys(line["task"] for line in sampled))
    scores = _by_task(sampled, places, lambda line: line["parts"][name])
    return dict(zip(places, evaluate.task_means(scores).tolist(), strict=True))


def _pooled(
    lines: Sequence[dict[str, Any]], of: Callable[[dict[str, Any]], float | None], seed: int
) -> list[float] | None:
    found = [(value, line["cluster"]) for line in lines if (value := of(line)) is not None]
    if not found:
        return None
    values = [value for value, _ in found]
    interval = evaluate.clustered_bootstrap(values, [cluster for _, cluster in found], seed)
    return [float(np.mean(values)), *interval]


def values(lines: Sequence[dict[str, Any]], name: str) -> list[float | None]:
    """Reward `name` of every sampled completion, in file order."""
    return [line["parts"][name] for line in lines if line["mode"] == "sample"]


def _alike(answers: Sequence[str | None]) -> list[str | None]:
    """The answers, each replaced by the first one that says the same: 0.5 votes with \\frac12."""
    first: list[str] = []
    votes: list[str | None] = []
    for answer in answers:
        if answer is None:
            votes.append(None)
            continue
        same = next((a for a in first if a == answer or compare(answer, a)), None)
        first += [answer] if same is None else []
        votes.append(answer if same is None else same)
    return votes


def _by_task(
    lines: Sequence[dict[str, Any]], places: Sequence[str], of: Callable[[dict[str, Any]], Any]
) -> list[list[Any]]:
    found: dict[str, list[Any]] = {place: [] for place in places}
    for line in lines:
        found[line["task"]].append(of(line))
    return list(found.values())
