"""Tests of what does not leave the program's process: how it is written, and what it prints.

A program that is right could not pass them, so the row says so and nobody's answer is scored. Only
the row's own text decides that.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Collection, Iterable

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
