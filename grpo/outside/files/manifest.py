"""Size and hash of files that were written, so that a damaged one is noticed when it is read.

{"files": {name: [bytes, hash]}, …, "seal": hash of the rest}         manifest.json of a folder
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from grpo.outside.files.durable import sync, write_text
from grpo.outside.files.hashes import Known, hashes_of, known

NAME = "manifest.json"
WAITING = 16  # files that are synced at the same time


class Damage(Exception):
    """A file that is not what was written, in words. The caller adds what to do about it."""


def check(root: Path, files: Mapping[str, Any], growing: str = "") -> None:
    """Compare files below `root` with their known sizes and hashes. Raises Damage that names one.

    growing: the file that may have become longer.
    """
    found: list[tuple[Path, int]] = []
    for name, (size, _) in files.items():
        there = _size(root, name)
        if there < size or (there > size and name != growing):
            raise Damage(f"{name} has {there:,} bytes instead of {size:,}")
        found.append((root / name, size))
    try:
        hashes = hashes_of(found)
    except OSError as error:
        place = Path(error.filename or root).relative_to(root)
        raise Damage(f"{place} cannot be read ({error.strerror})") from error
    for (name, (_, wanted)), is_now in zip(files.items(), hashes, strict=True):
        if is_now != wanted:
            raise Damage(f"{name} has other content than was written")


def check_sealed(folder: Path, **facts: Any) -> None:
    """Compare a folder that `seal` made with its manifest. Raises Damage.

    New files are damage too, except hidden ones: libraries load what they find by name.
    """
    files = sealed_files(folder, **facts)
    check(folder, files)
    others = {name for name in _names(folder) if not name.split("/")[-1].startswith(".")}
    others -= {NAME, *files}
    if others:
        raise Damage(f"{min(others)} was put there by something else")


def sealed_files(folder: Path, **facts: Any) -> Known:
    """The files that a folder's manifest lists. Raises Damage if it has other facts."""
    said = read_sealed(folder / NAME, folder)
    for name, value in facts.items():
        if said.get(name) != value:
            raise Damage(f"{NAME} is that of {said.get(name)}")
    return said["files"]


def seal(folder: Path, **facts: Any) -> None:
    """Write the manifest of a new folder, and make its files durable, with the umask's mode.

    Files are hashed while others are synced. facts: what `check_sealed` compares again.
    """
    names = sorted(_names(folder) - {NAME})
    give_mode(folder)
    paths = [folder / name for name in names]
    with ThreadPoolExecutor(WAITING) as disk:
        waiting = [disk.submit(sync, path) for path in paths]
        files = known(folder, paths)
        for one in waiting:
            one.result()
    write_sealed(folder / NAME, {**facts, "files": files})
    for place in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        sync(place)


def give_mode(folder: Path) -> None:
    """Give weights the mode of any new file: safetensors makes them readable for the owner only."""
    probe = folder / ".mode.tmp"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in folder.rglob("*.safetensors"):
        os.chmod(path, mode)


def write_sealed(path: Path, data: Mapping[str, Any]) -> None:
    """Write a durable JSON object with its own hash in it."""
    plain = json.loads(json.dumps(data))  # as it will be read, keys included
    write_text(path, json.dumps({**plain, "seal": _seal(path, plain)}, sort_keys=True))


def read_sealed(path: Path, root: Path) -> dict[str, Any]:
    """The object that `write_sealed` wrote. Raises Damage, which names it relative to `root`."""
    name = path.relative_to(root).as_posix()
    _size(root, name)
    try:
        data = json.loads(path.read_bytes().decode())
        sealed = data.pop("seal")
    except OSError as error:
        raise Damage(f"{name} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError, AttributeError, TypeError, LookupError) as error:
        raise Damage(f"{name} is not the JSON that was written") from error
    if _seal(path, data) != sealed:
        raise Damage(f"{name} has other content than was written")
    return data


def _size(root: Path, name: str) -> int:
    """Bytes of a file. Raises Damage if there is none."""
    path = root / name
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Damage(f"{name} is gone") from error
    except OSError as error:
        raise Damage(f"{name} cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(found.st_mode):
        raise Damage(f"{name} is no longer a file")
    return found.st_size


def _names(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}


def _seal(path: Path, data: Mapping[str, Any]) -> str:
    """Hash of a JSON object and of its file's name, so that no file passes for another."""
    return hashlib.sha256(f"{path.name}\0{json.dumps(data, sort_keys=True)}".encode()).hexdigest()
