"""Size and hash of files.

The hash is SHA-256 of a file, or, above 64 MiB, of the hashes of its pieces of 64 MiB, so that
several threads can read one file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

PIECE = 64 << 20  # bytes that one thread hashes
BLOCK = 1 << 20  # bytes read at once
THREADS = min(8, os.cpu_count() or 1)  # more do not make disk or memory faster

Known = dict[str, list[Any]]  # name below a folder, with / -> [bytes, hash]


def known(root: Path, paths: Iterable[Path]) -> Known:
    """Size and hash of files below `root`, by their names."""
    files = list(paths)
    sizes = [path.stat().st_size for path in files]
    hashes = hashes_of(list(zip(files, sizes, strict=True)))
    names = [path.relative_to(root).as_posix() for path in files]
    return {name: [size, h] for name, size, h in zip(names, sizes, hashes, strict=True)}


def start_of(path: Path, size: int) -> list[Any]:
    """[bytes, hash] of the first `size` bytes of a file that grows."""
    return [size, hashes_of([(path, size)])[0]]


def of_text(text: str) -> list[Any]:
    """[bytes, hash] of a small file with this text."""
    content = text.encode()
    return [len(content), hashlib.sha256(content).hexdigest()]


def hashes_of(files: list[tuple[Path, int]]) -> list[str]:
    """Hashes of the first bytes, as many as the pair says, of each (file, bytes)."""
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
