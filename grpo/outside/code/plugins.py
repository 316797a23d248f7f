"""Plug-ins: a name from an explicit dict, `package.module:attr`, or `path/to/file.py:attr`.

A Python object that a call was given is `object:NAME` (`objects.py`).

Rewards, sources, engines, advantages, objectives and callbacks are all found this way. Arguments
are checked against the signature before anything is called, so a typo in a recipe is a sentence
at the start of a run and not a TypeError in the middle of it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import os
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import grpo
from grpo.errors import GrpoError, PluginError, did_you_mean, unknown_name
from grpo.outside.code import fresh, objects
from grpo.outside.code.foreign import guarded, said

# Where the built-ins of each kind are listed. Addresses, since those modules import this file. All
# can be imported without torch.
BUILTINS = {
    "reward": "grpo.rewards:REWARDS",
    "engine": "grpo.rollout:ENGINES",
    "source": "grpo.data:SOURCES",
    "advantage": "grpo.method.table:ADVANTAGES",
    "objective": "grpo.method.table:OBJECTIVES",
    "curriculum": "grpo.training.curriculum:CURRICULA",
}


def builtins(kind: str) -> Mapping[str, Any]:
    """The explicit dict that lists the built-ins of `kind`; of a callback, say, there are none."""
    if kind not in BUILTINS:
        return {}
    module, _, attr = BUILTINS[kind].partition(":")
    return getattr(importlib.import_module(module), attr)


def is_address(spec: str) -> bool:
    """Whether `spec` is `module:attr` or `file.py:attr` rather than a built-in name."""
    return ":" in spec


def split_file(spec: str) -> tuple[Path, str] | None:
    """(file, attr) of `path/file.py:attr`; None for anything else.

    The last colon separates, so that a Windows drive letter stays in the path.
    """
    path, colon, attr = spec.rpartition(":")
    return (Path(path), attr) if colon and path.endswith(".py") else None


def find(kind: str, spec: str, record: type | None = None) -> Any:
    """The callable behind `spec`, not yet called, or an instance of `record`.

    Raises PluginError for an unknown name (close matches first), a file, module or attribute that
    does not exist, code that fails while it is imported, or something that cannot be called.
    """
    if objects.is_object(spec):
        return objects.find(kind, spec)
    if not is_address(spec):
        known = builtins(kind)
        if not known:
            raise PluginError(
                f"there is no built-in {kind}, so {spec!r} has to be package.module:attr or "
                "path/file.py:attr."
            )
        if spec not in known:
            raise PluginError(
                unknown_name(kind, spec, known)
                + " Your own: package.module:attr or path/file.py:attr."
            )
        return known[spec]
    module_name, _, attr = spec.rpartition(":")
    module = _import(kind, spec, module_name)
    found = module
    for part in attr.split("."):
        if not hasattr(found, part):
            hint = _hint(module_name, attr)
            public = {n: v for n, v in vars(module).items() if callable(v) and n[0] != "_"}
            # What the file defines; where it only passes on, what it imports.
            own = [n for n, v in public.items() if getattr(v, "__module__", "") == module.__name__]
            names = own or list(public)
            if hint or not names:
                raise PluginError(
                    f"{kind} {spec!r}: there is no {attr!r} in {module_name!r}.{hint}"
                )
            raise PluginError(f"{kind} {spec!r}: " + unknown_name("attribute", attr, names))
        found = getattr(found, part)
    if not callable(found) and not (record and isinstance(found, record)):
        what = f"{type(found).__name__} {found!r:.60}"
        raise PluginError(f"{kind} {spec!r} leads to {what}, not to something to call.")
    return found


def load(kind: str, spec: str, args: Mapping[str, Any] | None = None) -> Any:
    """The plug-in `spec` of `kind`, ready to use.

    Built-ins and classes are called with `args`, and so is whatever makes a source or an engine.
    Any other function is the plug-in itself, and is returned with `args`, if any, bound to it.
    Raises PluginError naming the plug-in, a bad argument and the valid ones.
    """
    found = find(kind, spec)
    arguments = dict(args or {})
    make = kind in ("source", "engine") or not is_address(spec) or inspect.isclass(found)
    check_args(kind, spec, found, arguments, complete=make)
    if make and is_address(spec):
        with _guarded(kind, spec):
            return found(**arguments)
    if make:
        return found(**arguments)
    return functools.partial(found, **arguments) if arguments else found


def guard(kind: str, spec: str, function: Callable[..., Any], when: str = "") -> Callable[..., Any]:
    """`function`, whose errors are PluginErrors with the line of the user's file; see `foreign`.

    `when` ends their sentence. Built-ins raise what they raise.
    """
    if not is_address(spec):
        return function

    @functools.wraps(function)
    def called(*args: Any, **keywords: Any) -> Any:
        with _guarded(kind, spec, when):
            found = function(*args, **keywords)
        if inspect.iscoroutine(found):
            found.close()
            raise PluginError(f"{kind} {spec!r} is asynchronous, and nobody would wait for it.")
        return found

    return called


def _guarded(kind: str, spec: str, when: str = "") -> AbstractContextManager[None]:
    def fail(error: BaseException) -> GrpoError:
        if isinstance(error, GrpoError):
            return error
        return PluginError(f"{kind} {spec!r} {said(error)}{when}")

    return guarded(f"{kind} {spec!r}", fail, keep=kind != "engine")


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


def _hint(module_name: str, attr: str) -> str:
    """ " Did you mean …?" with the most similar address in this package; "" for other packages."""
    if module_name.partition(".")[0] != "grpo":
        return ""
    root = Path(str(grpo.__file__)).parent
    name = re.escape(attr.partition(".")[0])
    defines = re.compile(rf"^(?:class|def) {name}\b|^{name} ?[:=]", re.MULTILINE)
    addresses = [
        f"{'.'.join((Path('grpo') / file.relative_to(root)).with_suffix('').parts)}:{attr}"
        for folder, _, files in os.walk(root, followlinks=True)
        for file in (Path(folder) / name for name in files if name.endswith(".py"))
        if defines.search(file.read_text(encoding="utf-8"))
    ]
    return did_you_mean(f"{module_name}:{attr}", sorted(addresses), n=1)


def _import(kind: str, spec: str, module_name: str) -> Any:
    """A module by name, or from a file's path under a name of its own, in its current state."""
    file = split_file(spec)
    path = None
    if file is not None:
        path = file[0].expanduser().resolve()
        if not path.is_file():
            raise PluginError(f"{kind} {spec!r}: there is no file {str(path)!r}.")
        # The name is a function of the path: worker processes find the same module, and two
        # files called rewards.py are two modules.
        digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
        module_name = f"grpo_plugin_{path.stem}_{digest}"

    def failed(error: BaseException) -> GrpoError:
        if isinstance(error, PluginError):
            return error
        if isinstance(error, ModuleNotFoundError):
            if path is None and error.name and (module_name + ".").startswith(error.name + "."):
                hint = _hint(module_name, spec.rpartition(":")[2])
                return PluginError(
                    f"{kind} {spec!r}: there is no module {error.name!r} to import"
                    f"{'.' + hint if hint else '; for a file write path/file.py:attr.'}"
                )
            return PluginError(f"{kind} {spec!r} could not be imported: {error}.")
        return PluginError(f"{kind} {spec!r} could not be imported: it {said(error)}.")

    with guarded(f"{kind} {spec!r}", failed, keep=kind != "engine"):
        return fresh.module(module_name, path)
