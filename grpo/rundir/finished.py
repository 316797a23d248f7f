"""The files of a stage: what a kill leaves of them, and by hash what a stage that is done left.

    manifest.json   written before the summary, with the summary's own hash
    summary.json    a stage that has it is done

A resumed run takes a stage for done only where every file is as the stage left it. Otherwise the
stage is finished again, from the newest whole checkpoint, to the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from grpo.errors import GrpoError, RunError
from grpo.outside.files import durable, hashes, manifest
from grpo.outside.files.manifest import Damage
from grpo.outside.terminal.console import Console
from grpo.rundir.checkpoint import BEST, LOG, MODEL, remove

FILES = (
    *("summary.json", "manifest.json", "metrics.jsonl", "metrics.jsonl.replaced"),
    *("checkpoints.jsonl", "reference_losses.safetensors", "progress.json"),
    *("eval/*.jsonl", "eval/asked.json", "ledger/*.jsonl.gz", "ledger/replaced/*"),
    *("shards/*", "teacher/shards/*", "teacher/metrics.jsonl", "teacher/metrics.jsonl.replaced"),
    "teacher/progress.json",
)
FOLDERS = (
    *("checkpoints", "eval", "ledger", "ledger/replaced", "shards", "data", "model", "best"),
    *("teacher", "teacher/shards"),
)
# Temporary names, under which a stage writes. Earlier versions also moved old models aside.
ASIDE = (
    *("summary.tmp", "manifest.tmp", "metrics.tmp", "reference_losses.tmp", "teacher/metrics.tmp"),
    *("progress.tmp", "teacher/progress.tmp"),
    *("model.tmp", "data.tmp", "trainer.tmp", "model.[0-9]*[0-9]"),
    *(f"{folder}/*.tmp" for folder in ("checkpoints", "eval", "ledger", "best")),
    *("shards/*.tmp", "teacher/shards/*.tmp"),
)


def tidy(stage: Path, console: Console) -> None:
    """Make the folder of a stage, or remove the leftovers of a kill from it.

    Raises RunError if a folder is in the place of a file, or a file in that of a folder.
    """
    _check_kind(stage, folder=True)
    stage.mkdir(exist_ok=True)
    for pattern in FILES:
        for path in stage.glob(pattern):
            if path.suffix != ".tmp":
                _check_kind(path, folder=False)
    for name in FOLDERS:
        _check_kind(stage / name, folder=True)
    clear(stage, console, [path for pattern in ASIDE for path in sorted(stage.glob(pattern))])


def clear(stage: Path, console: Console, found: Iterable[Path]) -> None:
    """Remove files and folders of `stage`, and say so in one line."""
    names: list[str] = []
    for path in found:
        remove(path)
        names.append(path.relative_to(stage).as_posix())
    if names:
        said = f"removed what was left of a kill: {', '.join(names)}"
        console.print(said, markup=False, soft_wrap=True)


def _check_kind(path: Path, folder: bool) -> None:
    if path.exists() and path.is_dir() != folder:
        kinds = ("file", "folder") if folder else ("folder", "file")
        raise RunError(
            f"{path} is a {kinds[0]}, and the run keeps a {kinds[1]} there: move it away"
        )


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
    tidy(stage, console)
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
