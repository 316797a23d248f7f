"""What guests may read of the host's files: Python's own and those of installed packages.

A folder of `sys.path` is installed packages if its name says so. In one that holds a *.dist-info
(`pip install --target`) only what pip recorded there counts: a script may lie beside it, with keys.
Any other folder there (a checkout, the folder of a script) holds what model code has no business
with, so only the packages that the graders themselves have loaded from it are shown.
"""

from __future__ import annotations

import csv
import os
import site
import sys
import sysconfig
from collections.abc import Iterable

_NAMES = ("site-packages", "dist-packages")


def installed() -> list[str]:
    """The standard library, installed packages and shared libraries that are on this machine."""
    paths = sysconfig.get_paths()
    wanted = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    wanted += [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    wanted += [os.path.join(prefix, "lib") for prefix in (sys.prefix, sys.base_prefix)]
    wanted += ["/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/local/lib", "/etc/ld.so.cache"]
    wanted += ["/usr/share/zoneinfo", "/dev/null", "/dev/urandom"]
    wanted += [entry for entry in sys.path if os.path.isfile(entry)]  # archives
    for folder in _package_folders():
        entries = _installed_in(folder)
        wanted += [folder] if folder.endswith(_NAMES) else entries
        wanted += _linked(entries)
    return cover(wanted)


def loaded() -> list[str]:
    """The files and folders of every module that this process has imported by now."""
    places: set[str] = set()
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        folders = [str(folder) for folder in getattr(module, "__path__", None) or ()]
        places |= {*folders, *(f"{folder}.libs" for folder in folders)}  # auditwheel's libraries
        if isinstance(file, str) and name != "__main__":
            # installers may link single files into the environment from a store of their own
            places |= {os.path.dirname(os.path.realpath(file))} if folders else {file}
    return cover(places)


def cover(paths: Iterable[str]) -> list[str]:
    """Absolute paths that exist, and what they are links to, without those below another."""
    found = {os.path.abspath(path) for path in paths if os.path.exists(path)}
    kept: list[str] = []
    # a link below a kept folder leads out of it: its target is looked for on its own
    for path in sorted(found | {os.path.realpath(path) for path in found}, key=lambda p: p + "/"):
        if not (kept and path.startswith(kept[-1].rstrip("/") + "/")):
            kept.append(path)
    return kept


def samples(paths: Iterable[str]) -> list[str]:
    """Paths that have to be readable for a guest: `paths`, and what every package begins with.

    Only what this process can read itself: a guest need not be able to do more.
    """
    found = list(paths)
    for folder in _package_folders():
        for entry in filter(_importable, _installed_in(folder)):
            first = os.path.join(entry, "__init__.py")
            found.append(first if os.path.isfile(first) else entry)
    return [path for path in found if os.access(path, os.R_OK)]


def _importable(entry: str) -> bool:
    if os.path.isdir(entry):
        return not entry.endswith((".dist-info", ".egg-info", "__pycache__"))
    return entry.endswith((".py", ".so"))


def unreadable(paths: Iterable[str]) -> list[str]:
    """Those of `paths` that cannot be read here, each with the reason."""
    faults: list[str] = []
    for path in paths:
        try:
            if os.path.isdir(path):
                with os.scandir(path):
                    continue
            with open(path, "rb") as stream:
                stream.read(1)
        except OSError as error:
            faults.append(f"{path} ({error.strerror or type(error).__name__})")
    return faults


def _package_folders() -> list[str]:
    """The folders of `sys.path` that hold installed packages."""

    def holds_packages(entry: str) -> bool:
        if entry.endswith(_NAMES):
            return True
        return any(child.endswith(".dist-info") for child in _entries(entry))

    entries = dict.fromkeys(os.path.abspath(entry) for entry in sys.path if entry)
    return [entry for entry in entries if os.path.isdir(entry) and holds_packages(entry)]


def _installed_in(folder: str) -> list[str]:
    """What a folder of packages holds: all that is there, or what pip recorded, at its top."""
    if folder.endswith(_NAMES):
        return _entries(folder)
    found: set[str] = set()
    for entry in _entries(folder):
        if entry.endswith(".dist-info"):
            found |= {entry, *(os.path.join(folder, name) for name in _recorded(entry))}
    return sorted(path for path in found if os.path.exists(path))


def _recorded(info: str) -> set[str]:
    """The files and folders that a *.dist-info names (its RECORD: path, hash, size), at the top."""
    try:
        with open(os.path.join(info, "RECORD"), encoding="utf-8", newline="") as stream:
            names = {row[0].split("/")[0] for row in csv.reader(stream) if row}
    except (OSError, ValueError, csv.Error):
        return set()
    return names - {"", ".", "..", "__pycache__"}


def _linked(entries: Iterable[str]) -> list[str]:
    """Where links among packages lead: whole packages, or the files of one, linked in."""
    targets: list[str] = []
    for entry in entries:
        inside = os.path.join(entry, "__init__.py")
        if not os.path.islink(entry) and not os.path.islink(inside) and os.path.isdir(entry):
            inside = next(iter(_entries(entry)), entry)
        if os.path.islink(entry):
            targets.append(os.path.realpath(entry))
        elif os.path.islink(inside):
            targets.append(os.path.dirname(os.path.realpath(inside)))
    return targets


def _entries(folder: str) -> list[str]:
    """The paths of what is in a folder, sorted; [] if that cannot be read."""
    try:
        return sorted(os.path.join(folder, name) for name in os.listdir(folder))
    except OSError:
        return []
