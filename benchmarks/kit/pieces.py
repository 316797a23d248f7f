"""Pieces and parts: a kit is one stream of archives, cut into files that fit a transfer.

    | project | tests | trl |  smollm2  |     vllm      |   parts: a tar.xz each, most urgent first
    | piece-1                     | piece-2 | piece-3   |   pieces: files, each <= a limit

A part can be unpacked when every piece that it lies in is here; in which order they came does not
matter. The manifest has a SHA-256 of every piece, of every part, and of what is in a part. This
file runs on the other machine before anything is unpacked: it needs Python and nothing else.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import os
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
BLOCK = 1 << 20
WHOLE, SHORT, DAMAGED, ABSENT = "whole", "short", "damaged", "absent"


class KitError(Exception):
    """Something a user can mend, said in a sentence."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A file of the kit."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Part:
    """A tar.xz in the stream.

    start: its first byte in the stream. first: nothing can begin without it. holds: {name: sha256}
    of what went into it (wheels by file name). links: {path in the folder of models: path in it}.
    """

    name: str
    start: int
    bytes: int
    sha256: str
    first: bool
    holds: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What is in a kit, in the order of the stream.

    python: "3.12", whose packages these are. environment: variables that the runner gets.
    """

    commit: str
    python: str
    environment: Mapping[str, str]
    parts: Sequence[Part]
    pieces: Sequence[Piece]

    @property
    def identity(self) -> str:
        """A digest of everything in it: kits of two packs are not mixed."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Put it into a folder, whole or not at all."""
        text = json.dumps({**asdict(self), "sha256": self.identity}, indent=1)
        aside = folder / f".{MANIFEST}.part"
        aside.write_text(text + "\n")
        aside.replace(folder / MANIFEST)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """That of a folder. Raises KitError where it is missing or damaged."""
        path = folder / MANIFEST
        if not path.exists():
            raise KitError(
                f"{path} is missing: copy {MANIFEST} and run.sh together with the pieces"
            )
        try:
            found = json.loads(path.read_text())
            said = found.pop("sha256")
            parts = [Part(**part) for part in found.pop("parts")]
            pieces = [Piece(**piece) for piece in found.pop("pieces")]
            manifest = cls(**found, parts=parts, pieces=pieces)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise KitError(f"{path} is damaged: copy it again") from error
        if manifest.identity != said:
            raise KitError(f"{path} is damaged: copy it again")
        return manifest

    def pieces_of(self, part: Part) -> list[Piece]:
        """The pieces that a part lies in."""
        found = []
        start = 0
        for piece in self.pieces:
            if start < part.start + part.bytes and part.start < start + piece.bytes:
                found.append(piece)
            start += piece.bytes
        return found

    def start_of(self, piece: Piece) -> int:
        """Its first byte in the stream."""
        return sum(each.bytes for each in self.pieces[: self.pieces.index(piece)])


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cut(archives: Iterable[Path], out: Path, sizes: Iterator[int]) -> list[Piece]:
    """Write the stream of `archives` as piece-1, piece-2, ... of at most `sizes` bytes."""
    stream = b"".join(archive.read_bytes() for archive in archives)
    pieces: list[Piece] = []
    start = 0
    while start < len(stream):
        block = stream[start : start + next(sizes)]
        name = f"piece-{len(pieces) + 1}"
        (out / name).write_bytes(block)
        pieces.append(Piece(name=name, bytes=len(block), sha256=hashlib.sha256(block).hexdigest()))
        start += len(block)
    return pieces


def condition(path: Path, piece: Piece) -> str:
    """Whether a file is this piece: WHOLE, SHORT (still being copied), DAMAGED or ABSENT."""
    if not path.is_file():
        return ABSENT
    size = path.stat().st_size
    if size < piece.bytes:
        return SHORT
    return WHOLE if size == piece.bytes and digest(path) == piece.sha256 else DAMAGED


class Stream(io.RawIOBase):
    """A part as a file, read from its pieces; `sha256` is that of what was read."""

    def __init__(self, manifest: Manifest, part: Part, folder: Path) -> None:
        super().__init__()
        self.sha256 = hashlib.sha256()
        self._left = part.bytes
        self._skip = 0
        self._files: list[Path] = []
        for piece in manifest.pieces_of(part):
            if not self._files:
                self._skip = part.start - manifest.start_of(piece)
            self._files.append(folder / piece.name)
        self._file: io.BufferedReader | None = None

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fill a buffer with what comes next; 0 at the end."""
        block = self._next(min(len(buffer), self._left))
        buffer[: len(block)] = block
        self._left -= len(block)
        self.sha256.update(block)
        return len(block)

    def _next(self, wanted: int) -> bytes:
        while wanted:
            if self._file is None:
                if not self._files:
                    return b""
                self._file = open(self._files.pop(0), "rb")  # noqa: SIM115
                self._file.seek(self._skip)
                self._skip = 0
            if block := self._file.read(wanted):
                return block
            self._file.close()
            self._file = None
        return b""

    def close(self) -> None:
        """Close what is open."""
        if self._file is not None:
            self._file.close()
        super().close()


def unpack(manifest: Manifest, part: Part, pieces: Path, into: Path) -> None:
    """Unpack a part to the folder `into`, which is there whole or not at all.

    Raises KitError where the pieces do not give what was packed.
    """
    aside = into.with_name(f".{into.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    again = f"remove {pieces}, and copy and add its pieces again"
    try:
        with Stream(manifest, part, pieces) as stream:
            reader = io.BufferedReader(stream, BLOCK)
            with tarfile.open(fileobj=reader, mode="r|xz") as tar:
                tar.extractall(aside, filter="data")
            while reader.read(BLOCK):
                pass
            found = stream.sha256.hexdigest()
    except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise KitError(f"the part {part.name!r} cannot be unpacked: {error}") from error
        raise KitError(f"the part {part.name!r} is damaged: {again}") from error
    if found != part.sha256:
        raise KitError(f"the part {part.name!r} is damaged: {again}")
    os.replace(aside, into)
