"""Packages that the machine lacks: fetched once by pip, then unpacked from a cache."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kit.pieces import KitError

HERE = Path(__file__).resolve().parent
NEEDS = HERE / "needs"
_LINE = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>\S+)\s+# (?P<reason>\S.*)")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine that a kit is for, as machine.toml has it.

    packages: {name: version} it has, "" where the version is not known. left_out: {part: {pattern
    of files: why they stay behind}}.
    """

    python: str
    platforms: Sequence[str]
    packages: Mapping[str, str]
    environment: Mapping[str, str]
    left_out: Mapping[str, Mapping[str, str]]

    @classmethod
    def read(cls) -> Machine:
        """From machine.toml."""
        return cls(**tomllib.loads((HERE / "machine.toml").read_text()))


@dataclass(frozen=True, kw_only=True)
class Need:
    """A package in one exact version, and what imports it."""

    name: str
    version: str
    reason: str


def canonical(name: str) -> str:
    """A package's name as the index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def needs(part: str) -> list[Need]:
    """Those of a part. Raises KitError on a line without exact version or reason."""
    found = []
    for line in (NEEDS / f"{part}.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            match = _LINE.fullmatch(line)
            if match is None:
                raise KitError(
                    f"needs/{part}.txt: {line!r} is not 'name==version  # who imports it'"
                )
            found.append(Need(**match.groupdict()))
    return found


def fetched(wanted: Sequence[Need], cache: Path, machine: Machine) -> list[Path]:
    """Their wheels in `cache`; what is not there yet is downloaded by pip's own configuration."""
    cache.mkdir(parents=True, exist_ok=True)
    open_ = [need for need in wanted if _wheel(need, cache) is None]
    if open_:
        platforms = [each for name in machine.platforms for each in ("--platform", name)]
        _pip(
            "download",
            *(f"{need.name}=={need.version}" for need in open_),
            *("--no-deps", "--only-binary=:all:", "--dest", str(cache)),
            *("--implementation", "cp", "--python-version", machine.python, *platforms),
        )
    found = [(need, _wheel(need, cache)) for need in wanted]
    missing = [need.name for need, wheel in found if wheel is None]
    if missing:
        raise KitError(f"pip downloaded no wheel of {', '.join(missing)}")
    return [wheel for _, wheel in found if wheel is not None]


def install(wheels: Sequence[Path], into: Path, machine: Machine) -> None:
    """Unpack wheels for that machine into a folder."""
    shutil.rmtree(into, ignore_errors=True)
    platforms = [each for name in machine.platforms for each in ("--platform", name)]
    _pip(
        "install",
        *(str(wheel) for wheel in wheels),
        *("--no-deps", "--no-index", "--only-binary=:all:", "--no-compile", "--target", str(into)),
        *("--implementation", "cp", "--python-version", machine.python, *platforms),
    )
    shutil.rmtree(into / "bin", ignore_errors=True)  # scripts that name this machine's Python


def leave_out(folder: Path, patterns: Mapping[str, str]) -> dict[str, int]:
    """Remove what the machine has no use for; {pattern: bytes}.

    Raises KitError where a pattern finds nothing: a new release moved it.
    """
    removed = {}
    for pattern in patterns:
        found = [path for path in folder.glob(pattern) if path.is_file()]
        if not found:
            raise KitError(f"machine.toml leaves out {pattern!r}, of which there is nothing")
        removed[pattern] = sum(path.stat().st_size for path in found)
        for path in found:
            path.unlink()
    return removed


def copy_installed(name: str, into: Path) -> str:
    """Copy an installed package without its scripts; "name-version". Raises KitError."""
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError as error:
        raise KitError(f"{name} is not installed here: run make dev") from error
    for file in found.files or ():
        if ".." not in file.parts and "__pycache__" not in file.parts:
            target = into / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file.locate(), target)
    return f"{canonical(name)}-{found.version}"


def _wheel(need: Need, cache: Path) -> Path | None:
    for path in cache.glob("*.whl"):
        name, version = path.name.split("-")[:2]
        if canonical(name) == canonical(need.name) and version == need.version:
            return path
    return None


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = " / ".join(done.stderr.strip().splitlines()[-3:])
        raise KitError(f"pip {arguments[0]} failed: {last}")
