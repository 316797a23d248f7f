"""Leftovers of a kill in a stage's folder, and files in the place of folders or the reverse."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from grpo.errors import RunError
from grpo.outside.terminal.console import Console
from grpo.rundir.checkpoint import remove

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
