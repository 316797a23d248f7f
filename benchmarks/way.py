"""The way of one optimizer step through our files: what a reader has to open, and in which order.

    python benchmarks/way.py [--only shared]

Takes a step of `parity-r1-zero` on a CPU, once with shared prompts and fused layers and once with
padded rows and transformers' own layers, and prints for each

    from command to loss   the files on the stack at the moment the first token loss is called,
                           from the command's own down; `cli.py` parsed and called it
    the rows' way          from where the loop makes rows to that moment, every entry into a file
                           of ours from another one, in order, that brings rows or what becomes of
                           them: a micro-batch, hidden states, log-probs

What counts. An entry is a call, seen by `sys.setprofile`, whose nearest caller of ours is in
another file. It brings rows if an argument, or a variable that a closure takes along, is or holds a
`Row`, an array or a tensor that is no parameter, or if what it returns is or holds one. The same
function called again from the same one (the next layer, the next micro-batch) is one entry. A
return is an entry into a file that was entered before, with another in between; going back by
`return` is none, as a reader need not open anything, nor is a record's property, which is read like
a field. `GROUND` is listed apart: small files that anything may call and whose names say what they
do. Files are found by running. Only two functions are named here, `train_step` and
`clipped_surrogate`, and the way lies between them.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import numpy as np
import torch

import grpo
from grpo import cli
from grpo.types import Row

BEGIN, END = "train_step", "clipped_surrogate"
GROUND = {
    *("errors", "types", "plugins", "transfer", "repeated", "pieces", "casts", "ranks", "devices"),
    *("families", "canary"),  # asks about a model; the fixed tokens
    *("native", "door"),  # C++ is found and called
}
KERNELS = "kernels"  # every file in a folder of this name
SHORT = ["learner.max_steps=1", "eval.num_tasks=2", "eval.num_samples=1", "run.threads=1"]
VARIANTS = {
    "shared": ["learner.share_prompts=true"],
    "padded": ["learner.share_prompts=false"],
}
DEPTH = 3  # how far into containers and records is looked
ROOTS = [Path(folder).resolve().parent for folder in grpo.__path__]


@dataclasses.dataclass(kw_only=True)
class Entry:
    """One file of ours calls another."""

    file: str
    function: str
    caller: str
    brings: bool


class Way:
    """Watches one run; `stack` and `entries` are what it saw between BEGIN and END."""

    def __init__(self) -> None:
        self.stack: list[str] = []
        self.entries: list[Entry] = []
        self._names: dict[CodeType, str] = {}
        self._seen: dict[tuple[CodeType, CodeType], Entry] = {}
        self._open: dict[FrameType, Entry] = {}
        self._begun = self._rows = False
        self._loop = ""  # the file of BEGIN

    def __call__(self, frame: FrameType, event: str, given: Any) -> None:
        """For `sys.setprofile`."""
        if event not in ("call", "return") or not (file := self._name(frame.f_code)):
            return
        if event == "return":
            entry = self._open.pop(frame, None)
            if entry is not None and _holds(given, Row):
                self._made(entry)
            elif entry is not None and self._rows:
                entry.brings |= _holds(given, np.ndarray)
            return
        if not self._begun:
            self._begun = frame.f_code.co_name == BEGIN
            self._loop = file
            return
        caller = self._caller(frame)
        if caller is not None and self._name(caller) != file:
            self._enter(frame, caller, file)
        if frame.f_code.co_name == END:
            self.stack = self._files(frame)[1:]  # without the door
            sys.setprofile(None)

    def _made(self, entry: Entry) -> None:
        """What returned rows is on the way; it begins with the first that the loop was given."""
        entry.brings = True
        if not self._rows and entry.caller == self._loop:  # checks before it make rows of their own
            self._rows, self.entries = True, [entry]
            self._seen.clear()

    def _enter(self, frame: FrameType, caller: CodeType, file: str) -> None:
        edge = caller, frame.f_code
        if edge not in self._seen and not _is_property(frame):
            brings = self._rows and _holds(list(frame.f_locals.values()), Row, np.ndarray)
            function = frame.f_code.co_qualname if hasattr(frame.f_code, "co_qualname") else ""
            entry = Entry(
                file=file,
                function=function or frame.f_code.co_name,
                caller=self._name(caller),
                brings=brings,
            )
            self._seen[edge] = entry
            self.entries.append(entry)
            self._open[frame] = entry

    def _name(self, code: CodeType) -> str:
        """The file of ours that holds `code`, from its package; "" for those of others."""
        if code not in self._names:
            file = Path(code.co_filename)
            resolved = file.resolve()
            ours = file.suffix == ".py" and ".venv" not in file.parts
            inside = [root for root in ROOTS if ours and resolved.is_relative_to(root)]
            self._names[code] = str(resolved.relative_to(inside[0])) if inside else ""
        return self._names[code]

    def _caller(self, frame: FrameType) -> CodeType | None:
        """The nearest code of ours that called; whatever of others lies between."""
        above = frame.f_back
        while above is not None and not self._name(above.f_code):
            above = above.f_back
        return None if above is None else above.f_code

    def _files(self, frame: FrameType | None) -> list[str]:
        """Files of ours on the stack, outermost first, up to the command line."""
        found: list[str] = []
        while frame is not None:
            name = self._name(frame.f_code)
            if name and Path(name) != Path("benchmarks", Path(__file__).name):
                found.append(name)
            frame = frame.f_back
        return list(dict.fromkeys(reversed(found)))


def _is_property(frame: FrameType) -> bool:
    """Whether a property of a record is being read."""
    code = frame.f_code
    owner = type(frame.f_locals.get(code.co_varnames[0])) if code.co_argcount == 1 else None
    kind = getattr(owner, code.co_name, None)
    return dataclasses.is_dataclass(owner) and isinstance(kind, property | cached_property)


def _holds(value: Any, *kinds: type, depth: int = DEPTH) -> bool:
    """Whether `value` is one of the kinds (a tensor counts as an array), or holds one."""
    if isinstance(value, torch.Tensor):
        return np.ndarray in kinds and not isinstance(value, torch.nn.Parameter)
    if isinstance(value, kinds):
        return True
    if isinstance(value, FunctionType):
        value = [cell.cell_contents for cell in value.__closure__ or ()]
    if depth == 0:
        return False
    inside: list[Any] = []
    if isinstance(value, Mapping):
        inside = list(value.values())
    elif isinstance(value, list | tuple):
        inside = list(value[:8])
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        inside = [getattr(value, field.name) for field in dataclasses.fields(value)]
    return any(_holds(part, *kinds, depth=depth - 1) for part in inside)


def is_ground(file: str) -> bool:
    """Whether a file is of those that anything may call."""
    path = Path(file)
    return path.stem in GROUND or KERNELS in path.parts


def returns(files: list[str]) -> list[bool]:
    """For each entry whether its file was entered before, with another in between."""
    return [
        file in files[:number] and files[number - 1] != file for number, file in enumerate(files)
    ]


def follow(overrides: list[str]) -> Way:
    """The way of the first optimizer step of a short run."""
    way = Way()
    with tempfile.TemporaryDirectory(prefix="way-") as folder:
        sys.setprofile(way)
        try:
            code = cli.main(
                ["train", "parity-r1-zero", *SHORT, *overrides, f"run.dir={folder}/run"]
            )
        finally:
            sys.setprofile(None)
    if code or not way.stack:
        raise SystemExit(f"the run ended with {code} and no token loss was seen")
    return way


def told(name: str, way: Way) -> str:
    """The page of a variant."""
    lines = [f"{name}: from command to loss, {len(way.stack)} files", *_listed(way.stack)]
    on_it = [entry for entry in way.entries if entry.brings and not is_ground(entry.file)]
    again = returns([entry.file for entry in on_it])
    lines.append(f"{name}: the rows' way, {len(on_it)} entries, {sum(again)} returns")
    lines += _listed(
        [
            f"{entry.file:32} {entry.function:40} from {entry.caller}" + "  RETURN" * back
            for entry, back in zip(on_it, again, strict=True)
        ]
    )
    ground = dict.fromkeys(e.file for e in way.entries if e.brings and is_ground(e.file))
    lines.append(f"{name}: ground, {len(ground)} files: {', '.join(ground)}")
    return "\n".join(lines)


def _listed(lines: list[str]) -> list[str]:
    return [f"  {number:2} {line}" for number, line in enumerate(lines, 1)]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", choices=VARIANTS, help="one of the two")
    arguments = parser.parse_args()
    pages = [
        told(name, follow(overrides))
        for name, overrides in VARIANTS.items()
        if arguments.only in (None, name)
    ]
    print("\n\n".join(["", *pages]))


if __name__ == "__main__":
    main()
