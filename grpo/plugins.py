"""Plug-ins: a name from an explicit dict, `package.module:attr`, or `path/to/file.py:attr`.

Rewards, sources, engines, advantages, objectives and callbacks are all found this way. Arguments
are checked against the signature before anything is called, so a typo in a recipe is a sentence
at the start of a run and not a TypeError in the middle of it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.machinery
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import CodeType
from typing import Any

from grpo.errors import PluginError, unknown_name

# Where the built-ins of each kind are listed. Addresses, not imports: the rooms that list them lie
# to the right of this one, and all but objectives can be imported without torch.
BUILTINS = {
    "reward": "grpo.rewards:REWARDS",
    "engine": "grpo.rollout:ENGINES",
    "source": "grpo.data:SOURCES",
    "advantage": "grpo.advantage:ADVANTAGES",
    "objective": "grpo.objective:OBJECTIVES",
    "curriculum": "grpo.curriculum:CURRICULA",
}


def builtins(kind: str) -> Mapping[str, Callable[..., Any]]:
    """The explicit dict that lists the built-ins of `kind` (a key of BUILTINS)."""
    module, _, attr = BUILTINS[kind].partition(":")
    return getattr(importlib.import_module(module), attr)


class _FromSource(importlib.machinery.SourceFileLoader):
    """Reads a file as it is now: bytecode kept beside it is told apart by second and size only."""

    def get_code(self, fullname: str) -> CodeType:
        """The file's code, compiled anew."""
        return self.source_to_code(self.get_data(self.path), self.path)


def is_address(spec: str) -> bool:
    """Whether `spec` is `module:attr` or `file.py:attr` rather than a built-in name."""
    return ":" in spec


def split_file(spec: str) -> tuple[Path, str] | None:
    """(file, attr) of `path/file.py:attr`; None for anything else.

    The last colon separates, so that a Windows drive letter stays in the path.
    """
    path, colon, attr = spec.rpartition(":")
    return (Path(path), attr) if colon and path.endswith(".py") else None


def find(kind: str, spec: str, builtins: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """The callable behind `spec`, not yet called.

    Raises PluginError for an unknown name (close matches first), a file, module or attribute that
    does not exist, code that fails while it is imported, or something that cannot be called.
    """
    if not is_address(spec):
        if spec not in builtins:
            raise PluginError(
                unknown_name(kind, spec, builtins)
                + " Your own: package.module:attr or path/file.py:attr."
            )
        return builtins[spec]
    module_name, _, attr = spec.rpartition(":")
    module = _import(kind, spec, module_name)
    found = module
    for part in attr.split("."):
        if not hasattr(found, part):
            names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
            raise PluginError(f"{kind} {spec!r}: " + unknown_name("attribute", attr, names))
        found = getattr(found, part)
    if not callable(found):
        raise PluginError(f"{kind} {spec!r} is a {type(found).__name__}, not something to call.")
    return found


def load(
    kind: str,
    spec: str,
    builtins: Mapping[str, Callable[..., Any]],
    args: Mapping[str, Any] | None = None,
) -> Any:
    """The plug-in `spec` of `kind`, ready to use.

    A built-in is a factory and a class is a class: both are called with `args`, and so is anything
    that is to make a source or an engine. Another plain function is the plug-in itself: it comes
    back as it is, or with `args` bound by functools.partial. Raises PluginError naming the plug-in,
    a bad argument and the valid ones.
    """
    found = find(kind, spec, builtins)
    arguments = dict(args or {})
    make = kind in ("source", "engine") or not is_address(spec) or inspect.isclass(found)
    check_args(kind, spec, found, arguments, complete=make)
    if make:
        return found(**arguments)
    return functools.partial(found, **arguments) if arguments else found


def check_args(
    kind: str,
    spec: str,
    function: Callable[..., Any],
    args: Mapping[str, Any],
    *,
    complete: bool = True,
) -> None:
    """Refuse arguments that `function` does not take, and with `complete` missing ones too."""
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # some functions written in C have no signature
        return
    P = inspect.Parameter
    named = {
        n: p for n, p in parameters.items() if p.kind in (P.POSITIONAL_OR_KEYWORD, P.KEYWORD_ONLY)
    }
    open_ended = any(p.kind is P.VAR_KEYWORD for p in parameters.values())
    for name in args:
        if name not in named and not (open_ended and complete):
            valid = unknown_name("argument", name, named) if named else "it takes no arguments."
            raise PluginError(f"{kind} {spec!r}: {valid}")
    missing = [n for n, p in named.items() if p.default is P.empty and n not in args]
    if complete and missing:
        raise PluginError(
            f"{kind} {spec!r} needs {', '.join(map(repr, missing))} in its args; "
            f"it takes {', '.join(named)}."
        )


def _import(kind: str, spec: str, module_name: str) -> Any:
    """Import a module by name, or a file by path under a name of its own."""
    file = split_file(spec)
    try:
        if file is None:
            return importlib.import_module(module_name)
        path = file[0].expanduser().resolve()
        if not path.is_file():
            raise PluginError(f"{kind} {spec!r}: there is no file {str(path)!r}.")
        # The name is a function of the path: worker processes find the same module, and two
        # files called rewards.py do not meet.
        name = f"grpo_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
        if name in sys.modules:
            return sys.modules[name]
        loader = _FromSource(name, str(path))
        found = importlib.util.spec_from_file_location(name, path, loader=loader)
        if found is None or found.loader is None:
            raise PluginError(f"{kind} {spec!r}: {str(path)!r} is not a Python file.")
        module = importlib.util.module_from_spec(found)
        sys.modules[name] = module
        try:
            found.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module
    except PluginError:
        raise
    except ModuleNotFoundError as error:
        if file is None and error.name and (module_name + ".").startswith(error.name + "."):
            raise PluginError(
                f"{kind} {spec!r}: there is no module {error.name!r} to import; "
                "for a file write path/file.py:attr."
            ) from error
        raise PluginError(f"{kind} {spec!r} could not be imported: {error}.") from error
    except Exception as error:
        raise PluginError(
            f"{kind} {spec!r} could not be imported: {type(error).__name__}: {error}."
        ) from error
