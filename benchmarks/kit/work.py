"""The folder on the other machine: what came, what is unpacked, and the Python that sees it.

WORK/manifest.json    the kit, of the first call
WORK/pieces/          pieces that are whole
WORK/parts/NAME/      what is unpacked; there whole or not at all
WORK/env/             a Python that sees the parts and the machine's own packages
WORK/assets/          models
WORK/logs/            what the keeper and the runner say
WORK/run/             the runner's state, logs and traces
WORK/settings.json    what the runner is called with
"""

from __future__ import annotations

import fcntl
import json
import site
import sys
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from kit.pieces import MANIFEST, KitError, Manifest, Part, Piece, condition

# Not `#!{python}`, which the kernel ends at a space: the shell calls Python on this same file.
ENTRY = """#!/bin/sh
'''exec' "{python}" "$0" "$@"
' '''
import sys

from grpo.cli import main

sys.exit(main())
"""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Paths below one folder, and what can be said from them alone."""

    root: Path
    pieces: Path
    parts: Path
    project: Path
    env: Path
    assets: Path
    logs: Path
    run: Path

    @classmethod
    def at(cls, root: Path) -> Work:
        """The folder `root`."""
        root = root.expanduser().resolve()
        names = ("pieces", "parts", "env", "assets", "logs", "run")
        below = {name: root / name for name in names}
        return cls(root=root, project=root / "parts" / "project", **below)

    @property
    def manifest(self) -> Manifest:
        """The kit that this folder belongs to. Raises KitError where nothing was started."""
        if not (self.root / MANIFEST).exists():
            raise KitError(f"nothing was started in {self.root}: run.sh start PIECES_DIR [WORK]")
        return Manifest.read(self.root)

    def adopt(self, manifest: Manifest) -> None:
        """Take the kit's manifest, or raise KitError where the folder belongs to another kit."""
        for folder in (self.pieces, self.parts, self.assets, self.logs, self.run):
            folder.mkdir(parents=True, exist_ok=True)
        if not (self.root / MANIFEST).exists():
            manifest.write(self.root)
        elif self.manifest.identity != manifest.identity:
            raise KitError(
                f"{self.root} belongs to the kit of commit {self.manifest.commit[:10]}, and these "
                f"pieces are of another, of commit {manifest.commit[:10]}: name another folder"
            )

    def arrived(self) -> list[Piece]:
        """Pieces that are here, whole: only such are put into `pieces`."""
        return [piece for piece in self.manifest.pieces if (self.pieces / piece.name).exists()]

    def waiting(self, folder: Path) -> dict[str, str]:
        """{piece: its condition in `folder`} of those that are not here yet."""
        here = self.arrived()
        return {
            piece.name: condition(folder / piece.name, piece)
            for piece in self.manifest.pieces
            if piece not in here
        }

    def unpacked(self) -> list[Part]:
        """Parts that are unpacked."""
        return [part for part in self.manifest.parts if (self.parts / part.name).exists()]

    def ready(self) -> list[Part]:
        """Parts that can be unpacked now: all of their pieces are here."""
        manifest, here, done = self.manifest, self.arrived(), self.unpacked()
        return [
            part
            for part in manifest.parts
            if part not in done and all(piece in here for piece in manifest.pieces_of(part))
        ]

    def can_run(self) -> bool:
        """Whether everything is unpacked without which nothing begins."""
        done = self.unpacked()
        return all(part in done for part in self.manifest.parts if part.first)

    @property
    def arguments(self) -> list[str]:
        """What the runner is called with."""
        path = self.root / "settings.json"
        return json.loads(path.read_text()) if path.exists() else []

    def settle(self, arguments: Sequence[str]) -> None:
        """Keep what the runner is to be called with."""
        aside = self.root / ".settings.json.part"
        aside.write_text(json.dumps(list(arguments)))
        aside.replace(self.root / "settings.json")

    @property
    def python(self) -> Path:
        """The Python that sees the parts."""
        return self.env / "bin" / "python"

    def make_env(self) -> None:
        """Make that Python: an environment over the machine's own packages.

        Not PYTHONPATH: processes that leave the surroundings out (`python -I`, as those that score
        code are) would not find the packages.
        """
        if (self.env / "whole").exists():
            return
        venv.EnvBuilder(symlinks=True, with_pip=False, clear=True).create(self.env)
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        lines = [str(self.parts / part.name) for part in self.manifest.parts]
        lines += [f"import site; site.addsitedir({path!r})" for path in site.getsitepackages()]
        packages = self.env / "lib" / version / "site-packages"
        (packages / "kit.pth").write_text("\n".join(lines) + "\n")
        entry = self.env / "bin" / "grpo"
        entry.write_text(ENTRY.format(python=self.python))
        entry.chmod(0o755)
        (self.env / "whole").touch()

    def link_models(self) -> None:
        """Put links to what models are unpacked where the runner looks for models."""
        for part in self.unpacked():
            for name, inside in part.links.items():
                link = self.assets / name
                if not link.exists():
                    link.symlink_to(self.parts / part.name / inside)


@contextmanager
def lock(path: Path, *, wait: bool) -> Iterator[IO[str] | None]:
    """Hold the kernel's lock on a file; None where another process has it and `wait` is False."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
            return
        yield file


def held(path: Path) -> bool:
    """Whether a process has the lock on a file."""
    if not path.exists():
        return False
    with lock(path, wait=False) as got:
        return got is None
