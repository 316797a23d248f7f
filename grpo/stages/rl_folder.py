"""The folder of an rl stage: its models and checkpoints, and how the stage goes back to one.

With `eval.keep_best` every evaluated model that beats the earlier ones is kept in `best/` until no
checkpoint needs it. A checkpoint has the hashes of what it needs elsewhere. Only the evaluation of
the first model can be made again.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from grpo.config.schema import Run
from grpo.outside.files import hashes
from grpo.outside.files.hashes import Known
from grpo.outside.terminal.console import Console
from grpo.rundir import checkpoint, finished, ledger
from grpo.rundir.checkpoint import BEST, Checkpoint
from grpo.rundir.log import RunLog
from grpo.training.loop import TrainerParts

BEFORE = "before"  # the evaluation of the model that training starts from
AFTER = "after"  # the evaluation of the model that training ends with
AGAIN = (f"eval/{BEFORE}.", f"{BEST}/{BEFORE}/")  # what can be made again from the first model
ROLLOUTS = "rollouts.json.gz"  # a checkpoint's batches that were sampled ahead of their step


@dataclass(frozen=True, kw_only=True)
class RLFolder:
    """Where the parts of a stage are saved; of several ranks only the first writes.

    beside: hashes of the files that the next checkpoint needs outside its own folder.
    """

    path: Path
    parts: TrainerParts
    tokenizer: Any
    beside: Known = field(default_factory=Known)

    def wrote(self, *files: Path) -> None:
        """Add files to what the following checkpoints need."""
        if self.parts.learner.rank == 0:
            self.beside.update(hashes.known(self.path, files))

    def keep_model(self, name: str) -> None:
        """Keep the model as it is now as the best, under the name of its evaluation."""
        place = self.path / BEST / name
        self.save_model(place)
        self.wrote(*(path for path in place.rglob("*") if path.is_file()))

    def leave_model(self, name: str) -> None:
        """Leave in `model/` the model of evaluation `name`: a kept one, or the current one."""
        kept, left = self.path / BEST / name, self.path / "model"
        if name == AFTER:
            self.save_model(left)
        elif self.parts.learner.rank == 0 and kept.exists():  # else moved before a kill
            checkpoint.replace(kept, left)

    def save_model(self, folder: Path) -> None:
        """Save model and tokenizer in `folder`, whole or not at all."""
        learner, aside = self.parts.learner, folder.with_suffix(".tmp")

        def write(place: Path) -> None:
            learner.save_model(str(place))
            self.tokenizer.save_pretrained(place)

        if learner.rank:
            learner.save_model(str(aside))  # gives its part to the first rank, which writes
            return
        checkpoint.make_folder(aside, write)
        checkpoint.replace(aside, folder)

    def save(self, saver: checkpoint.Saver, state: dict[str, Any], log: RunLog) -> None:
        """Write the checkpoint of a step: the learner, what was sampled ahead, and `state`."""
        learner, rollouts = self.parts.learner, self.parts.rollouts
        with rollouts.quiet():
            ahead = json.dumps(rollouts.state()).encode()
            position = rollouts.position

        def write(aside: Path) -> None:
            learner.save(str(aside))
            self.tokenizer.save_pretrained(aside)
            (aside / ROLLOUTS).write_bytes(gzip.compress(ahead, compresslevel=3, mtime=0))

        if learner.rank:
            learner.save(str(saver.run))  # gives its part to the first rank, which writes
            return
        so_far = {checkpoint.LOG: hashes.start_of(log.path, log.position())}
        saver.save(state["step"], write, {**state, "position": position}, {**self.beside, **so_far})

    def forget_models(self, keep: str) -> None:
        """Remove kept models, except `keep` and those that a checkpoint needs."""
        if self.parts.learner.rank:
            return
        drop_models(self.beside, keep)
        needed = {keep, *checkpoint.models(self.path)}
        for model in (self.path / BEST).glob("*"):
            if model.name not in needed:
                checkpoint.remove(model)


def go_back(folder: Path, settings: Run, console: Console) -> Checkpoint | None:
    """The checkpoint to go on from, with what was written after it moved aside.

    Raises RunError where there are checkpoints and none is whole.
    """
    say = partial(console.print, markup=False, soft_wrap=True)
    found = checkpoint.latest(folder, say, AGAIN)
    step, size = (found.state["step"], found.beside[checkpoint.LOG][0]) if found else (0, 0)
    ledger.set_aside(folder / "ledger", after_step=step)
    checkpoint.rewind(folder / checkpoint.LOG, size)
    removed: list[Path] = []
    if found and settings.save_total_limit:
        removed += checkpoint.beyond(folder, settings.save_total_limit, newest=step)
    kept = checkpoint.models(folder)
    removed += [model for model in (folder / BEST).glob("*") if model.name not in kept]
    finished.clear(folder, console, removed)
    return found


def restore(found: Checkpoint, parts: TrainerParts, accepted: int) -> None:
    """Put a checkpoint's state into `parts`.

    accepted: how often changes of the stage's inputs were accepted. If the checkpoint is older than
    the last of them, its batches are sampled anew.
    """
    parts.learner.load(str(found.folder))
    with gzip.open(found.folder / ROLLOUTS, "rt", encoding="utf-8") as ahead:
        is_same = found.state["accepted"] == accepted
        parts.rollouts.restore(json.load(ahead), found.state["position"], keep_batches=is_same)


def drop_models(beside: Known, keep: str) -> None:
    """Drop from `beside` the kept models that are no longer the best.

    Otherwise the next checkpoint would need models that are removed with the one before it.
    """
    for name in [name for name in beside if name.startswith(f"{BEST}/")]:
        if name.split("/")[1] != keep:
            del beside[name]
