"""What was written, known by size and hash, so that what is read again is what was written.

    {"files": {name: [bytes, hash]}, …, "seal": hash of the rest}         manifest.json of a folder

The hash is SHA-256 of a file, or, above 64 MiB, of the hashes of its pieces of 64 MiB: several
threads read one file, and they do so while the disk is still being waited for.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

NAME = "manifest.json"
PIECE = 64 << 20  # bytes that one thread hashes
BLOCK = 1 << 20  # bytes read at once
WAITING = 16  # files whose way to the disk is waited for at once
THREADS = min(8, os.cpu_count() or 1)  # a disk and memory have no use for more

Known = dict[str, list[Any]]  # name below a folder, with / -> [bytes, hash]


class Damage(Exception):
    """A file that is not what was written, in words; who reads it says what to do about it."""


def known(root: Path, paths: Iterable[Path]) -> Known:
    """Size and hash of files below `root`, by their names."""
    files = list(paths)
    sizes = [path.stat().st_size for path in files]
    hashes = _hashes(list(zip(files, sizes, strict=True)))
    names = [path.relative_to(root).as_posix() for path in files]
    return {name: [size, h] for name, size, h in zip(names, sizes, hashes, strict=True)}


def start_of(path: Path, size: int) -> list[Any]:
    """[bytes, hash] of the first `size` bytes of a file that grows."""
    return [size, _hashes([(path, size)])[0]]


def of_text(text: str) -> list[Any]:
    """[bytes, hash] of a small file with this text."""
    content = text.encode()
    return [len(content), hashlib.sha256(content).hexdigest()]


def check(root: Path, files: Mapping[str, Any], growing: str = "") -> None:
    """Compare files below `root` with what is known of them. Raises Damage that names one.

    growing: the file that may have become longer.
    """
    found: list[tuple[Path, int]] = []
    for name, (size, _) in files.items():
        there = _size(root, name)
        if there < size or (there > size and name != growing):
            raise Damage(f"{name} has {there:,} bytes instead of {size:,}")
        found.append((root / name, size))
    try:
        hashes = _hashes(found)
    except OSError as error:
        place = Path(error.filename or root).relative_to(root)
        raise Damage(f"{place} cannot be read ({error.strerror})") from error
    for (name, (_, wanted)), is_now in zip(files.items(), hashes, strict=True):
        if is_now != wanted:
            raise Damage(f"{name} has other content than was written")


def check_sealed(folder: Path, **facts: Any) -> None:
    """Compare a folder that `seal` made with its manifest. Raises Damage.

    Files that were not there count too, hidden ones apart: libraries load what they find by name.
    """
    files = sealed_files(folder, **facts)
    check(folder, files)
    others = {name for name in _names(folder) if not name.split("/")[-1].startswith(".")}
    others -= {NAME, *files}
    if others:
        raise Damage(f"{min(others)} was put there by something else")


def sealed_files(folder: Path, **facts: Any) -> Known:
    """What the manifest of a folder says of its files, if it is of this one. Raises Damage."""
    said = read_sealed(folder / NAME, folder)
    for name, value in facts.items():
        if said.get(name) != value:
            raise Damage(f"{NAME} is that of {said.get(name)}")
    return said["files"]


def seal(folder: Path, **facts: Any) -> None:
    """Write the manifest of a new folder, and make its files durable, with the umask's mode.

    Hashes are computed while the disk is waited for. facts: what `check_sealed` is to find again.
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
    """Weights with the mode of any new file there; safetensors writes for the owner alone."""
    probe = folder / ".mode.tmp"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in folder.rglob("*.safetensors"):
        os.chmod(path, mode)


def write_sealed(path: Path, data: Mapping[str, Any]) -> None:
    """A durable JSON object that says itself whether it is whole."""
    plain = json.loads(json.dumps(data))  # as it will be read, keys included
    write_text(path, json.dumps({**plain, "seal": _seal(path, plain)}, sort_keys=True))


def read_sealed(path: Path, root: Path) -> dict[str, Any]:
    """What `write_sealed` wrote. Raises Damage, which names the file as seen from `root`."""
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


def write_text(path: Path, text: str) -> None:
    """A file that is durable, and there whole or not at all."""
    aside = path.with_suffix(".tmp")
    with open(aside, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Make a file or folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size(root: Path, name: str) -> int:
    """Bytes of a file. Raises Damage where there is none."""
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
    """Hash of a JSON object and of the name of its file: one is not taken for another."""
    return hashlib.sha256(f"{path.name}\0{json.dumps(data, sort_keys=True)}".encode()).hexdigest()


def _hashes(files: list[tuple[Path, int]]) -> list[str]:
    """Of the first bytes of each file, as many as are asked for."""
    with ThreadPoolExecutor(THREADS) as pool:
        pieces: list[list[Future[bytes]]] = [
            [
                pool.submit(_piece, path, start, min(PIECE, size - start))
                for start in range(0, size, PIECE) or (0,)
            ]
            for path, size in files
        ]
        found = [[piece.result() for piece in of_file] for of_file in pieces]
    return [(p[0] if len(p) == 1 else hashlib.sha256(b"".join(p)).digest()).hex() for p in found]


def _piece(path: Path, start: int, size: int) -> bytes:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        while size > 0 and (block := file.read(min(BLOCK, size))):
            digest.update(block)
            size -= len(block)
    return digest.digest()
