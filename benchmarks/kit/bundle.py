"""What is brought back: at most eight files of at most 16 MiB each, in one folder."""

from __future__ import annotations

import contextlib
import io
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path

from kit.pieces import KitError
from kit.work import Work

MIB = 1 << 20
FILES, LARGEST, TOGETHER = 8, 16 * MIB, 60 * MIB
LEFT = "left-behind.txt"
TRACES = (".gz", ".pickle", ".nsys-rep", ".ncu-rep")
MODELS = (".safetensors", ".bin", ".pt", ".gguf")  # these stay there


def bundle(work: Work, out: Path) -> list[Path]:
    """Copy results, page, logs, state and traces into `out`, in place of what an earlier call left.

    gpu.json and gpu.md as they are; logs.tar.xz; state.tar.xz; traces.tar.gz, cut as .00, .01 ...
    for `cat traces.tar.gz.* | tar xz`. Models stay where they are, and what does not fit is named
    in left-behind.txt.
    Raises KitError where `out` has files of something else.
    """
    out.mkdir(parents=True, exist_ok=True)
    stems = ("gpu.json", "gpu.md", "logs.tar.xz", "state.tar.xz", "traces.tar.gz", LEFT)
    for path in out.iterdir():
        if not path.name.startswith(stems):
            raise KitError(f"{path} is not of an earlier `results`: name an empty folder")
        path.unlink()
    written: list[Path] = []
    for source in _tables(work):
        if source.exists():
            shutil.copyfile(source, out / source.name)
            written.append(out / source.name)
    found = [path for path in sorted(work.run.rglob("*")) if path.is_file()]
    state = [path for path in found if work.run / "state" in path.parents]
    traces = [path for path in found if _is_trace(path, work)]
    others = [path for path in found if path not in state and path not in traces]
    logs = [path for path in others if path.suffix not in MODELS]
    logs += sorted(work.logs.glob("*.log"))
    left: list[str] = []
    for name, files in {"logs.tar.xz": logs, "state.tar.xz": state}.items():
        written += _cut(_fitting(work, files, left), out / name, 1, left)
    room = min(
        FILES - 1 - len(written), (TOGETHER - sum(p.stat().st_size for p in written)) // LARGEST
    )
    while traces and len(packed := _tar(work, traces, "gz")) > room * LARGEST:
        left.append(f"{traces.pop().relative_to(work.root)}")
    if traces:
        written += _cut(packed, out / "traces.tar.gz", room, left)
    if left:
        (out / LEFT).write_text("".join(f"{name}\n" for name in left))
        written.append(out / LEFT)
    return written


def _tables(work: Work) -> tuple[Path, ...]:
    """Where the runner leaves results and page: those of a card are in the project."""
    real = work.project / "benchmarks" / "results" / "gpu.json"
    rehearsed = work.run / "gpu.json"
    return (rehearsed if rehearsed.exists() else real, work.project / "docs" / "gpu.md")


def _is_trace(path: Path, work: Work) -> bool:
    return "traces" in path.relative_to(work.run).parts or path.name.endswith(TRACES)


def _fitting(work: Work, files: list[Path], left: list[str]) -> bytes:
    """Pack the smaller ones of some files, as many as fit into one; the others go to `left`."""
    kept = sorted(files, key=_size)
    while len(packed := _tar(work, sorted(kept), "xz")) > LARGEST:
        left.append(f"{kept.pop().relative_to(work.root)}")
    return packed


def _size(path: Path) -> int:
    """Bytes of a file; 0 of one that has gone."""
    return path.stat().st_size if path.exists() else 0


def _tar(work: Work, files: Iterable[Path], how: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=f"w:{how}", dereference=True) as tar:
        for path in files:
            # the runner goes on: what it has removed, or writes right now, is in the next `results`
            with contextlib.suppress(FileNotFoundError):
                content = path.read_bytes()
                info = tar.gettarinfo(path, str(path.relative_to(work.root)))
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def _cut(packed: bytes, out: Path, most: int, left: list[str]) -> list[Path]:
    """Write in files of at most LARGEST bytes; one that needs more than `most` is left behind."""
    if len(packed) <= LARGEST:
        out.write_bytes(packed)
        return [out]
    if len(packed) > most * LARGEST:
        left.append(out.name)
        return []
    names = []
    for number, start in enumerate(range(0, len(packed), LARGEST)):
        names.append(out.with_name(f"{out.name}.{number:02d}"))
        names[-1].write_bytes(packed[start : start + LARGEST])
    return names
