"""Rooms, floors and arrows of a tree of this project, and what a reader has to open; with bars.

    python benchmarks/house.py [TREE] [--still] [--json FILE]

Counted without importing anything, so that it works on any commit checked out somewhere:

* rooms: files and folders directly in `grpo/`, but for `__init__` and `__main__`. The links to
  `rewards`, `rollout`, `data` and `recipes` are counted apart: the bars are for the others
* arrows: ordered pairs of rooms of which one imports the other, by every import statement there is,
  those within functions and under TYPE_CHECKING too
* floors: the rooms on the longest way down along arrows, links and all; the rooms of a circle share
  a floor, and the circle is named
* layers: of the import contract in pyproject.toml
* the way: returns of the rows of an optimizer step, and files from the command line to the loss, by
  running the tree's own benchmarks/way.py (--still leaves these rows out)
* tests of the device: comparisons of `device.type`, or of a name it was given to, and `is_cuda`,
  outside the files where a device decides (DECIDES says which and why)
* lines: of files of the packages and of their functions, docstrings and comments included; those of
  all Python, and of all C++, apart
* test functions: `def test_…` below `tests/`; one with parameters is one

Exit code 1 where a bar does not hold.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
PACKAGE = "grpo"
# Files where a device may be asked for, and what is decided there.
DECIDES: dict[str, str] = {
    "devices.py": "which layers, head, attention and optimizer a learner is made with",
    "ways.py": "which layers and passes an engine is made with",
    "sft_trainer.py": "what TRL's trainer is made with",
    "transfer.py": "what crosses between host and GPU, and what waits for it",
    "compute_types.py": "which types a device computes in",
    "pieces.py": "how much memory a device has left",
    "ranks.py": "which backend processes talk by",
    "process.py": "the report of the machine",
}
MEASURE = """
import json, sys
sys.path.insert(0, "benchmarks")
import way
found = [way.follow(overrides) for overrides in way.VARIANTS.values()]
ours = [[e.file for e in w.entries if e.brings and not way.is_ground(e.file)] for w in found]
print(json.dumps({
    "returns": max(sum(way.returns(files)) for files in ours),
    "files": max(len(w.stack) for w in found),
}))
"""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One row of the table: what, how much, the most there may be (None: no bar), and where."""

    name: str
    value: float | None
    bar: float | None = None
    where: str = ""

    @property
    def holds(self) -> bool:
        """Whether the bar is kept; what was not measured is not judged."""
        return self.bar is None or self.value is None or self.value <= self.bar


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("tree", nargs="?", type=Path, default=HERE, help="a checkout; this one")
    parser.add_argument("--still", action="store_true", help="run nothing: without the way")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there too")
    arguments = parser.parse_args()
    tree = arguments.tree.resolve()
    figures = measure(tree, still=arguments.still)
    print(table(figures))
    if arguments.json:
        rows = {
            row.name: {"value": row.value, "bar": row.bar, "where": row.where} for row in figures
        }
        arguments.json.write_text(json.dumps({"commit": commit(tree), **rows}, indent=1) + "\n")
    broken = [row.name for row in figures if not row.holds]
    print(f"does not hold: {', '.join(broken)}" if broken else "every bar holds")
    sys.exit(bool(broken))


