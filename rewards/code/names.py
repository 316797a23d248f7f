"""Which names of a row's tests come from the program, found by reading the tests and nothing else.

The name under test is the row's `entry_point`, else what its reference solution defines, else what
the tests call and nobody else has. Every other name is Python's or the tests' own, whatever the
program calls its functions: a program that defines `len` changes nothing in the tests.

The tests also say which classes of the program's they may mean as exceptions (`caught`). Only these
become classes in the tests' process: a program that makes an exception of any other, `class
Solution(Exception)`, would leave nothing there to ask it for. And they may ask for what does not
leave the program's process: how it is written, and what it prints. A program that is right could
not pass such tests, so the row says so and nobody's answer is scored.
"""

from __future__ import annotations

import ast
import importlib
import re
import symtable
import sys
from collections.abc import Collection, Iterable, Sequence, Set
from dataclasses import dataclass
from types import CodeType
from typing import Any

from grpo.outside.rows.code_rows import defined_names


class Undecided(Exception):
    """The tests do not say which of their names the program has to define."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """Python text of a row, read once."""

    source: str
    tree: ast.Module
    code: CodeType


@dataclass(frozen=True, kw_only=True, slots=True)
class Names:
    """What comes from the program, which of it is classes, and whether the setup needs it."""

    program: tuple[str, ...]
    classes: tuple[str, ...]
    in_setup: bool


def read_text(source: str, name: str) -> Text:
    """A text parsed and compiled. Raises SyntaxError and ValueError."""
    tree = ast.parse(source)
    code = compile(tree, name, "exec", dont_inherit=True)
    return Text(source=source, tree=tree, code=code)


def names_under_test(
    *,
    setup: Text,
    parts: Sequence[Text],
    entry: str | None,
    defines: Sequence[str] | None,
    python: Set[str],
) -> Names:
    """The names of `parts` and of `setup` that the program defines.

    entry: the row's entry point. defines: what its reference solution defines, a class as
    "class Node". python: names that are there without either. Raises Undecided.
    """
    entry = entry if entry and entry.isidentifier() else None
    if entry is not None and _is_all(entry, setup, parts, python):
        return Names(program=(entry,), classes=tuple(_capitalized([entry])), in_setup=False)
    read, bound = _globals_of(parts)
    setup_read, setup_bound = _globals_of([setup])
    own = bound | setup_bound
    there = {*python, *own, *_starred(setup)}
    marked = {name.removeprefix("class ") for name in defines or ()}
    elsewhere = bound | set(defined_names(setup.source))
    wanted = {entry} if entry else (marked & (read | setup_read)) - elsewhere
    missing = {name for name in read - there - wanted if not name.startswith("__")}
    uses = _Uses(missing, [part.tree for part in parts])
    unmade = _capitalized(setup_read - there - wanted)
    classes = uses.classes() | _Uses(unmade, [setup.tree]).classes()
    found = wanted or uses.functions() or classes or _renamed(parts, own, python)
    program = found | classes
    if unknown := sorted(missing - program):
        raise Undecided(
            f"the tests use {', '.join(unknown)}, which neither they nor the setup define; "
            "name what the program has to define in entry_point, or add the rest to the setup"
        )
    if wanted and not entry:  # the reference says which of its names are classes
        classes |= {name for name in wanted if f"class {name}" in (defines or ())}
    else:
        classes |= _capitalized(found)
    return Names(
        program=tuple(sorted(program)),
        classes=tuple(sorted(classes)),
        in_setup=bool((program & setup_read) - setup_bound),
    )


def classes_of(tree: ast.Module) -> list[str]:
    """Names of the classes that a text makes at its top: by `class`, or as a named tuple."""
    found: list[str] = []
    for statement in tree.body:
        match statement:
            case ast.ClassDef(name=name):
                found.append(name)
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call()) if name[:1].isupper():
                found.append(name)
            case _:
                pass
    return found


def _capitalized(names: Iterable[str]) -> set[str]:
    """Names that look like a class's."""
    return {name for name in names if name[:1].isupper() and "_" not in name}


def _is_all(entry: str, setup: Text, parts: Sequence[Text], python: Set[str]) -> bool:
    """Whether the entry point is plainly all that the tests lack, as nearly always.

    It looks at the names that compiled code holds, attributes among them: what they are not is
    found out by `_globals_of`, which takes ten times as long.
    """
    bound = {name for text in (setup, *parts) for name in _bound(text.tree)}
    waiting = [text.code for text in (setup, *parts)]
    seen: set[str] = set()
    for code in waiting:
        seen.update(code.co_names)
        waiting += [part for part in code.co_consts if isinstance(part, CodeType)]
    return seen - bound - python <= {entry} and (entry in _bound(setup.tree) or not setup.source)


