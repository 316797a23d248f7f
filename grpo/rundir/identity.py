"""Hashes of tasks, files, folders and code, which tell later whether one of them has changed.

Rows are hashed one by one: what the model is asked and what the rewards get, not how a file spells
it. A file of more than WHOLE bytes is hashed by its size, its ends and blocks evenly between them:
other weights differ everywhere, and 15 GB are not read at every start. So a single flipped bit in
the middle of such a file goes unnoticed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo.errors.places import is_users
from grpo.outside.code.fresh import imports

DIGEST = 8  # bytes of a row's hash
WHOLE = 32 << 20
END = 1 << 20
BLOCK = 64 << 10
BLOCKS = 64
# what transformers and reward models read of a folder; a card or a log beside it is no change
READ = (".json", ".safetensors", ".bin", ".model", ".txt", ".jinja", ".py", ".pt", ".tiktoken")
REVISION = "revision"  # stands for the files of a model on the hub: its commit
_ADDRESS = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")


@dataclass(frozen=True, kw_only=True)
class HashedRows:
    """Rows in their order, of a source of `size` (None: endless), all or some of them hashed."""

    title: str  # as a message names them
    digests: Sequence[bytes]
    size: int | None
    shown: Callable[[int], str]  # the beginning of a row, by its place among the digests

    @property
    def sha256(self) -> str:
        """Of all of them."""
        return hashlib.sha256(b"".join(self.digests)).hexdigest()


def row_digest(*parts: Any) -> bytes:
    """Of a prompt, an answer, columns: anything that JSON can hold, the rest by its type."""
    text = json.dumps(parts, sort_keys=True, default=lambda value: f"<{type(value).__name__}>")
    return hashlib.blake2b(text.encode(), digest_size=DIGEST).digest()


def difference(before: Sequence[bytes], now: HashedRows) -> str:
    """How rows that differ differ: how many are gone, new or in another place, and the first."""
    old, new = Counter(before), Counter(now.digests)
    gone, more = (old - new).total(), (new - old).total()
    pairs = enumerate(zip(before, now.digests, strict=False))
    moved = [place for place, (a, b) in pairs if a != b]
    first = moved[0] if moved else min(len(before), len(now.digests))
    if not gone and not more:
        what = f"the same {len(before)} rows in another order"
    elif gone == more == len(moved):
        what = f"{gone} of {len(before)} rows changed"
    else:
        counts = ((gone, "removed"), (more, "added"))
        what = f"{' and '.join(f'{n} {how}' for n, how in counts if n)} of {len(before)} rows"
    said = f", now {now.shown(first)!r}" if first < len(now.digests) else ", now missing"
    return f"{what}; the first that differs is row {first + 1}{said}"


def files_digests(path: Path) -> dict[str, str]:
    """name -> digest of a file, or of the files in a folder that a model is read from."""
    if path.is_file():
        return {path.name: _file_digest(path)}
    inside = [*path.glob("*"), *path.glob("additional_chat_templates/*")]
    kept = [file for file in sorted(inside) if file.suffix in READ and file.is_file()]
    return {str(file.relative_to(path)): _file_digest(file) for file in kept}


def code_digests(address: str) -> dict[str, str]:
    """name -> digest of the user's files behind `file.py:attr` or `package.module:attr`.

    Those are the file itself, and what it imports from its folder or its package. {} for what is
    installed and for anything that is no such address.
    """
    where, _, _ = address.rpartition(":")
    if where.endswith(".py"):
        file = Path(where).expanduser().resolve()
        top = file.parent
    elif _ADDRESS.match(address):
        found = _find(where.partition(".")[0])
        if found is None:
            return {}
        top = found.parent.parent if found.name == "__init__.py" else found.parent
        file = _module(top, where)
    else:
        return {}
    files = _imported(file, top) if file is not None else set()
    return {os.path.relpath(file, top): _file_digest(file) for file in sorted(files)}


def changed_files(before: dict[str, str], now: dict[str, str]) -> str:
    """Which of the files are others: "a.py changed, b.py added"; "" where none is."""
    names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    said = [
        f"{name} {'removed' if name not in now else 'added' if name not in before else 'changed'}"
        for name in names
    ]
    return ", ".join(said[:3]) + (f" and {len(said) - 3} more" if len(said) > 3 else "")


def _file_digest(file: Path) -> str:
    size = file.stat().st_size
    digest = hashlib.blake2b(f"{size}\0".encode(), digest_size=16)
    with file.open("rb") as stream:
        if size <= WHOLE:
            digest.update(stream.read())
            return digest.hexdigest()
        digest.update(stream.read(END))
        for number in range(BLOCKS):
            stream.seek(END + number * (size - 2 * END) // BLOCKS)
            digest.update(stream.read(BLOCK))
        stream.seek(-END, os.SEEK_END)
        digest.update(stream.read(END))
    return digest.hexdigest()


def _imported(file: Path, top: Path) -> set[Path]:
    """`file` and the files below `top` that it imports, and those that these import."""
    found: set[Path] = set()
    waiting = [file]
    while waiting:
        one = waiting.pop()
        if one in found or not is_users(str(one)) or not one.is_file():
            continue
        found.add(one)
        package = ".".join(one.relative_to(top).parts[:-1])
        waiting += [m for m in (_module(top, name) for name in imports(one, package)) if m]
    return found


def _module(top: Path, name: str) -> Path | None:
    place = top.joinpath(*name.split(".")) if name else None
    if place is None:
        return None
    files = (place.with_name(f"{place.name}.py"), place / "__init__.py")
    return next((file for file in files if file.is_file()), None)


def _find(package: str) -> Path | None:
    """The file of a top-level package or module of the user's own, which is not imported."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    origin = None if spec is None else spec.origin
    return Path(origin) if origin and origin.endswith(".py") and is_users(origin) else None