def measure(tree: Path, *, still: bool = False) -> list[Figure]:
    """The rows of the table."""
    sources = modules(tree)
    found = arrows(sources)
    rooms = {room_of(module) for module in sources} - {""}
    links = {path.name for path in (tree / PACKAGE).iterdir() if path.is_symlink()}
    knots = circles(found)
    lines = {path: line_count(path) for path in sources.values()}
    longest = max(lines, key=lambda path: lines[path])
    length, function = max(
        (length, f"{path.name}: {name}")
        for path in lines
        for name, length in functions(parsed(path))
    )
    asked = {path: len(list(device_tests(parsed(path)))) for path in lines}
    decided = {path for path in lines if path.name in DECIDES}
    way = {} if still else walked(tree)
    return [
        Figure(name="rooms directly in grpo/", value=len(rooms - links), bar=20),
        Figure(name="rooms, the links with them", value=len(rooms)),
        Figure(name="floors", value=len(highest(found)), bar=9, where=" > ".join(highest(found))),
        Figure(
            name="arrows between rooms",
            value=sum(links.isdisjoint(pair) for pair in found),
            bar=60,
        ),
        Figure(name="arrows, the links with them", value=len(found)),
        Figure(
            name="circles",
            value=len(knots),
            bar=0,
            where="; ".join(" ".join(sorted(knot)) for knot in knots),
        ),
        Figure(name="layers of the import contract", value=layers(tree), bar=9),
        Figure(name="returns of the rows of a step", value=way.get("returns"), bar=2),
        Figure(name="files from command to loss", value=way.get("files"), bar=5),
        Figure(
            name="tests of the device",
            value=sum(asked[path] for path in asked.keys() - decided),
            bar=3,
            where=counted({path.name: n for path, n in asked.items() if path not in decided}),
        ),
        Figure(
            name="tests where it is decided",
            value=sum(asked[path] for path in decided),
            where=counted({path.name: n for path, n in asked.items() if path in decided}),
        ),
        Figure(name="lines of Python", value=sum(lines.values())),
        Figure(name="lines of C++", value=sum(map(line_count, compiled(tree)))),
        Figure(name="median file", value=statistics.median(lines.values()), bar=150),
        Figure(name="longest file", value=lines[longest], bar=450, where=longest.name),
        Figure(name="longest function", value=length, bar=60, where=function),
        Figure(name="test functions", value=tests(tree)),
    ]


def line_count(path: Path) -> int:
    """All lines of a file."""
    return len(path.read_text(encoding="utf-8").splitlines())


def compiled(tree: Path) -> list[Path]:
    """The C++ of the packages."""
    found = (tree.glob(f"{top}/**/*.{end}") for top in ("grpo", "rollout") for end in ("cpp", "h"))
    return [path for paths in found for path in paths]


def counted(numbers: Mapping[str, int]) -> str:
    """What there is any of, with its number."""
    return ", ".join(f"{name} {number}" for name, number in numbers.items() if number)


def table(figures: Iterable[Figure]) -> str:
    """The rows as a Markdown table."""
    lines = ["| what | found | bar | where |", "|---|---|---|---|"]
    for row in figures:
        value = "not measured" if row.value is None else f"{row.value:g}"
        value = value if row.holds else f"**{value}**"
        bar = "" if row.bar is None else f"<= {row.bar:g}"
        lines.append(f"| {row.name} | {value} | {bar} | {row.where} |")
    return "\n".join(lines)


def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


# ---------------------------------------------------------------- rooms and arrows


def modules(tree: Path) -> dict[str, Path]:
    """{dotted name: file} of everything that imports as `grpo.…`, through the links too."""
    found: dict[str, Path] = {}

    def enter(folder: Path, name: str) -> None:
        for path in sorted(folder.iterdir()):
            if path.is_dir() and path.name != "__pycache__":
                enter(path, f"{name}.{path.name}")
            elif path.suffix == ".py":
                found[name if path.stem == "__init__" else f"{name}.{path.stem}"] = path

    enter(tree / PACKAGE, PACKAGE)
    return found


def room_of(module: str) -> str:
    """The part of a dotted name below `grpo`; "" for `grpo`, `grpo.__main__`, other packages."""
    first, _, rest = module.partition(".")
    room = rest.partition(".")[0] if first == PACKAGE else ""
    return "" if room == "__main__" else room


def arrows(sources: Mapping[str, Path]) -> set[tuple[str, str]]:
    """(room, room that it imports) of all rooms."""
    found: set[tuple[str, str]] = set()
    for module, path in sources.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        own = room_of(module)
        for wanted in imported(parsed(path), package, sources):
            other = room_of(wanted)
            if own and other and own != other:
                found.add((own, other))
    return found


