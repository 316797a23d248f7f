"""A stage that is done: its summary, and by hash all that it left.

    manifest.json   written before the summary, with the summary's own hash
    summary.json    a stage that has it is done

A resumed run takes a stage for done only where every file is as the stage left it. Otherwise the
stage is finished again, from the newest whole checkpoint, to the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from grpo.errors import GrpoError, RunError
from grpo.outside.files import durable, hashes, manifest
from grpo.outside.files.manifest import Damage
from grpo.outside.terminal.console import Console
from grpo.rundir import litter
from grpo.rundir.checkpoint import BEST, LOG, MODEL, remove

SUMMARY = "summary.json"
ASKED = "asked.json"  # beside the answers of an eval stage: hashes of them and of the models
LEFT = (MODEL, "data", "ledger", "shards", "progress.json", "teacher", LOG)  # beside eval/


def leave(stage: Path, summary: dict[str, Any]) -> None:
    """Write the summary of a stage that is done, and the hashes of what it left."""
    text = json.dumps(summary, indent=1) + "\n"
    files = hashes.known(stage, sorted(_left(stage, summary)))
    files[SUMMARY] = hashes.of_text(text)
    manifest.write_sealed(stage / manifest.NAME, {"files": files})
    durable.write_text(stage / SUMMARY, text)
    remove(stage / BEST)  # nothing goes back to a checkpoint now


def look(stage: Path, console: Console) -> tuple[dict[str, Any] | None, str]:
    """(summary of a stage that is done, ""), or (None, what of it is damaged).

    (None, "") is a stage that is not done yet. Its folder is made, and rid of what a kill left.
    Raises RunError where a folder is in the place of a file.
    """
    litter.tidy(stage, console)
    if not (stage / SUMMARY).exists():
        return None, ""
    try:
        summary = _checked(stage)
    except Damage as damage:
        said = f"{stage.name}: {damage}; what is missing of the stage is made again"
        console.print(said, markup=False, soft_wrap=True)
        return None, str(damage)
    remove(stage / BEST)
    return summary, ""


@contextmanager
def again(stage: Path, damage: str) -> Iterator[None]:
    """Inside, a stage that was done is done again because of `damage`; errors name that first."""
    try:
        yield
    except GrpoError as error:
        if not damage:
            raise
        raise RunError(f"{stage}: {damage}, and it cannot be made again: {error}") from error


def _checked(stage: Path) -> dict[str, Any]:
    files = manifest.read_sealed(stage / manifest.NAME, stage)["files"]
    if not (stage / "ledger").exists():  # nothing reads it; users remove it to save space
        files = {name: f for name, f in files.items() if not name.startswith("ledger/")}
    manifest.check(stage, files)
    _nothing_else(stage, files)
    return json.loads((stage / SUMMARY).read_text(encoding="utf-8"))


def _nothing_else(stage: Path, files: hashes.Known) -> None:
    """Libraries load what they find by name in these folders. Raises Damage."""
    for folder in (MODEL, "data"):
        for path in sorted((stage / folder).rglob("*")):
            name = path.relative_to(stage).as_posix()
            if path.is_file() and name not in files and not path.name.startswith("."):
                raise Damage(f"{name} was put there by something else")


def _left(stage: Path, summary: dict[str, Any]) -> Iterator[Path]:
    for name in LEFT:
        path = stage / name
        for file in [path] if path.is_file() else path.rglob("*"):
            aside = file.parent.name == "replaced" or file.suffix in (".tmp", ".replaced")
            if file.is_file() and not aside:
                yield file
    if (stage / "eval" / ASKED).is_file():
        yield stage / "eval" / ASKED
    evaluated = [*summary.get("during", {}), "before", "after", *summary.get("models", {})]
    for name in evaluated:  # `grpo eval` leaves its own files there
        if (stage / "eval" / f"{name}.jsonl").is_file():
            yield stage / "eval" / f"{name}.jsonl"
