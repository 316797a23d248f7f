"""What is known of every step, one file each, and which step is in progress.

FOLDER/state/kind.json              device, size and card that all of it is of
FOLDER/state/SECTION/STEP.json      one step: status, reason, seconds, result
FOLDER/state/SECTION/_current       the step in progress, by name
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu.section import Setup, Step
from grpo.errors import RunError
from grpo.outside.files import durable

DONE, FAILED, NOT_RUN = "done", "failed", "not run"
Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class State:
    """The steps of one section on disk."""

    folder: Path  # FOLDER/state/SECTION

    @classmethod
    def of(cls, setup: Setup, section: str) -> State:
        """Those of a section, their folder made."""
        folder = setup.folder / "state" / section
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder=folder)

    def write(self, step: str, record: Mapping[str, Any]) -> None:
        """Put a step's record on disk, whole or not at all."""
        durable.write_json(self.folder / f"{step}.json", record)

    def read(self, step: str) -> Record | None:
        """A step's record. None where there is none, or one that is no JSON."""
        try:
            found: Record = json.loads((self.folder / f"{step}.json").read_text())
        except (FileNotFoundError, ValueError):
            return None
        return found

    def records(self, steps: Sequence[Step]) -> dict[str, Record]:
        """{step: record} of those that have one, in order."""
        found = {step.name: self.read(step.name) for step in steps}
        return {name: record for name, record in found.items() if record is not None}

    def begin(self, step: str) -> None:
        """A step is in progress."""
        (self.folder / "_current").write_text(step)

    @property
    def current(self) -> str:
        """The step that was begun last, "" before the first."""
        path = self.folder / "_current"
        return path.read_text() if path.exists() else ""


def is_open(record: Record | None, *, again: bool) -> bool:
    """Whether a step is to be run."""
    if record is None or record["status"] == NOT_RUN:
        return True
    return again and record["status"] == FAILED


def claim_kind(setup: Setup, card: str, torch: str) -> None:
    """Let the folder's state be of this device, size, card and version of torch.

    Raises RunError where it is of others: their figures must not meet in one table.
    """
    path = setup.folder / "state" / "kind.json"
    wanted = {"device": setup.device, "tiny": setup.tiny, "card": card, "torch": torch}
    if path.exists():
        found = durable.read_json(path, f"remove {setup.folder} to measure everything anew")
        if found != wanted:
            raise RunError(
                f"--folder = {str(setup.folder)!r} has measurements of {found}, and this call is "
                f"for {wanted}; name another folder, or remove this one"
            )
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.write_json(path, wanted)


def matrix_rate(setup: Setup, dtype: str) -> float | None:
    """Operations a second of a large matrix product in `dtype`, as the card section measured it.

    None where that section has not run.
    """
    record = State.of(setup, "card").read(f"matrix-{dtype}")
    if record is None or record["status"] != DONE:
        return None
    return float(record["result"]["flops_per_second"])
