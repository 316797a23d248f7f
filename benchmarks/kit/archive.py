"""Archives that come out the same, byte for byte, whenever the same files go in."""

from __future__ import annotations

import lzma
import tarfile
from collections.abc import Iterable
from pathlib import Path

# A quarter of what comes out is unpacked machine code, for which the x86 filter saves 3%.
FILTERS = [
    {"id": lzma.FILTER_X86},
    {"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 64 << 20},
]


QUICK = [{"id": lzma.FILTER_LZMA2, "preset": 0}]  # for tests


def archive(
    files: Iterable[tuple[Path, str]], out: Path, filters: list[dict[str, int]] = FILTERS
) -> None:
    """Write a tar.xz of (file or link, its path inside), whole or not at all."""
    aside = out.with_name(f".{out.name}.part")
    aside.parent.mkdir(parents=True, exist_ok=True)
    with (
        lzma.open(aside, "wb", filters=filters) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path, name in sorted(files, key=lambda each: each[1]):
            tar.add(path, name, recursive=False, filter=_plain)
    aside.replace(out)


def folder(path: Path) -> list[tuple[Path, str]]:
    """Every file and link below a folder, without what Python compiles."""
    return [
        (file, str(file.relative_to(path)))
        for file in path.rglob("*")
        if (file.is_file() or file.is_symlink()) and "__pycache__" not in file.parts
    ]


def _plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = info.mtime = 0
    info.uname = info.gname = ""
    info.mode = 0o755 if info.mode & 0o100 else 0o644
    return info
