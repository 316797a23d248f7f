"""Importing a user's code as it is now, also when an older state of it is already loaded.

A notebook trains, edits its reward and trains again. Python would return the loaded module. Here a
module is read again when its source has changed since it was read, or that of a file beside it that
it imports. Those files are read again with it, so that all of them are of one state. While no
source changes, the module stays, with its state. Objects of the older module go on working: only
its name leads to the new one.

Installed packages are not checked.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from grpo.errors.places import is_users

# name -> the module that has it, and the digest of its source when it was met
_known: dict[str, tuple[ModuleType, bytes]] = {}
# name of a plug-in's module -> the modules it was made of, by their names
_made_of: dict[str, dict[str, ModuleType]] = {}
_outdated_once: set[str] = set()  # names whose bytecode may be of an older source


def module(name: str, path: Path | None = None) -> ModuleType:
    """The module called `name`, from the file at `path` or from where Python finds it."""
    present = sys.modules.get(name)
    old: dict[str, ModuleType] = {}
    if present is not None:
        old = _outdated(name, present)
    if present is None or old:
        for one in old:
            del sys.modules[one]
        if old:
            _outdated_once.update(old)
            if _late not in sys.meta_path:
                sys.meta_path.insert(0, _late)
        try:
            present = _imported(name, path)
        except BaseException:
            sys.modules.update(old)  # of those who use it; the next attempt reads it again
            raise
    parts = _files(name, present)
    _made_of[name] = {part: sys.modules[part] for part in parts}
    for part, file in parts.items():
        if part not in _known or _known[part][0] is not sys.modules[part]:
            _known[part] = sys.modules[part], _digest(file)
    return present


def _outdated(name: str, present: ModuleType) -> dict[str, ModuleType]:
    """What has to be read anew for `name`, itself among it; {} while its sources are as they were.

    Parts that another plug-in has had read anew since are taken as they are.
    """
    files = _files(name, present)
    changed = {part for part, file in files.items() if _has_changed(part, file)}
    made_of = _made_of.get(name, {part: sys.modules[part] for part in files})
    replaced = {part for part, one in made_of.items() if sys.modules.get(part) is not one}
    if not changed and not replaced:
        return {}
    older = {part for part in files if sys.modules[part] is made_of.get(part)}
    return {part: sys.modules[part] for part in {name} | changed | older}


def _has_changed(name: str, file: str) -> bool:
    if name in _known and _known[name][0] is sys.modules[name]:
        return _known[name][1] != _digest(file)
    return _is_older(sys.modules[name])


def _imported(name: str, path: Path | None) -> ModuleType:
    importlib.invalidate_caches()
    with _from_source():
        if path is None:
            return importlib.import_module(name)
        loader = _FromSource(name, str(path))
        spec = importlib.util.spec_from_file_location(name, path, loader=loader)
        assert spec is not None
        found = importlib.util.module_from_spec(spec)
        sys.modules[name] = found
        try:
            loader.exec_module(found)
        except BaseException:
            sys.modules.pop(name, None)
            raise
        return found


def _is_older(one: ModuleType) -> bool:
    """Whether a module that somebody else imported has another source now.

    The bytecode that was written then says of which: its time and size (PEP 552).
    """
    spec: Any = one.__spec__
    try:
        head = Path(str(spec.cached)).read_bytes()[:16]
        source = os.stat(str(one.__file__))
    except (AttributeError, OSError):
        return False  # none was kept
    flags, time, size = (int.from_bytes(head[at : at + 4], "little") for at in (4, 8, 12))
    return not flags and (time, size) != (int(source.st_mtime) & 0xFFFFFFFF, source.st_size)


def _files(name: str, found: ModuleType) -> dict[str, str]:
    """module name -> file of `found` and of what it imports from its folder or its package."""
    file = _source(found)
    if file is None:
        return {}
    top = _source(sys.modules.get(name.partition(".")[0]))
    folder = os.path.dirname(top or file) + os.sep
    files: dict[str, str] = {}
    waiting = [name]
    while waiting:
        one = waiting.pop()
        source = _source(sys.modules.get(one))
        if one not in files and source is not None and source.startswith(folder):
            files[one] = source
            waiting += imports(source, sys.modules[one].__package__)
    return files


def _source(one: ModuleType | None) -> str | None:
    """The file of a module of the user's own, None for any other."""
    file = getattr(one, "__file__", None)
    if one is None or one.__name__ == "__main__" or not file or not file.endswith(".py"):
        return None
    return file if is_users(file) else None


def imports(file: str | Path, package: str | None) -> list[str]:
    """Dotted names of the modules that a file's import statements may mean, wherever they stand.

    `package` is the file's own, by which relative imports are resolved. [] for a file that is not
    Python.
    """
    try:
        tree = ast.parse(Path(file).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            try:
                base = importlib.util.resolve_name(base, package) if node.level else base
            except ImportError:
                continue
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return [".".join(n.split(".")[: i + 1]) for n in names for i in range(n.count(".") + 1)]


def _digest(file: str) -> bytes:
    try:
        return hashlib.sha256(Path(file).read_bytes()).digest()
    except OSError:
        return b""


class _FromSource(importlib.machinery.SourceFileLoader):
    """Reads a file as it is now: bytecode kept beside it is told apart by second and size only."""

    def get_code(self, fullname: str) -> CodeType:
        """The file's code, compiled anew."""
        return self.source_to_code(self.get_data(self.path), self.path)


class _Finder:
    """Gives a user's own modules `_FromSource` as their loader: all, or those of `names`."""

    def __init__(self, names: set[str] | None = None) -> None:
        self.names = names

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None, /) -> Any:
        """The spec that Python would find, loaded from source where it is the user's."""
        if self.names is not None and name not in self.names:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        loader = None if spec is None else spec.loader
        if spec is None or type(loader) is not importlib.machinery.SourceFileLoader:
            return None
        if not is_users(loader.path):
            return None
        return importlib.util.spec_from_file_location(
            name,
            loader.path,
            loader=_FromSource(name, loader.path),
            submodule_search_locations=spec.submodule_search_locations,
        )


# For imports inside functions, once the source has changed. It stays: the bytecode of the older
# source may be of the same second and size.
_late = _Finder(_outdated_once)


@contextmanager
def _from_source() -> Iterator[None]:
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