def _bound(tree: ast.Module) -> Iterable[str]:
    """Names that statements at the top of a text bind, the plain kinds of them."""
    for statement in tree.body:
        match statement:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                yield from ((alias.asname or alias.name).partition(".")[0] for alias in names)
                yield from (part for alias in names for part in alias.name.split("."))
                yield getattr(statement, "module", None) or ""
            case ast.Assign(targets=targets):
                yield from (target.id for target in targets if isinstance(target, ast.Name))
            case _:
                pass


def _globals_of(texts: Iterable[Text]) -> tuple[set[str], set[str]]:
    """(names read as globals, names bound at the top) of some texts together."""
    read: set[str] = set()
    bound: set[str] = set()
    for text in texts:
        waiting = [symtable.symtable(text.source, "<tests>", "exec")]
        for table in waiting:
            waiting += table.get_children()
            top = table.get_type() == "module"
            for symbol in table.get_symbols():
                if top or symbol.is_global():
                    if symbol.is_referenced():
                        read.add(symbol.get_name())
                    if symbol.is_assigned() or symbol.is_imported():
                        bound.add(symbol.get_name())
    return read, bound


def _starred(text: Text) -> set[str]:
    """What `from … import *` brings in. A module that is not there brings nothing."""
    found: set[str] = set()
    for node in ast.walk(text.tree) if "*" in text.source else ():
        match node:
            case ast.ImportFrom(module=str(module), names=[ast.alias(name="*")], level=0):
                try:
                    have: Any = importlib.import_module(module)
                except Exception:  # running the setup will say so
                    continue
                public = {name for name in dir(have) if not name.startswith("_")}
                found |= set(getattr(have, "__all__", public))
            case _:
                pass
    return found


class _Uses(ast.NodeVisitor):
    """How the tests use names that nobody else defines.

    Called around another of them, a name may be a helper that the row forgot (`allclose(f(1), 2)`)
    as well as the program's; with only an attribute taken it is a module. Neither says enough.
    """

    def __init__(self, names: Set[str], trees: Sequence[ast.AST]) -> None:
        self.names = names
        self.direct: set[str] = set()  # called, or given away, by itself
        self.made: set[str] = set()  # used as a class is: called, caught, or asked for a member
        for tree in trees if names else ():
            self.visit(tree)

    def functions(self) -> set[str]:
        constants = {name for name in self.direct - self.made if name.isupper()}
        return self.direct - self.classes() - constants

    def classes(self) -> set[str]:
        """Capitalized names, unless they only stand for a constant."""
        seen = _capitalized(self.direct | self.made)
        return {name for name in seen if name in self.made or not name.isupper()}

    def visit_Name(self, node: ast.Name) -> None:
        if node.id in self.names and isinstance(node.ctx, ast.Load):
            self.direct.add(node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.value, ast.Name) and node.value.id in self.names:
            self.made.add(node.value.id)
        else:
            self.visit(node.value)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        if node.type is not None:
            self.made |= self._within([node.type])
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        inside = [*node.args, *(keyword.value for keyword in node.keywords)]
        if isinstance(node.func, ast.Name) and node.func.id in self.names:
            self.made.add(node.func.id)
            within = self._within(inside)
            if not within - _capitalized(within) - {node.func.id}:
                self.direct.add(node.func.id)
        else:
            self.visit(node.func)
        for argument in inside:
            self.visit(argument)

    def _within(self, nodes: Sequence[ast.AST]) -> set[str]:
        return names_in(nodes) & self.names


def _renamed(parts: Sequence[Text], own: Set[str], python: Set[str]) -> set[str]:
    """The one name of Python's that the tests must mean the program's function by.

    It stands in every test, and nothing else of its kind does: what the prelude imports counts
    before Python's built-in functions, which also stand around the call (`list(permutations(x))`).
    """
    trees = [part.tree for part in parts]
    tests: list[ast.AST] = [node for tree in trees for node in ast.walk(tree)
                            if isinstance(node, ast.Assert)]  # fmt: skip
    builtin = set(dir(importlib.import_module("builtins")))
    for texts in (trees, tests):
        loads = [_loaded(text) - own for text in texts]
        everywhere = set[str].intersection(*loads) & set(python) if loads else set[str]()
        for kind in (everywhere - builtin, everywhere & builtin):
            called = {n for n in kind if any(_calls(text, n) for text in texts)}
            if len(called or kind) == 1:
                return called or kind
            if kind:
                break
    used = sorted(set[str]().union(*(_loaded(tree) - own for tree in trees)) & set(python))
    raise Undecided(
        "the tests do not say what the program has to define: they use "
        + (f"only names that Python has ({', '.join(used)})" if used else "no name")
        + "; name it in entry_point"
    )


