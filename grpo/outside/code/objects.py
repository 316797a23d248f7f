"""Python objects in a recipe: functions, data sets and networks that exist in this process alone.

    with given({"short": short}):
        find("reward", "object:short")     -> short

A recipe is plain text, so an object goes by an address, `object:NAME`. The table that the address
leads to exists only while the call runs that was given the objects: nothing of an earlier call is
found by a later one, and no other process finds anything. One call at a time has a table.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import CodeType, MethodType
from typing import Any, cast

from grpo.errors import PluginError, RunError
from grpo.errors.places import is_users

PREFIX = "object:"
_AGAIN = {"reward": "rewards=[…]", "source": "dataset=…", "data": "dataset=…"}
_PLAIN = (str, bytes, int, float, complex, bool, type(None))
_running = threading.Lock()
_table: dict[str, Any] = {}
# id of a function -> the function, and its digest when it was first seen
_met: dict[int, tuple[Callable[[], Any], str]] = {}


def is_object(spec: str) -> bool:
    """Whether `spec` is `object:NAME`."""
    return spec.startswith(PREFIX)


@contextmanager
def given(objects: Mapping[str, Any]) -> Iterator[None]:
    """Inside, `object:NAME` leads to `objects[NAME]`. Raises RunError inside another such block."""
    if not _running.acquire(blocking=False):
        raise RunError(
            "another call of grpo is running in this process, and a process trains one run at a "
            "time; wait until it has ended, or start the second one in a process of its own"
        )
    try:
        _table.update(objects)
        yield
    finally:
        _table.clear()
        _running.release()


def find(kind: str, spec: str) -> Any:
    """The object that `spec` leads to. Raises PluginError where this process does not have it."""
    name = spec.removeprefix(PREFIX)
    if name not in _table:
        raise PluginError(
            f"{kind} {name!r} is a Python object of the program that began the run, and this "
            f"program was not given it: pass it again ({_AGAIN.get(kind, 'by its keyword')}), from "
            "Python: grpo.load_run(folder).resume(…) or .evaluate(…)"
        )
    return _table[name]


def has(spec: str) -> bool:
    """Whether this process has the object of `spec` now."""
    return spec.removeprefix(PREFIX) in _table


def identity(value: Any) -> tuple[str, str]:
    """(what a message calls an object, digest): the same in another process for the same object.

    A function is its code and its defaults, the plain values that it encloses or finds in its
    module, and the functions and classes of its module that it uses; names of its own variables,
    its file and its line do not count. An object is the code of its class: what it holds changes
    while it works. A network is also its weights, and an object may name its parts with `made_of`.
    Lists, dicts and sets that a function encloses do not count, as it may fill them; and while a
    function lives, it is the one that it was when it was first seen, whatever it has counted.
    """
    met = _met.get(id(value))
    if met is not None and met[0]() is value:
        return _title(value), met[1]
    digest = hashlib.blake2b(digest_size=16)
    for part in _parts(value, {}):
        digest.update(part)
        digest.update(b"\0")
    found = digest.hexdigest()
    if hasattr(value, "__code__"):
        key = id(value)
        _met[key] = weakref.ref(value, lambda _: _met.pop(key, None)), found
    return _title(value), found


def _title(value: Any) -> str:
    found = value.func if isinstance(value, functools.partial) else value
    found = inspect.unwrap(cast("Callable[..., Any]", found)) if callable(found) else found
    name = getattr(found, "__qualname__", "").rpartition("<locals>.")[2]
    if name and not isinstance(found, type):
        return f"function {name}"
    kind = found if isinstance(found, type) else cast("type[Any]", type(found))
    return f"{kind.__name__} object"


def _parts(value: Any, seen: dict[int, Any]) -> Iterator[bytes]:
    """Bytes that differ where two objects do different things.

    seen: what has been looked at, by id; it is kept, or another object might get its id.
    """
    if isinstance(value, _PLAIN):
        yield repr(value).encode()
        return
    if id(value) in seen:
        return
    seen[id(value)] = value
    if isinstance(value, list | tuple | set | frozenset | dict):
        items: Any = value.items() if isinstance(value, dict) else value
        inner = [b"\0".join(_parts(item, seen)) for item in items]
        yield type(value).__name__.encode()
        yield from sorted(inner) if isinstance(value, set | frozenset) else inner
    elif isinstance(value, functools.partial):
        yield from _parts((value.func, value.args, value.keywords), seen)
    elif isinstance(value, MethodType):
        yield from _parts((value.__func__, value.__self__), seen)
    elif isinstance(value, CodeType):
        yield value.co_name.encode()
        yield from _parts((value.co_code, value.co_names, value.co_consts), seen)
    elif hasattr(value, "__code__"):
        filled = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        cells = [cell for cell in filled if not isinstance(cell, list | dict | set)]
        yield from _parts((value.__code__, value.__defaults__, value.__kwdefaults__, cells), seen)
        yield from _parts([_global(value, name) for name in _names(value.__code__)], seen)
    elif hasattr(value, "__wrapped__"):  # of lru_cache
        yield from _parts(value.__wrapped__, seen)
    elif isinstance(value, type):
        yield from _class_parts(value, seen)
    else:
        yield from _class_parts(cast("type[Any]", type(value)), seen)
        if hasattr(value, "state_dict") and hasattr(value, "forward"):
            yield from _weights(value)
        elif hasattr(value, "made_of"):
            yield from _parts(value.made_of(), seen)


def _class_parts(kind: type[Any], seen: dict[int, Any]) -> Iterator[bytes]:
    """The name of a class, and of a user's its methods and plain values, inherited ones too."""
    yield kind.__qualname__.encode()
    for one in kind.__mro__:
        file = getattr(sys.modules.get(one.__module__), "__file__", None)
        users = one.__module__ != "builtins" and (file is None or is_users(file))
        for name, member in sorted(vars(one).items()):
            found = inspect.unwrap(getattr(member, "__func__", getattr(member, "fget", member)))
            code = getattr(found, "__code__", None)
            is_code = code is not None and is_users(code.co_filename)
            if is_code or (isinstance(found, _PLAIN) and users and name[:2] != "__"):
                yield name.encode()
                yield from _parts(found, seen)


def _weights(network: Any) -> Iterator[bytes]:
    for name, tensor in network.state_dict().items():
        yield name.encode()
        if hasattr(tensor, "detach"):
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            yield flat.view(sys.modules["torch"].uint8).numpy().tobytes()


def _names(code: CodeType) -> list[str]:
    """The names that code looks up elsewhere, also inside its lambdas and comprehensions."""
    inner = [one for one in code.co_consts if isinstance(one, CodeType)]
    return [*code.co_names, *(name for one in inner for name in _names(one))]


def _global(function: Any, name: str) -> Any:
    """What the function's module has under a name it uses: code of its own, a plain value."""
    found = function.__globals__.get(name)
    same = getattr(found, "__module__", None) == function.__module__
    is_code = isinstance(found, type) or hasattr(found, "__code__") or hasattr(found, "__wrapped__")
    return found if isinstance(found, (*_PLAIN, tuple, frozenset)) or (same and is_code) else None


def _is_filled(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:  # a name that is not bound yet
        return False
    return True
