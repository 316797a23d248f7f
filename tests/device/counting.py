"""Copies and synchronizations of a program that runs on `meta` as if that were a card.

Tensors on `meta` have shapes and types and no bytes, and PyTorch is the same program on them. Under
`Counting` every copy between host and card is an `Event` with the line that asked for it:

    upload            host to card, from pinned memory and not waited for
    blocking upload   host to card in any other way: PyTorch waits until it is done
    download          card to host; a synchronization, unless pinned memory waits for it
    synchronization   anything that cannot go on before the card is done: a download, a number
                      (`item`, `bool`, `float`, `tolist`), a shape that depends on values

The program goes on with made-up values: 0 for a number, zeros for a tensor. Where not even the
shape is known (`nonzero`, a boolean mask as an index) it ends in `ShapeUnknown`. Pinned memory is
ordinary memory here, and remembered.

Not seen: what compiled kernels and libraries do by themselves, memory that the driver allocates,
and anything of another thread.
"""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CARD = torch.device("meta")
ROOT = Path(__file__).resolve().parents[2]
TORCH = Path(torch.__file__).parent
aten = torch.ops.aten

# What synchronizes on a card because it says how large its result is.
SHAPES = {
    "_unique",
    "_unique2",
    "argwhere",
    "bincount",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
    "unique_dim_consecutive",
}
ANSWERS = {"allclose", "equal"}  # a bool, which the host waits for


