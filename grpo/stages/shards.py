"""The finished work of a long sampling job, as JSONL shards that exist whole or not at all.

A shard is written aside, fsynced and renamed, so a kill loses only the shard being written.
`progress.json` has the hash of every shard, and of the metrics up to it. A job continues after the
last shard before which nothing is missing or changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo.errors import RunError
from grpo.outside.files import durable, hashes, manifest
from grpo.outside.files.hashes import Known
from grpo.outside.files.manifest import Damage
from grpo.rundir import checkpoint

PROGRESS = "progress.json"
MADE_OF = "made_of.json"


@dataclass(frozen=True, kw_only=True)
class SamplingJob:
    """The shards of a sampling job in `work/shards`, and what was made of them.

    shards: the hash of each, in order. logs: the hash of the metrics up to each. data: hashes of
    the files made of all shards.
    """

    work: Path
    shards: list[list[Any]] = field(default_factory=list[list[Any]])
    logs: list[list[Any]] = field(default_factory=list[list[Any]])
    data: Known = field(default_factory=Known)

    @classmethod
    def of(cls, work: Path) -> SamplingJob:
        """The job in a folder. Raises RunError where its progress cannot be read."""
        if not (work / PROGRESS).exists() and not any((work / "shards").glob("*.jsonl")):
            return cls(work=work)
        try:
            return cls(work=work, **manifest.read_sealed(work / PROGRESS, work))
        except Damage as damage:
            raise RunError(
                f"{work}: {damage}, and it says which shards are whole; put it back from a copy, "
                f"or delete {work / 'shards'} and {PROGRESS} to sample anew"
            ) from damage

    def path(self, number: int) -> Path:
        """Where shard `number` (from 0) is."""
        return self.work / "shards" / f"{number:05d}.jsonl"

    def whole(self, say: Callable[[str], None] = lambda _: None) -> int:
        """How many shards, from the first on, are unchanged, and the metrics up to them."""
        for number, (shard, log) in enumerate(zip(self.shards, self.logs, strict=True)):
            try:
                name = self.path(number).relative_to(self.work).as_posix()
                manifest.check(self.work, {name: shard})
                manifest.check(self.work, {checkpoint.LOG: log}, growing=checkpoint.LOG)
            except Damage as damage:
                say(f"{damage}; sampling again from shard {number:05d} on")
                return number
        return len(self.shards)

    def rewind(self, done: int) -> None:
        """Forget all but the first `done` shards, and cut the metrics back to them."""
        del self.shards[done:], self.logs[done:]
        self.data.clear()
        checkpoint.rewind(self.work / checkpoint.LOG, self.logs[-1][0] if done else 0)
        self._write()

    def add(self, lines: Iterable[Any], log: Path, size: int) -> None:
        """Write the next shard. size: bytes of the metrics, those of this shard included."""
        path = self.path(len(self.shards))
        durable.write_lines(path, lines)
        self.shards.append(hashes.start_of(path, path.stat().st_size))
        self.logs.append(hashes.start_of(log, size))
        self._write()

    def left(self, data: Path) -> None:
        """Note that the folder `data` was made of the shards."""
        self.data.update(hashes.known(data, (p for p in data.rglob("*") if p.is_file())))
        self._write()

    def complete(self, data: Path, say: Callable[[str], None]) -> bool:
        """Whether the folder `data` and everything it was made of exist and are unchanged."""
        if not (data.is_dir() and self.data and self.whole() == len(self.shards)):
            return False
        try:
            manifest.read_sealed(self.work / "shards" / MADE_OF, self.work)
            manifest.check(data, self.data)
        except Damage as damage:
            say(f"of {data.name}/: {damage}; making {data.name}/ again")
            return False
        return True

    def _write(self) -> None:
        told = {"shards": self.shards, "logs": self.logs, "data": self.data}
        manifest.write_sealed(self.work / PROGRESS, told)


def read_lines(path: Path) -> Iterator[Any]:
    """The values of a JSONL file."""
    with open(path, encoding="utf-8", newline="\n") as file:
        for line in file:
            yield json.loads(line)