def imported(code: ast.Module, package: str, known: Mapping[str, Path]) -> Iterator[str]:
    """Dotted names that `code`, in `package`, imports; `from p import m` is `p.m` if a module."""
    for node in ast.walk(code):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            for alias in node.names:
                inside = f"{base}.{alias.name}"
                yield inside if inside in known else base


def circles(found: Iterable[tuple[str, str]]) -> list[set[str]]:
    """Rooms that reach one another, each circle once."""
    below = {room: reached(room, found) for room, _ in found}
    knots: list[set[str]] = []
    for room, others in below.items():
        knot = {room} | {other for other in others if room in below.get(other, set())}
        if room in others and knot not in knots:
            knots.append(knot)
    return knots


def reached(room: str, found: Iterable[tuple[str, str]]) -> set[str]:
    """Every room that `room` imports, or that those import."""
    seen: set[str] = set()
    waiting = [room]
    while waiting:
        here = waiting.pop()
        new = {b for a, b in found if a == here} - seen
        seen |= new
        waiting += new
    return seen


def highest(found: Iterable[tuple[str, str]]) -> list[str]:
    """The longest way down along arrows, top first; a circle is one stop, its rooms with "+"."""
    pairs = set(found)
    names = {room: "+".join(sorted(knot)) for knot in circles(pairs) for room in knot}
    plain = {(names.get(a, a), names.get(b, b)) for a, b in pairs}
    ways: dict[str, list[str]] = {}

    def down(room: str) -> list[str]:
        if room not in ways:
            below = sorted(b for a, b in plain if a == room and b != room)
            ways[room] = [room, *max((down(other) for other in below), key=len, default=[])]
        return ways[room]

    return max((down(room) for room in sorted({a for a, _ in plain})), key=len, default=[])


def layers(tree: Path) -> int:
    """The most layers of an import contract in pyproject.toml."""
    settings = tomllib.loads((tree / "pyproject.toml").read_text())
    contracts: list[dict[str, Any]] = settings["tool"]["importlinter"]["contracts"]
    return max((len(contract.get("layers", ())) for contract in contracts), default=0)


# ---------------------------------------------------------------- inside a file


def functions(code: ast.Module) -> Iterator[tuple[str, int]]:
    """(name, lines) of every function, those within others too; decorators are not counted."""
    for node in ast.walk(code):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def device_tests(code: ast.Module) -> Iterator[int]:
    """Lines that ask what a device is: a comparison of its type, or `is_cuda`."""
    given = {
        target.id
        for node in ast.walk(code)
        if isinstance(node, ast.Assign) and is_device_type(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(code):
        if isinstance(node, ast.Attribute) and node.attr == "is_cuda":
            yield node.lineno
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(is_device_type(side) or getattr(side, "id", None) in given for side in sides):
                yield node.lineno


def is_device_type(node: ast.expr) -> bool:
    """Whether this is `….device.type`, `device.type` or `torch.device(…).type`."""
    if not (isinstance(node, ast.Attribute) and node.attr == "type"):
        return False
    of = node.value.func if isinstance(node.value, ast.Call) else node.value
    name = of.attr if isinstance(of, ast.Attribute) else getattr(of, "id", "")
    return name.endswith("device")


def tests(tree: Path) -> int:
    """Functions that pytest collects below tests/, each once."""
    files = (tree / "tests").rglob("test_*.py")
    return sum(name.startswith("test_") for path in files for name, _ in functions(parsed(path)))


def walked(tree: Path) -> dict[str, int]:
    """Returns and files of the tree's own benchmarks/way.py; empty where it has none."""
    if not (tree / "benchmarks" / "way.py").exists():
        return {}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(
            f"benchmarks/way.py of {tree} ended with {done.returncode}:\n{done.stderr[-2000:]}"
        )
    return json.loads(done.stdout.splitlines()[-1])


def commit(tree: Path) -> str:
    """The commit that is checked out there; "" without git."""
    asked = ["git", "-C", str(tree), "rev-parse", "HEAD"]
    return subprocess.run(asked, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