class ShapeUnknown(RuntimeError):
    """The program needs to know how many values on the card are so and so."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """One crossing; `where` is the innermost line of the project, and of the library under it."""

    kind: str
    what: str
    where: str


class Counting(TorchDispatchMode):
    """Counts what crosses between host and card, `events` in order, and kernels in `operations`."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []
        self.operations = 0
        self._pinned: dict[int, Tensor] = {}  # by the storage's address, which stays taken so
        self._patches = ExitStack()

    def count(self, kind: str) -> int:
        """How many events are of that kind."""
        return sum(event.kind == kind for event in self.events)

    def totals(self) -> dict[str, int]:
        """How many there are of each kind."""
        kinds = ("blocking upload", "upload", "download", "synchronization")
        return {kind: self.count(kind) for kind in kinds}

    def lines(self) -> dict[str, int]:
        """How often each line did what, most often first."""
        found = Counter(f"{e.where}  {e.kind}  {e.what}" for e in self.events)
        return dict(found.most_common())

    # -- what PyTorch dispatches ------------------------------------------------------------

    def __enter__(self) -> Counting:
        with ExitStack() as stack:
            for owner, name in _MAKERS:
                made = self._making(getattr(owner, name), f"{owner.__name__}.{name}")
                stack.enter_context(mock.patch.object(owner, name, made))
            self._patches = stack.pop_all()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func._can_decompose():
            # Those of inference mode come whole: `to` and not `_to_copy`, `item` and not its read.
            with _Again(self):
                return func.decompose(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if kwargs.get("pin_memory") or name in ("is_pinned", "_pin_memory"):
            return self._on_host(func, name, args, kwargs)
        if not any(map(_on_card, tensors)) and not _is_card(kwargs.get("device")):
            return func(*args, **kwargs)
        if name in ("_to_copy", "copy_"):
            crossed = self._copied(name, args, kwargs)
            if crossed is not None:
                return crossed
        elif name == "_local_scalar_dense":
            self._add("synchronization", name)
            return _number(args[0].dtype)
        elif name in ANSWERS:
            self._add("synchronization", name)
            return True
        elif name in SHAPES or (name == "repeat_interleave" and not kwargs.get("output_size")):
            self._refuse(name)
        elif name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            self._indexed(name, args)
        if not func.is_view:
            self.operations += 1
        return func(*args, **kwargs)

    def _on_host(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        """Pinned memory: ordinary memory, remembered."""
        if name == "is_pinned":
            return self._is_pinned(args[0])
        found = (
            args[0].clone()
            if name == "_pin_memory"
            else func(*args, **{**kwargs, "pin_memory": False})
        )
        self._pinned[found.untyped_storage().data_ptr()] = found
        return found

    def _is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._pinned

    def _copied(self, name: str, args: Any, kwargs: dict[str, Any]) -> Tensor | None:
        """Counts a copy that crosses; zeros for one from the card, otherwise None."""
        asked = bool(kwargs.get("non_blocking", name == "copy_" and len(args) > 2 and args[2]))
        target = args[0] if name == "copy_" else None
        source = args[1] if name == "copy_" else args[0]
        to_card = (
            _on_card(target)
            if target is not None
            else _is_card(kwargs.get("device", source.device))
        )
        dtype = target.dtype if target is not None else kwargs.get("dtype") or source.dtype
        if to_card and not _on_card(source):
            # Of another type it is converted first, into memory that is not pinned.
            free = asked and self._is_pinned(source) and dtype == source.dtype
            self._add("upload" if free else "blocking upload", name)
            return None
        if to_card or not _on_card(source):
            return None
        self._add("download", name)
        if not asked or (target is not None and not self._is_pinned(target)):
            self._add("synchronization", name)
        if target is not None:
            return target.zero_()
        return torch.zeros(source.shape, dtype=dtype, device="cpu")

    def _indexed(self, name: str, args: Any) -> None:
        """Masks are counted on the card first; places that lie on the host are sent there."""
        given, places, *values = args
        for place in places:
            if place is None:
                continue
            if not _on_card(place):
                self._add("blocking upload", f"{name} by places on the host")
            elif place.dtype in (torch.bool, torch.uint8):
                if name == "index":
                    self._refuse(f"{name} by a mask")
                self._add("synchronization", f"{name} by a mask")
        if values and isinstance(values[0], Tensor) and _on_card(given) != _on_card(values[0]):
            self._add("blocking upload", f"{name} of a value on the host")

    # -- what it does not dispatch ----------------------------------------------------------

    def _making(self, make: Callable[..., Any], what: str) -> Callable[..., Any]:
        """`make` with data of the host that become a tensor on the card: `meta` skips the copy."""

        @functools.wraps(make)
        def made(*args: Any, **kwargs: Any) -> Any:
            before = len(self.events)
            found = make(*args, **kwargs)
            data = args[1] if what == "Tensor.new_tensor" else (args or (kwargs.get("data"),))[0]
            from_host = not any(isinstance(x, Tensor) and _on_card(x) for x in _items(data))
            if what in ("Tensor.__getitem__", "Tensor.__setitem__"):
                places = args[1] if isinstance(args[1], tuple) else (args[1],)
                if _on_card(args[0]) and any(isinstance(p, list | np.ndarray) for p in places):
                    self._add("blocking upload", f"{what} by a list")
            elif _on_card(found) and from_host and len(self.events) == before:
                self._add("blocking upload", what)
            return found

        return made

    def _add(self, kind: str, what: str) -> None:
        self.events.append(Event(kind=kind, what=what, where=_where()))

    def _refuse(self, what: str) -> None:
        self._add("synchronization", what)
        raise ShapeUnknown(f"{_where()}: the shape of {what} depends on values on the card")


class _Again:
    """The mode inside of its own handler, without what `Counting` does as it begins and ends."""

    def __init__(self, mode: Counting) -> None:
        self._mode = mode

    def __enter__(self) -> None:
        TorchDispatchMode.__enter__(self._mode)

    def __exit__(self, *error: Any) -> None:
        TorchDispatchMode.__exit__(self._mode, *error)


_MAKERS: tuple[tuple[Any, str], ...] = (
    (torch, "tensor"),
    (torch, "as_tensor"),
    (torch, "asarray"),
    (Tensor, "new_tensor"),
    (Tensor, "__getitem__"),
    (Tensor, "__setitem__"),
)


def _items(data: Any) -> Iterable[Any]:
    return data if isinstance(data, list | tuple) else [data]


def _on_card(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == CARD.type


def _is_card(device: Any) -> bool:
    return device is not None and torch.device(device).type == CARD.type


def _number(dtype: torch.dtype) -> bool | int | float | complex:
    return torch.zeros((), dtype=dtype, device="cpu").item()


def _where() -> str:
    """The innermost line of the project, and the line of the library that it called."""
    library = ""
    for path, line in _frames():
        if path.is_relative_to(ROOT) and "site-packages" not in path.parts:
            return f"{path.relative_to(ROOT)}:{line}" + (f" ({library})" if library else "")
        if not library and not path.is_relative_to(TORCH) and "site-packages" in path.parts:
            package = path.parts[path.parts.index("site-packages") + 1 :]
            library = f"{'/'.join(package)}:{line}"
    return library or "unknown"


def _frames() -> Iterator[tuple[Path, int]]:
    """Files and lines of the program, innermost first, without this file."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename != __file__:
            yield Path(frame.f_code.co_filename), frame.f_lineno
        frame = frame.f_back
