"""The commands of run.sh: take pieces, begin, tell, and hand over what was found."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from kit.bundle import bundle
from kit.keeper import command_of, environment, forget_failure, keep
from kit.pieces import DAMAGED, SHORT, WHOLE, KitError, Manifest, Piece, condition
from kit.work import Work, held, lock

DEFAULT = Path("~/grpo-gpu")
MIB = 1 << 20
LINES = 12  # of a log


def main() -> int:
    """Command line. Exit status: 0 good, 1 a piece was refused, 2 refused altogether."""
    own, _, runner = _split(sys.argv[1:])
    parser = argparse.ArgumentParser(prog="run.sh", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, folder in {"start": "pieces", "add": "pieces", "results": "out"}.items():
        command = commands.add_parser(name)
        command.add_argument(folder, type=Path)
        command.add_argument("work", type=Path, nargs="?", default=DEFAULT)
    for name in ("status", "keep"):
        commands.add_parser(name).add_argument("work", type=Path, nargs="?", default=DEFAULT)
    given = parser.parse_args(own)
    work = Work.at(given.work)
    try:
        if given.command == "keep":
            keep(work)
            return 0
        if given.command == "status":
            return status(work)
        if given.command == "results":
            for path in bundle(work, given.out):
                print(f"{path}  {path.stat().st_size / MIB:.1f} MiB")
            return 0
        if given.command == "start":
            start(work, given.pieces, runner)
        return add(work, given.pieces)
    except (KitError, OSError) as error:  # a full disk, a folder that cannot be written to
        print(f"run.sh: {error}", file=sys.stderr)
        return 2


def _split(arguments: Sequence[str]) -> tuple[list[str], str, list[str]]:
    """What stands before and behind "--"."""
    given = list(arguments)
    cut = given.index("--") if "--" in given else len(given)
    return given[:cut], "--", given[cut + 1 :]


def start(work: Work, folder: Path, runner: Sequence[str]) -> None:
    """Adopt the kit in `folder`, and keep what the runner is to be called with."""
    manifest = Manifest.read(folder)
    found = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if found != manifest.python:
        raise KitError(
            f"python3 is Python {found}, and the kit's packages are built for {manifest.python}: "
            "name such an interpreter, as in PYTHON=/path/to/python3 run.sh start ..."
        )
    work.root.mkdir(parents=True, exist_ok=True)
    with lock(work.root / "call.lock", wait=True):
        work.adopt(manifest)
        if runner or not (work.root / "settings.json").exists():
            work.settle(runner)
        for name in ("run.sh", "receive.pyz"):
            _copy(_here() / name, work.root / name)
        forget_failure(work)


def add(work: Work, folder: Path) -> int:
    """Take the whole pieces in `folder` and see that a keeper is there; 1 where one was refused."""
    if not folder.is_dir():
        raise KitError(f"{folder} is no folder")
    manifest = work.manifest
    with lock(work.root / "call.lock", wait=True):
        if (folder / "manifest.json").exists():
            work.adopt(Manifest.read(folder))
        refused = 0
        for piece in manifest.pieces:
            if piece not in work.arrived():
                refused += _take(work, folder, piece)
    begin(work)
    _missing(work)
    return 1 if refused else 0


def _take(work: Work, folder: Path, piece: Piece) -> int:
    """Copy a piece where it is whole, and say what became of it; 1 where it was refused."""
    source = folder / piece.name
    found = condition(source, piece)
    if found == WHOLE:
        _copy(source, work.pieces / piece.name)
        found = condition(work.pieces / piece.name, piece)
        if found == WHOLE:
            print(f"{piece.name}: taken")
            return 0
        (work.pieces / piece.name).unlink()
    if found == SHORT:
        size = source.stat().st_size
        print(
            f"{piece.name}: {size / MIB:.1f} of {piece.bytes / MIB:.1f} MiB are there; it waits: "
            f"run.sh add {folder} once it is whole"
        )
    if found == DAMAGED:
        print(
            f"{piece.name}: refused, its checksum is wrong: copy it again, then run.sh add {folder}"
        )
        return 1
    return 0


def begin(work: Work) -> None:
    """Start a keeper; one that finds another there ends at once."""
    with open(work.logs / "keeper.log", "ab") as log:
        subprocess.Popen(
            [sys.executable, str(work.root / "receive.pyz"), "keep", str(work.root)],
            cwd=work.root,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def status(work: Work) -> int:
    """Print the tables, what runs, the last lines of the logs, and what is missing."""
    manifest = work.manifest
    if work.can_run() and work.python.exists():
        command = [str(work.python), *command_of(work, "--table")]
        subprocess.run(command, cwd=work.project, env=environment(work), stderr=subprocess.STDOUT)
    free = shutil.disk_usage(work.root).free / 1e9
    print(f"\nkit of commit {manifest.commit}, in {work.root}, where {free:.1f} GB are free")
    print("unpacked: " + (", ".join(part.name for part in work.unpacked()) or "nothing yet"))
    print(f"keeper: {_alive(work, 'keeper')}; runner: {_alive(work, 'runner')}")
    for name in ("keeper", "runner"):
        path = work.logs / f"{name}.log"
        for line in path.read_text(errors="replace").splitlines()[-LINES:] if path.exists() else ():
            print(f"  {name}: {line}")
    _missing(work)
    return 0


def _missing(work: Work) -> None:
    """Say which pieces have not come, and what waits for them."""
    manifest, here, done = work.manifest, work.arrived(), work.unpacked()
    missing = [piece for piece in manifest.pieces if piece not in here]
    if missing:
        waiting = [
            part.name
            for part in manifest.parts
            if part not in done and any(piece in missing for piece in manifest.pieces_of(part))
        ]
        names = ", ".join(piece.name for piece in missing)
        print(f"missing: {names}; {', '.join(waiting)} wait for them")
    else:
        print("all pieces are here")


def _alive(work: Work, name: str) -> str:
    return "running" if held(work.root / f"{name}.lock") else "not running"


def _here() -> Path:
    """The folder of the file that Python runs."""
    return Path(sys.argv[0]).resolve().parent


def _copy(source: Path, target: Path) -> None:
    """Copy a file, whole or not at all."""
    if source.resolve() == target.resolve():
        return
    aside = target.with_name(f".{target.name}.part")
    shutil.copy(source, aside)
    os.replace(aside, target)
