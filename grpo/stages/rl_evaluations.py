"""The held-out evaluations of an rl stage, the best of them, and the gain.

    before -> step_000100 … -> after

With `eval.keep_best` the model of the best evaluation is kept. The summary has the gain of the last
model over the first, sample by sample, and a table of all figures (`evaluation.paired`). Without an
evaluation before training there is neither; with `eval.num_tasks` = 0 there is no evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo.evaluation import figures, heldout, paired, tally
from grpo.evaluation.heldout import HeldOut
from grpo.evaluation.statistics import paired_difference
from grpo.model.ranks import Ranks
from grpo.rundir.log import RunLog
from grpo.stages.rl_folder import AFTER, BEFORE, RLFolder


@dataclass(frozen=True, kw_only=True)
class Evaluations:
    """The evaluations so far. keep_best: whether the model of the best one is kept.

    found: name of the evaluation -> figures. has_checkpoints: whether the next checkpoint removes
    models that are no longer the best.
    """

    judge: HeldOut
    folder: RLFolder
    log: RunLog
    ranks: Ranks
    keep_best: bool
    has_checkpoints: bool
    found: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def kept(self) -> str:
        """The name of the evaluation whose model is kept; "" where none is."""
        return best(self.found) if self.keep_best and self.found else ""

    def measure(self, name: str) -> None:
        """Evaluate the model as it is now. Raises DataError if nothing is scored at the start."""
        found = self.ranks.on_first(lambda: self._evaluate(name))
        # Before anything is trained a reward that scores nothing is an error; later it is a figure.
        self.found[name] = tally.checked(found) if name == BEFORE else found
        self.folder.wrote(self._file(name))
        self.log.say(f"{name}: {figures.sentence(found)}")
        if self.kept == name != AFTER:
            self.folder.keep_model(name)
            if not self.has_checkpoints:
                self.folder.forget_models(self.kept)

    def _evaluate(self, name: str) -> dict[str, Any]:
        rollouts = self.folder.parts.rollouts
        with self.log.task(f"held-out evaluation ({name})") as progress, rollouts.quiet():
            return self.judge.evaluate(rollouts.engine, self._file(name), progress)

    def _file(self, name: str) -> Path:
        return self.folder.path / "eval" / f"{name}.jsonl"


def best(evaluations: dict[str, Any]) -> str:
    """The name of the best evaluation by `figures.decides`; of equal ones the earliest."""
    found = figures.decides(evaluations)
    return max(found, key=lambda name: found[name])


def choice(kept: str, evaluations: dict[str, Any], last: int) -> dict[str, Any]:
    """The summary's entries about the kept model.

    Its figures are those by which it was chosen, so they are too high on average.
    """
    step = {BEFORE: 0, AFTER: last}.get(kept)
    found = evaluations[kept]
    step = int(kept.removeprefix("step_")) if step is None else step
    change = figures.change(evaluations.get(BEFORE), found)
    return {
        "best": {"step": step, **found},
        "result": f"{change} at step {step}, the best of {len(evaluations)} evaluations",
    }


def summary(
    folder: Path, evaluations: dict[str, Any], seconds: float, step: int, seed: int
) -> dict[str, Any]:
    """The summary of a finished stage. seconds: of training, without evaluations.

    before, after, gain and paired are None where they were not measured.
    """
    before, after = evaluations.get(BEFORE), evaluations.get(AFTER)
    both: dict[str, Any] = {"gain": None, "paired": None}
    if before and after:
        both["gain"] = gain(folder / "eval", before["headline"], seed)
        old, new = (heldout.read_lines(folder / "eval" / f"{n}.jsonl") for n in (BEFORE, AFTER))
        both["paired"] = paired.compared(before, after, old, new, seed)
    return {
        "before": before,
        "after": after,
        **both,
        "during": {k: v for k, v in evaluations.items() if k not in (BEFORE, AFTER)},
        "steps": step,
        "seconds": round(seconds, 1),
        "model": str(folder / "model"),
    }


def gain(folder: Path, name: str, seed: int) -> dict[str, Any]:
    """The rise of reward `name`, sample by sample: {of, pass1 or mean, ci}, None if unscored."""
    old, new = (heldout.read_lines(folder / f"{when}.jsonl") for when in (BEFORE, AFTER))
    old, new = tally.shared(old, new)
    both = [*old, *new]
    of = tally.value_of(both, name)
    before, after = ([of(x) for x in lines if x["mode"] == "sample"] for lines in (old, new))
    clusters = [line["cluster"] for line in old if line["mode"] == "sample"]
    key = "pass1" if tally.judged(both, name) else "mean"
    if all(None in pair for pair in zip(before, after, strict=True)):
        return {"of": name, key: None, "ci": None}
    rise, low, high = paired_difference(after, before, clusters, seed=seed)
    return {"of": name, key: round(rise, 4), "ci": [round(low, 4), round(high, 4)]}