def _loaded(tree: ast.AST) -> set[str]:
    """Names that are read, but for those that only have a member taken, as modules have."""
    nodes = list(ast.walk(tree))
    holders = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    names = (node for node in nodes if isinstance(node, ast.Name) and id(node) not in holders)
    return {node.id for node in names if isinstance(node.ctx, ast.Load)}


def _calls(tree: ast.AST, name: str) -> bool:
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return any(isinstance(function, ast.Name) and function.id == name for function in calls)


_CATCHING = re.compile(r"[rR]aises(?:Regex)?$|^suppress$")  # pytest's, unittest's, contextlib's
_ASKING = ("isinstance", "issubclass")


def caught(classes: Iterable[str], trees: Iterable[ast.AST]) -> list[str]:
    """Those of `classes` that the tests may mean as exceptions: caught, raised, or only named.

    A class that they call, take a member of or give to a function is none, unless they catch it.
    """
    used: set[str] = set()
    sure: set[str] = set()
    for node in (part for tree in trees for part in ast.walk(tree)):
        match node:
            case ast.ExceptHandler(type=ast.AST() as kind) | ast.Raise(exc=ast.AST() as kind):
                sure |= names_in([kind])
            case ast.Call(func=function, args=given) if _CATCHING.search(_last_name(function)):
                sure |= names_in(given)
            case ast.Call(func=function, args=given, keywords=keywords):
                inside = [*given, *(keyword.value for keyword in keywords)]
                asks = isinstance(function, ast.Name) and function.id in _ASKING
                direct = [function] if asks else [function, *inside]
                used |= {part.id for part in direct if isinstance(part, ast.Name)}
            case ast.Attribute(value=ast.Name(id=name)):
                used.add(name)
            case _:
                pass
    return [name for name in classes if name in sure or name not in used]


def names_in(nodes: Iterable[ast.AST]) -> set[str]:
    """All names in these trees."""
    below = (node for tree in nodes for node in ast.walk(tree))
    return {node.id for node in below if isinstance(node, ast.Name)}


def _last_name(function: ast.expr) -> str:
    return str(getattr(function, "attr", getattr(function, "id", "")))


# What is asked -> why it cannot be answered. Each is looked for in the tests' text.
_BEYOND = (
    (
        re.compile(r"\breadouterr\(|\bcap(?:sys|fd)\b"),
        "the tests look at what the program prints, which stays in its process",
    ),
    (
        re.compile(r"\binspect\.\w|\.__(?:code|annotations|wrapped|closure|defaults|doc)__\b"),
        "the tests look at how the program is written, which stays in its process",
    ),
    (
        re.compile(r"\bmonkeypatch\b|\bmock\b"),
        "the tests replace what the program calls, which is out of their reach",
    ),
)
_CLASS = re.compile(r"\.__(?:class|dict|bases|mro)__\b|\btype\([^\n]{1,80}?\)\.__name__")
_IS_CLASS = re.compile(r"\btype\([^\n]{1,80}?\) {0,2}(?:is(?: not)?|[!=]=) {0,2}(\w{1,80})")
# Without one of these no pattern fits; to look for them takes a tenth of the time.
_WORDS = ("readouterr", "capsys", "capfd", "inspect.", ".__", "monkeypatch", "mock")
# Packages whose values are carried, or that have none.
_CARRIED = frozenset(["numpy", "pytest", "hypothesis"])


def beyond_reach(sources: Iterable[str]) -> str | None:
    """Why no program's answer to these tests can be judged, None where it can."""
    for source in sources:
        watches = "redirect_stdout" in source or "sys.stdout" in source
        if watches and ".getvalue()" in source:
            return _BEYOND[0][1]
        found = any(word in source for word in _WORDS)
        for asked, reason in _BEYOND if found else ():
            if asked.search(source):
                return reason
    return None


def asks_for_classes(sources: Iterable[str], classes: Collection[str]) -> bool:
    """Whether tests look at the class of an object (`x.__dict__`, `type(x) is Node`)."""
    return any(
        _CLASS.search(source) or any(found[1] in classes for found in _IS_CLASS.finditer(source))
        for source in sources
    )


def libraries(trees: Iterable[ast.Module]) -> frozenset[str]:
    """Installed packages that the tests import and whose objects stay in the program's process."""
    found: set[str] = set()
    for tree in trees:
        for node in ast.walk(tree):
            match node:
                case ast.Import(names=names):
                    found |= {alias.name.partition(".")[0] for alias in names}
                case ast.ImportFrom(module=str(module), level=0):
                    found.add(module.partition(".")[0])
                case _:
                    pass
    return frozenset(found - sys.stdlib_module_names - _CARRIED)
